//! Undoes the content codings of a reply's body, which servers apply though the sender asks for none.
//!
//! reqwest's own decoders do not limit what comes out of them, so one small reply could fill the memory.

use std::io::{self, Read};

use bytes::Bytes;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::{HeaderMap, header};
use ruzstd::decoding::StreamingDecoder;

/// The most codings of one body, as in curl (`MAX_ENCODE_STACK`). Each costs a pass, and no server applies more than two.
const MOST_CODINGS: usize = 5;

/// The most bytes of history that a `zstd` body may ask for (RFC 9659, section 3).
const ZSTD_WINDOW: u64 = 8 * 1024 * 1024;

/// The number of bytes that the `br` decoder reads at once. A guess.
const BROTLI_BUFFER: usize = 4096;

/// The reason why a body cannot be decoded. The text names no part of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("decodes to more than the cap")]
    TooLong,
    #[error("is not in the coding that its head names")]
    Damaged,
    #[error("has more codings than are undone")]
    TooManyCodings,
}

#[derive(Clone, Copy)]
enum Coding {
    Gzip,
    Deflate,
    Brotli,
    Zstd,
}

/// Undoes the codings that the head names, the last one first (RFC 9110, section 8.4). Each step yields at most `cap` bytes.
///
/// A name that is no coding (`none`, `utf-8`) means nothing, as in browsers. What is under it is taken as it is. The same goes
/// for JSON text that calls itself coded. Proxies that decode a body and pass on its head leave such text behind.
///
/// # Errors
/// Returns an error if the body is not what its head says, has too many codings, or grows beyond the cap.
pub(super) fn decoded(headers: &HeaderMap, body: Bytes, cap: usize) -> Result<Bytes, Error> {
    let codings = codings(headers);
    if body.is_empty() || codings.is_empty() {
        return Ok(body);
    }
    if codings.len() > MOST_CODINGS {
        return Err(Error::TooManyCodings);
    }
    let mut body = body;
    for coding in codings.into_iter().rev() {
        let Some(coding) = coding else { break };
        body = match undone(coding, &body, cap) {
            Err(Error::Damaged) if is_json_text(&body) => break,
            undone => undone?.into(),
        };
    }
    Ok(body)
}

/// Returns the codings in the order in which they were applied, with `None` for a name that is no coding. Leaves out
/// `identity`.
fn codings(headers: &HeaderMap) -> Vec<Option<Coding>> {
    let lines = headers.get_all(header::CONTENT_ENCODING).iter();
    let names = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let names = names.map(|name| name.trim_ascii().to_ascii_lowercase());
    names
        .filter(|name| !name.is_empty() && name != b"identity")
        .map(|name| match name.as_slice() {
            b"gzip" | b"x-gzip" => Some(Coding::Gzip),
            b"deflate" => Some(Coding::Deflate),
            b"br" => Some(Coding::Brotli),
            b"zstd" => Some(Coding::Zstd),
            _ => None,
        })
        .collect()
}

fn undone(coding: Coding, body: &[u8], cap: usize) -> Result<Vec<u8>, Error> {
    match coding {
        Coding::Gzip => read(MultiGzDecoder::new(body), cap),
        // "deflate" means zlib's format, but servers that send the bare stream are as common (RFC 9110, section 8.4.1.2).
        Coding::Deflate => match read(ZlibDecoder::new(body), cap) {
            Err(Error::Damaged) => read(DeflateDecoder::new(body), cap),
            decoded => decoded,
        },
        Coding::Brotli => read(brotli_decompressor::Decompressor::new(body, BROTLI_BUFFER), cap),
        Coding::Zstd => zstd(body, cap),
    }
}

/// Decodes a `zstd` body, which is one frame or several.
fn zstd(mut body: &[u8], cap: usize) -> Result<Vec<u8>, Error> {
    let mut decoded = Vec::new();
    while !body.is_empty() {
        let frame = StreamingDecoder::new_with_max_window_size(&mut body, ZSTD_WINDOW).map_err(|_| Error::Damaged)?;
        decoded.append(&mut read(frame, cap - decoded.len())?);
    }
    Ok(decoded)
}

fn read(decoder: impl Read, cap: usize) -> Result<Vec<u8>, Error> {
    let mut decoded = Vec::new();
    let read: io::Result<usize> = decoder.take(cap as u64 + 1).read_to_end(&mut decoded);
    match read {
        _ if decoded.len() > cap => Err(Error::TooLong),
        Ok(_) => Ok(decoded),
        Err(_) => Err(Error::Damaged),
    }
}

/// Returns true if the bytes begin as the vendors' JSON does, after a byte order mark and blanks.
fn is_json_text(body: &[u8]) -> bool {
    let text = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body).trim_ascii_start();
    matches!(text.first(), Some(b'{' | b'['))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
    use http::HeaderValue;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    const CAP: usize = 1024 * 1024;
    const BODY: &[u8] = br#"{"message":"Success."}"#;

    pub(crate) fn gzip(body: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zlib(body: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).expect("memory");
        encoder.finish().expect("memory")
    }

    fn raw_deflate(body: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(body).expect("memory");
        encoder.finish().expect("memory")
    }

    fn zstd_frame(body: &[u8]) -> Vec<u8> {
        compress_to_vec(body, CompressionLevel::Fastest)
    }

    /// Returns an uncompressed meta-block between an empty header and an empty last meta-block (RFC 7932, section 9). Its bits
    /// are the window bits 16 (`0`), not last (`0`), four nibbles of length (`00`), the length less one, and uncompressed
    /// (`1`).
    fn brotli(body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() - 1).expect("a short body");
        let head = length << 4 | 1 << 20;
        [&head.to_le_bytes()[..3], body, &[0b11]].concat()
    }

    fn headers(lines: &[&'static str]) -> HeaderMap {
        lines.iter().map(|line| (header::CONTENT_ENCODING, HeaderValue::from_static(line))).collect()
    }

    fn body_of(lines: &[&'static str], body: impl Into<Bytes>) -> Result<Bytes, Error> {
        decoded(&headers(lines), body.into(), CAP)
    }

    #[test]
    fn every_coding_in_use_is_undone_alone_and_in_chains() {
        for (lines, body) in [
            (vec!["gzip"], gzip(BODY)),
            (vec!["X-GZIP"], gzip(BODY)),
            (vec!["deflate"], zlib(BODY)),
            (vec!["deflate"], raw_deflate(BODY)),
            (vec!["br"], brotli(BODY)),
            (vec!["zstd"], zstd_frame(BODY)),
            // The coding that was applied last comes last, over lines as within one (RFC 9110, section 5.3).
            (vec!["gzip, br"], brotli(&gzip(BODY))),
            (vec!["br", "identity", " zstd ,gzip"], gzip(&zstd_frame(&brotli(BODY)))),
            // gzip files and zstd frames may follow each other (RFC 1952, section 2.2; RFC 8878, section 3).
            (vec!["gzip"], [gzip(&BODY[..5]), gzip(&BODY[5..])].concat()),
            (vec!["zstd"], [zstd_frame(&BODY[..5]), zstd_frame(&BODY[5..])].concat()),
        ] {
            assert_eq!(body_of(&lines, body), Ok(Bytes::from_static(BODY)), "{lines:?}");
        }
    }

    #[test]
    fn a_body_without_a_coding_or_with_an_invented_one_stays_as_it_is() {
        for lines in [&[][..], &["identity"], &["none"], &["utf-8"], &[""], &["gzip"], &["br"], &["deflate, zstd"]] {
            assert_eq!(body_of(lines, BODY), Ok(Bytes::from_static(BODY)), "{lines:?}");
        }
        assert_eq!(body_of(&["gzip"], ""), Ok(Bytes::new()));
    }

    #[test]
    fn a_body_that_is_not_in_its_coding_is_recognized() {
        let cut = |body: Vec<u8>| body[..body.len() - 3].to_vec();
        for (lines, body) in [
            (vec!["gzip"], cut(gzip(BODY))),
            (vec!["gzip"], zlib(BODY)),
            (vec!["deflate"], gzip(BODY)),
            (vec!["br"], cut(brotli(BODY))),
            (vec!["zstd"], cut(zstd_frame(BODY))),
            (vec!["zstd"], b"<html>".to_vec()),
            (vec!["gzip, gzip"], gzip(b"junk")),
        ] {
            assert_eq!(body_of(&lines, body), Err(Error::Damaged), "{lines:?}");
        }
        assert_eq!(body_of(&["gzip,gzip,gzip,gzip,gzip,gzip"], gzip(BODY)), Err(Error::TooManyCodings));
    }

    #[test]
    fn a_bomb_is_given_up_at_the_cap() {
        let blanks = vec![b' '; CAP + 1];
        for (line, bomb) in [
            ("gzip", gzip(&blanks)),
            ("deflate", zlib(&blanks)),
            ("zstd", zstd_frame(&blanks)),
            ("gzip,gzip", gzip(&gzip(&blanks))),
        ] {
            assert!(bomb.len() < 10_000, "{line}: {} bytes", bomb.len());
            assert_eq!(body_of(&[line], bomb), Err(Error::TooLong), "{line}");
        }
        assert_eq!(body_of(&["gzip"], gzip(&blanks[1..])).map(|body| body.len()), Ok(CAP));
    }

    #[test]
    fn a_damaged_body_is_an_error_or_another_body_and_no_panic() {
        for (line, body) in [
            ("gzip", gzip(BODY)),
            ("deflate", zlib(BODY)),
            ("deflate", raw_deflate(BODY)),
            ("br", brotli(BODY)),
            ("zstd", zstd_frame(BODY)),
        ] {
            for at in 0..body.len() {
                for bit in 0..8 {
                    let mut damaged = body.clone();
                    damaged[at] ^= 1 << bit;
                    let decoded = body_of(&[line], damaged).map_or(0, |body| body.len());
                    assert!(decoded <= CAP, "{line}: {decoded} bytes");
                }
                assert_ne!(body_of(&[line], body[..at].to_vec()), Ok(Bytes::from_static(BODY)), "{line}: {at} bytes");
            }
        }
    }
}
