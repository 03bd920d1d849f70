//! The faults that a request or a connection meets, and the bytes that they turn a reply into.

use std::io::Write as _;
use std::time::Duration;

/// The fault that one request meets, or one connection of a raw proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The proxy passes request and reply.
    None,
    /// The proxy reads the request, does not pass it on, and ends the connection.
    Error(End),
    /// The provider gets the request and answers. The proxy passes this part of the reply and ends the connection.
    CutAfterApply(Cut, End),
    /// The proxy passes the request on after this time.
    Delay(Duration),
    /// The proxy takes bytes, never answers, and keeps the connection.
    BlackHole,
    /// The proxy reads nothing, so the worker's writes fill the buffers.
    Deaf,
    /// The proxy passes the request, and the reply byte by byte with this pause between two.
    SlowLoris(Duration),
    /// The proxy sends this reply instead of the provider's.
    Answer(String),
    /// The proxy sends this reply to requests whose body holds these words, and passes the others.
    Block { words: &'static str, answer: String },
    /// The proxy sends a reply without an end instead of the provider's.
    Endless(Endless),
    /// The proxy passes request and reply, but gives a success another form with the same meaning.
    Dress(Dress),
    /// The proxy passes request and reply, then ends the connection at once, like a server that keeps none.
    IdleClose(End),
    /// The proxy passes request and reply, and ends the connection when the next request on it begins. A server's idle
    /// limit leads to this race.
    CloseAtNext(End),
}

/// The forms of a success that have the same meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dress {
    Gzip,
    Deflate,
    Zstd,
    /// Another status of the class, 300 header lines of 64 KiB together, another content type, a byte order mark and
    /// blanks around the body.
    Surplus,
}

impl Dress {
    pub(super) fn on(self, head: &str, body: &[u8]) -> Vec<u8> {
        if !head.starts_with("HTTP/1.1 2") {
            return [head.as_bytes(), body].concat();
        }
        let level = flate2::Compression::default();
        let (status, more, body) = match self {
            Dress::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(body).expect("memory");
                ("200 OK", "content-encoding: gzip\r\n".to_owned(), encoder.finish().expect("memory"))
            }
            Dress::Deflate => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(body).expect("memory");
                ("200 OK", "content-encoding: deflate\r\n".to_owned(), encoder.finish().expect("memory"))
            }
            Dress::Zstd => {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                let body = ruzstd::encoding::compress_to_vec(body, level);
                ("200 OK", "content-encoding: zstd\r\n".to_owned(), body)
            }
            Dress::Surplus => {
                let lines = (0..300).map(|n| format!("x-more-{n}: {}\r\n", "m".repeat(200))).collect::<String>();
                let body = [b"\xef\xbb\xbf \r\n", body, b"\r\n"].concat();
                ("203 Non-Authoritative Information", format!("content-type: text/html\r\n{lines}"), body)
            }
        };
        let head = format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), &body].concat()
    }
}

/// A way in which a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Close,
    Reset,
}

/// The part of a reply that the proxy passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Nothing,
    HalfTheHead,
    TheHead,
    HalfTheBody,
    AllButOneByte,
}

impl Cut {
    pub const ALL: [Cut; 5] = [Cut::Nothing, Cut::HalfTheHead, Cut::TheHead, Cut::HalfTheBody, Cut::AllButOneByte];

    pub(super) fn of(self, head: usize, whole: usize) -> usize {
        match self {
            Cut::Nothing => 0,
            Cut::HalfTheHead => head / 2,
            Cut::TheHead => head,
            Cut::HalfTheBody => head + (whole - head) / 2,
            Cut::AllButOneByte => whole - 1,
        }
    }
}

/// The part of a reply that does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endless {
    Body,
    Chunks,
    Headers,
    /// 100 Continue, again and again.
    Informational,
}

impl Endless {
    pub(super) fn parts(self) -> (&'static str, String) {
        const BEGIN: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
        let long = " ".repeat(16 * 1024);
        match self {
            Endless::Body => ("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", long),
            Endless::Chunks => (
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
                format!("4000\r\n{long}\r\n"),
            ),
            Endless::Headers => (BEGIN, format!("x-more: {}\r\n", "m".repeat(1000))),
            Endless::Informational => ("", "HTTP/1.1 100 Continue\r\n\r\n".repeat(100)),
        }
    }
}
