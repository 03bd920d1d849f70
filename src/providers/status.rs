//! The meaning of the statuses on which all providers agree, and the wording of refusals.
//!
//! A row is refused only in the vendor's own error envelope. A proxy or a firewall in front of the API answers with pages of
//! its own (nginx's 400, a firewall's 403). The reasons for these pages end without a change of the row.
//!
//! | status | in the vendor's envelope | otherwise |
//! |---|---|---|
//! | 2xx | the documented body: delivered | the outcome is unknown: unreadable success |
//! | 400, 422 | one row: refused; several: split | edge |
//! | 401 | the token | the token: the server that reads it decides about it |
//! | 403 | the token's rights | a page: edge, as firewalls block one body; no page: the token's rights |
//! | 404, 405 | the address | the address: a wrong host answers with a page |
//! | 413 | one row: refused; several: split | one row: edge; several: split, since smaller requests pass any bound |
//! | 429, 503 with a time | wait | wait: the limit of an edge is a limit too |
//! | 408, 5xx | the server | the server |
//! | 3xx | redirected | redirected |
//! | other | not promised | a page: edge; no page: not promised |

use std::time::Duration;

use super::{Reply, body, headers};
use crate::verdict::{AccountFault, Outage, RejectReason, Rejection, Verdict};

/// The requests in flight of modes with one row per request: 20 rows a second times responses of up to 3 s, rounded up.
pub const SINGLE_IN_FLIGHT: usize = 64;

/// The most requests in flight if the vendor names no bound. A guess: 20 rows a second times the 10 s request timeout, rounded
/// up. More requests would only queue at the provider.
pub const MOST_IN_FLIGHT: usize = 256;

/// The rows a minute of every provider. 1,200 is Userpilot's published number for its bulk endpoint ("Limitations"), and this
/// worker's rule for all.
pub const ROWS_PER_MINUTE: u32 = 1200;

/// Returns the meaning of a reply that is neither the promised success nor about the rows. A status that the API does not
/// promise counts as an outage, so the rows are kept and sent again.
pub fn common(reply: &Reply) -> Verdict {
    let status = reply.status;
    match status.as_u16() {
        200..=299 => Verdict::Unavailable(Outage::UnreadableSuccess),
        401 => Verdict::AccountFault(AccountFault::Unauthorized),
        403 if !body::is_page(reply) => Verdict::AccountFault(AccountFault::Forbidden),
        404 | 405 => Verdict::AccountFault(AccountFault::WrongAddress),
        // With 503 the header names the time for which the service is expected to be away (RFC 9110 section 10.2.3).
        503 if headers::retry_after(reply).is_some() => throttled(headers::retry_after(reply)),
        408 | 500..=599 => Verdict::Unavailable(Outage::Server),
        429 => throttled(headers::retry_after(reply)),
        _ if status.is_redirection() => Verdict::AccountFault(AccountFault::Redirected),
        _ if body::is_page(reply) => Verdict::Unavailable(Outage::Edge),
        _ => Verdict::Unavailable(Outage::Protocol),
    }
}

/// Returns the verdict for a provider that asks to wait.
pub fn throttled(retry_after: Option<Duration>) -> Verdict {
    Verdict::Throttled { retry_after }
}

/// Returns the verdict for 400 and 422. If the vendor's envelope is about one row, the verdict is `refused`; a request of
/// several rows is split. A reply without the envelope is from the edge.
pub fn refused(rows: usize, is_own: bool, refused: impl FnOnce() -> Verdict) -> Verdict {
    match (is_own, rows) {
        (false, _) => Verdict::Unavailable(Outage::Edge),
        (true, 2..) => Verdict::Split,
        (true, _) => refused(),
    }
}

/// Returns the verdict for 413: a request of several rows is split, and a row that the vendor finds too large alone is refused.
pub fn too_large(vendor: &str, reply: &Reply, rows: usize, is_own: bool) -> Verdict {
    match (is_own, rows) {
        (_, 2..) => Verdict::Split,
        (false, _) => Verdict::Unavailable(Outage::Edge),
        (true, _) => Verdict::Rejected(refusal(vendor, reply, RejectReason::RowTooLarge, None, None)),
    }
}

/// Returns a refusal without personal data. The vendor's own message may quote the row, so only its code is repeated.
pub fn refusal(
    vendor: &str,
    reply: &Reply,
    reason: RejectReason,
    field: Option<&str>,
    code: Option<&str>,
) -> Rejection {
    let status = reply.status.as_u16();
    let message = match code.filter(|code| is_name(code)) {
        Some(code) => format!("{vendor} answered {status} {code}"),
        None => format!("{vendor} answered {status}"),
    };
    let field = field.filter(|field| is_name(field)).map(str::to_owned);
    Rejection { reason, field, status: Some(status), message }
}

/// Returns true if a text from a reply can only be a code or a field's path. A sentence or an e-mail is neither.
fn is_name(text: &str) -> bool {
    // A guess: three times the longest code that a vendor documents (`idempotency_key_reuse`).
    const LONGEST: usize = 64;
    (1..=LONGEST).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'$' | b'[' | b']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(status: u16) -> Reply {
        Reply {
            status: http::StatusCode::from_u16(status).expect("a status"),
            headers: http::HeaderMap::new(),
            body: bytes::Bytes::new(),
            received_at: std::time::SystemTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn every_status_has_a_meaning_and_none_loses_rows() {
        for status in 100..1000 {
            let verdict = common(&reply(status));
            let keeps_rows =
                matches!(verdict, Verdict::AccountFault(_) | Verdict::Unavailable(_) | Verdict::Throttled { .. });
            assert!(keeps_rows, "{status}: {verdict:?}");
        }
    }

    #[test]
    fn a_refusal_repeats_codes_and_field_names_but_no_sentence_and_no_address() {
        let refusal = |field, code| super::refusal("acme", &reply(422), RejectReason::Invalid, Some(field), Some(code));
        let plain = refusal("traits.name", "validation_failed");
        assert_eq!(
            (plain.field.as_deref(), plain.message.as_str()),
            (Some("traits.name"), "acme answered 422 validation_failed")
        );
        let private = refusal("jane@example.com", "Invalid email: jane");
        assert_eq!((private.field, private.message.as_str()), (None, "acme answered 422"));
    }
}
