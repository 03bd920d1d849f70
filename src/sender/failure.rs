//! Explains why a request has no complete reply: reqwest's errors as a closed set of outages.

use std::error::Error as _;
use std::io;
use std::time::Duration;

use super::connect_timeout;
use crate::verdict::Outage;

/// The most characters of a failure's text. A guess at what stays readable in a log line.
pub(super) const MAX_TEXT: usize = 200;

/// A request without a complete reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One of `Timeout`, `Connect`, `Dns`, `Tls`, `Reset`, `Protocol` and `UnreadableSuccess`.
    pub outage: Outage,
    /// True if the server has declared, or the connection shows, that no server has acted on the request.
    pub untouched: bool,
    /// The status of the reply, if its head arrived.
    pub status: Option<u16>,
    /// A short text about the failure. It holds no URL, header, body or token.
    pub text: String,
}

impl Failure {
    /// Returns the failure of a request that could not be sent before the time was over.
    pub(super) fn late(timeout: Duration) -> Failure {
        let text = format!("not sent within {}: the process did not run", humantime::format_duration(timeout));
        Failure::new(Outage::Timeout, text)
    }

    pub(super) fn new(outage: Outage, text: String) -> Failure {
        Failure { outage, untouched: false, status: None, text }
    }

    /// Returns the failure for a reply whose head has arrived, so that a server has acted on the request.
    pub(super) fn in_body(self, status: http::StatusCode) -> Failure {
        let text = format!("body of a reply with status {}: {}", status.as_u16(), self.text);
        Failure { untouched: false, status: Some(status.as_u16()), text, ..self }
    }

    pub(super) fn of(error: &reqwest::Error, timeout: Duration) -> Failure {
        let outage = classify(error);
        let text = match outage {
            Outage::Timeout => format!("not complete within {}", humantime::format_duration(timeout)),
            // The causes only say that a deadline has elapsed, each layer in its own words.
            Outage::Connect if error.is_timeout() => {
                format!("no connection within {}", humantime::format_duration(connect_timeout(timeout)))
            }
            _ => describe(error),
        };
        Failure { untouched: is_untouched(error), ..Failure::new(outage, text) }
    }
}

/// Returns true if no server has acted on the request (RFC 9113, section 8.7). That is the case for a refused stream, and for a
/// stream above the last one that a GOAWAY names, whatever its reason. h2 gives the GOAWAY's error to no other stream. It is
/// also the case if hyper has the request back, because the connection ended before a byte of it was written. If that
/// connection was a kept one, hyper has already tried another one itself.
fn is_untouched(error: &reqwest::Error) -> bool {
    chain(error).any(|cause| {
        let given_back = cause.to_string() == "client error (Canceled)";
        let declared = cause.downcast_ref::<h2::Error>().is_some_and(|error| {
            error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
        });
        given_back || declared
    })
}

/// Returns the outage of an error. This is the one place that reads reqwest's errors. Only their texts distinguish some of
/// them, because their types belong to crates that reqwest does not show. The tests compare the texts with what servers really
/// cause.
fn classify(error: &reqwest::Error) -> Outage {
    let io = chain(error).find_map(|cause| cause.downcast_ref::<io::Error>()).map(innermost);
    if error.is_connect() {
        if error.is_dns() {
            return Outage::Dns;
        }
        // rustls reports what it refuses as invalid data, and a peer that closes during the handshake as an early end.
        return match io.map(io::Error::kind) {
            Some(io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) => Outage::Tls,
            _ => Outage::Connect,
        };
    }
    if error.is_timeout() {
        return Outage::Timeout;
    }
    let broken = io.is_some_and(|io| {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
        matches!(io.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
    });
    if broken || chain(error).any(|cause| says_closed(&cause.to_string())) {
        return Outage::Reset;
    }
    Outage::Protocol
}

/// Returns true if the text says that a connection or a stream closed. hyper reports an end in the middle of a message, or a
/// connection that ended with the request in its queue. h2 reports that the peer gave up the stream or the connection
/// (RST_STREAM, GOAWAY).
fn says_closed(text: &str) -> bool {
    text.starts_with("connection closed before message completed")
        || text.starts_with("operation was canceled")
        || text.starts_with("channel closed")
        || text.starts_with("stream error received")
        || text.starts_with("connection error received")
        || text.starts_with("end of file before message length reached")
}

/// Returns the causes of an error, without the error itself.
fn chain(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// Returns the innermost IO error. An IO error may wrap another one without giving it as its source (hyper-rustls does so).
fn innermost(mut error: &io::Error) -> &io::Error {
    while let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>()) {
        error = inner;
    }
    error
}

/// Describes the causes in a short text, each once. Leaves out reqwest's own errors, because their texts may name the URL.
pub(super) fn describe(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in chain(error).filter(|cause| !cause.is::<reqwest::Error>()) {
        let mut part = cause.to_string();
        // h2 adds the peer's own text to its GOAWAY.
        if let Some(quoted) = part.find(" (b\"") {
            part.truncate(quoted);
        }
        // "client error (Connect)" says no more than the next cause does.
        if !part.starts_with("client error (") && parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    let text = if parts.is_empty() { "the request cannot be sent".to_owned() } else { parts.join(": ") };
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
