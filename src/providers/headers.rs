//! Reads and writes the headers that all providers share.

use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};

use super::Reply;

pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The longest wait that a header may impose. A guess: VibeFollow's full queue and Vitally's limits end within minutes,
/// so a longer wait is a broken header.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// Returns true if an `Authorization` header can hold a token: visible ASCII, with at most one line end after it. A blank is
/// refused too. No vendor's token holds one, so it means that a word such as `Basic` was copied with the token.
pub fn is_token(token: &str) -> bool {
    let token = without_line_end(token);
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Returns `<scheme> <token>`, marked so that HTTP libraries neither log nor index it. The token is sent as it is. Vitally's
/// token is already in its final form, and encoding it again gives a 401 that looks like a wrong token.
///
/// # Panics
/// If the token does not pass [`is_token`].
pub fn authorization(scheme: &str, token: &SecretString) -> HeaderValue {
    let text = format!("{scheme} {}", without_line_end(token.expose_secret()));
    let mut value = HeaderValue::from_str(&text).expect("the token was validated");
    value.set_sensitive(true);
    value
}

/// Returns the wait that `Retry-After` asks for, in seconds or as a date (RFC 9110, 10.2.3), up to a cap. Returns `None` for
/// zero, dates in the past and anything else. The lane then uses its own pause, which cannot become a hot loop.
///
/// A date is compared with the reply's own `Date`. Both are from the server's clock, which may differ from this machine's.
pub fn retry_after(reply: &Reply) -> Option<Duration> {
    let text = text(reply, &http::header::RETRY_AFTER)?;
    let wait = match seconds(text) {
        Some(wait) => wait,
        None => httpdate::parse_http_date(text).ok()?.duration_since(server_time(reply)).ok()?,
    };
    usable(wait)
}

/// Returns the server's time when it answered (RFC 9110, 6.6.1), or the time of arrival if the reply names none.
fn server_time(reply: &Reply) -> SystemTime {
    let date = text(reply, &http::header::DATE).and_then(|date| httpdate::parse_http_date(date).ok());
    date.unwrap_or(reply.received_at)
}

/// Returns the first value of a header, if it is text.
fn text<'a>(reply: &'a Reply, name: &HeaderName) -> Option<&'a str> {
    Some(reply.headers.get(name)?.to_str().ok()?.trim())
}

/// Returns the wait that `RateLimit-Reset` asks for, capped like `Retry-After`. It is in seconds, as Vitally documents it for
/// its REST API.
pub fn rate_limit_reset(reply: &Reply) -> Option<Duration> {
    usable(seconds(text(reply, &HeaderName::from_static("ratelimit-reset"))?)?)
}

/// Returns the wait until the time that `X-RateLimit-Reset` names, up to a cap. It is in seconds since 1970, as Vitally's REST
/// API answers, and is compared with the reply's own `Date`.
pub fn rate_limit_reset_time(reply: &Reply) -> Option<Duration> {
    let since_1970 = seconds(text(reply, &HeaderName::from_static("x-ratelimit-reset"))?)?;
    let reset = SystemTime::UNIX_EPOCH.checked_add(since_1970)?;
    usable(reset.duration_since(server_time(reply)).ok()?)
}

fn without_line_end(token: &str) -> &str {
    token.strip_suffix('\n').map_or(token, |line| line.strip_suffix('\r').unwrap_or(line))
}

fn seconds(text: &str) -> Option<Duration> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // Only a number with too many digits can fail here.
    Some(text.parse().map_or(LONGEST_WAIT, Duration::from_secs))
}

fn usable(wait: Duration) -> Option<Duration> {
    (!wait.is_zero()).then(|| wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(value: &str) -> Option<Duration> {
        let mut headers = http::HeaderMap::new();
        headers.insert("retry-after", value.parse().expect("a header value"));
        let received_at = httpdate::parse_http_date("Tue, 15 May 2018 12:00:00 GMT").expect("a date");
        retry_after(&Reply { status: http::StatusCode::OK, headers, body: bytes::Bytes::new(), received_at })
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(wait("17"), Some(Duration::from_secs(17)));
        assert_eq!(wait(" 17 "), Some(Duration::from_secs(17)));
        assert_eq!(wait("Tue, 15 May 2018 12:00:30 GMT"), Some(Duration::from_secs(30)));
    }

    #[test]
    fn an_absurd_wait_is_capped() {
        assert_eq!(wait("86400"), Some(LONGEST_WAIT));
        assert_eq!(wait("99999999999999999999999999"), Some(LONGEST_WAIT));
        assert_eq!(wait("Tue, 15 May 2040 12:00:00 GMT"), Some(LONGEST_WAIT));
    }

    #[test]
    fn a_wait_that_says_nothing_is_ignored() {
        for junk in ["", "-5", "1.5", "soon", "0", "+3", "Tue, 15 May 2018 11:59:00 GMT"] {
            assert_eq!(wait(junk), None, "{junk:?}");
        }
    }

    #[test]
    fn the_authorization_is_verbatim_sensitive_and_without_the_file_s_line_end() {
        let value = authorization("Basic", &SecretString::from("c2stbGl2ZQ==\r\n"));
        assert_eq!(value, "Basic c2stbGl2ZQ==");
        assert!(value.is_sensitive());
    }

    #[test]
    fn a_token_that_no_header_can_hold_is_recognized() {
        assert!(is_token("sk_live_1\n"));
        for bad in ["", "\n", "Bearer a", "a\nb", "tok\u{e9}n", "a\tb", "a\n\n"] {
            assert!(!is_token(bad), "{bad:?}");
        }
    }
}
