//! Performs one HTTP request to a provider and says what came of it; decides and repeats nothing.

mod coding;
mod failure;
pub mod tls;
pub mod token;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use reqwest::{Client, ClientBuilder, Response, Url};

use crate::providers::Reply;
use crate::verdict::Outage;

pub use failure::Failure;
use tls::Tls;

/// What providers see in their logs.
const USER_AGENT: &str = concat!("sluicegate/", env!("CARGO_PKG_VERSION"));

/// Idle connections are given up before the other side does: 5 s is the shortest limit in common use (Node.js
/// `server.keepAliveTimeout`; load balancers wait 60 s and more). A request on a connection that is being closed has an
/// unknown outcome.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);

/// Longest wait for a connection including TLS. A guess: three lost SYN packets (1, 3 and 7 s) and some room.
const CONNECT: Duration = Duration::from_secs(10);

/// Most bytes of a reply's body. The longest known reply, an error for each of VibeFollow's 1,000 rows, stays below it.
const MAX_BODY: usize = 1024 * 1024;

/// Most lines of a reply's head. A guess: 64 KiB of lines with 16 bytes each, which no proxy adds up to; hyper's own 100 is
/// less than some do. The bytes of a head stay bounded by hyper's buffer of 408 KiB.
const MAX_HEADERS: usize = 4096;

/// Most bytes of a head over HTTP/2, where each line counts 32 bytes more (RFC 9113, section 6.5.2). As much as a body.
const MAX_HEADER_LIST: u32 = 1024 * 1024;

/// How often in a row a request that follows an untouched one may be untouched as well. A guess: a server that replaces its
/// connections gives requests back once, and one that gives back each of them is not there.
const UNTOUCHED_IN_A_ROW: u32 = 3;

/// What a destination's settings say about its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderSettings {
    /// From the start of a request to the last byte of its reply; above zero. Connecting may take half of it, so that
    /// "cannot connect" is told apart from "does not answer", and at most 10 s.
    pub timeout: Duration,
}

/// Sends requests of one destination; keeps connections open between them. Clones share the connections.
///
/// Proxies are taken from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` (upper or lower case), as operators
/// expect. Loopback addresses are always reached directly, as in Go's `http.ProxyFromEnvironment`: a sidecar or a test
/// server is not where a proxy could find it.
#[derive(Clone, Debug)]
pub struct Sender {
    proxied: Client,
    direct: Client,
    timeout: Duration,
    /// The address that was asked for last, and the same parsed: most requests of a destination go to one, and parsing it
    /// each time took 4% of the CPU of rows that are sent one by one (measured by `benches/delivery`).
    parsed: Arc<Mutex<Option<(http::Uri, Url)>>>,
    /// How many untouched requests have followed one another since the last reply.
    untouched: Arc<AtomicU32>,
}

impl Sender {
    /// Servers are verified against the system's authorities and those of `tls`; nothing turns that off.
    ///
    /// # Errors
    /// TLS cannot be set up, most likely because the system has no root certificates.
    pub fn new(settings: SenderSettings, tls: &Tls) -> Result<Sender, Error> {
        let client = |builder: ClientBuilder| builder.build().map_err(|error| Error::Client(failure::describe(&error)));
        Ok(Sender {
            proxied: client(builder(settings, tls))?,
            direct: client(builder(settings, tls).no_proxy())?,
            timeout: settings.timeout,
            parsed: Arc::default(),
            untouched: Arc::default(),
        })
    }

    /// Sends `request` once and reads the reply whole. Redirects are returned, not followed: they would take the token
    /// elsewhere. The server may have acted on the request whatever this returns, unless the failure says `untouched`.
    ///
    /// A body that cannot be read, because it is too long or not in the coding that its head names, is empty in the reply: the
    /// status and the head say enough. Only a success is not believed without its body.
    ///
    /// The timeout counts from `decided`. A process that was stopped (SIGSTOP, a paused virtual machine) between the decision
    /// and the sending sends nothing: another owner may be at work by then.
    ///
    /// # Errors
    /// No complete reply came within the timeout, or the body of a success cannot be read.
    pub async fn send(&self, request: http::Request<Bytes>, decided: Instant) -> Result<Reply, Failure> {
        let Some(left) = self.timeout.checked_sub(decided.elapsed()) else { return Err(Failure::late(self.timeout)) };
        let client = if request.uri().host().is_some_and(is_loopback) { &self.direct } else { &self.proxied };
        let untouched_before = self.untouched.load(Ordering::Relaxed);
        let sent = match self.prepare(request) {
            Ok(mut request) => {
                *request.timeout_mut() = Some(left);
                client.execute(request).await
            }
            Err(error) => Err(error),
        };
        let mut response = sent.map_err(|error| self.not_again(untouched_before, Failure::of(&error, self.timeout)))?;
        self.untouched.store(0, Ordering::Relaxed);
        let received_at = SystemTime::now();
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let body = self.body(response, &headers).await.map_err(|failure| failure.in_body(status))?;
        let body = match body {
            Ok(body) => body,
            Err(_) if !status.is_success() => Bytes::new(),
            Err(text) => return Err(Failure::new(Outage::UnreadableSuccess, text).in_body(status)),
        };
        Ok(Reply { status, headers, body, received_at })
    }

    /// An untouched request is sent again at once, so a server that gives back whatever it gets is an outage in the end. Those
    /// that were under way together count once: one closing connection gives all of them back.
    fn not_again(&self, before: u32, failure: Failure) -> Failure {
        if failure.untouched {
            self.untouched.fetch_max(before + 1, Ordering::Relaxed);
        }
        Failure { untouched: failure.untouched && before < UNTOUCHED_IN_A_ROW, ..failure }
    }

    /// The request as the client takes it.
    fn prepare(&self, request: http::Request<Bytes>) -> Result<reqwest::Request, reqwest::Error> {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, url)) = parsed.as_ref().filter(|(address, _)| address == request.uri()) {
            let (parts, body) = request.into_parts();
            let mut prepared = reqwest::Request::new(parts.method, url.clone());
            *prepared.headers_mut() = parts.headers;
            *prepared.body_mut() = Some(body.into());
            return Ok(prepared);
        }
        let address = request.uri().clone();
        let prepared = reqwest::Request::try_from(request)?;
        *parsed = Some((address, prepared.url().clone()));
        Ok(prepared)
    }

    /// The body, or why it cannot be read.
    async fn body(&self, mut response: Response, headers: &HeaderMap) -> Result<Result<Bytes, String>, Failure> {
        let too_long = || Ok(Err(format!("longer than {MAX_BODY} bytes")));
        if response.content_length().is_some_and(|length| length > MAX_BODY as u64) {
            return too_long();
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| Failure::of(&error, self.timeout))? {
            if body.len() + chunk.len() > MAX_BODY {
                return too_long();
            }
            body.extend_from_slice(&chunk);
        }
        Ok(coding::decoded(headers, body.freeze(), MAX_BODY).map_err(|error| error.to_string()))
    }
}

fn builder(settings: SenderSettings, tls: &Tls) -> ClientBuilder {
    let builder = match &tls.identity {
        Some(identity) => Client::builder().identity(identity.clone()),
        None => Client::builder(),
    };
    builder
        .tls_certs_merge(tls.authorities.clone())
        .user_agent(USER_AGENT)
        .default_headers(HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"))]))
        .http1_max_headers(MAX_HEADERS)
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .timeout(settings.timeout)
        .connect_timeout(connect_timeout(settings.timeout))
        .redirect(reqwest::redirect::Policy::none())
        // The lane decides what is sent again, and whether it pays for it from the budget. What remains is hyper's change to
        // another connection when a kept one turns out closed before a byte of the request was written: the server sees one.
        .retry(reqwest::retry::never())
        .pool_idle_timeout(IDLE_CONNECTION)
        // Over HTTP/2 a request that times out leaves its connection to the next ones, also when nobody is there any more.
        // So a connection that is silent while requests wait is asked (PING), and given up by the time the first has timed out.
        .http2_keep_alive_interval(connect_timeout(settings.timeout))
        .http2_keep_alive_timeout(connect_timeout(settings.timeout))
        .tcp_nodelay(true)
}

fn connect_timeout(timeout: Duration) -> Duration {
    CONNECT.min(timeout / 2)
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// Why a sender cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "the HTTP client cannot be set up ({0}): install the system's root certificates (package ca-certificates) \
         or name them in SSL_CERT_FILE"
    )]
    Client(String),
}

#[cfg(test)]
mod tests;
