//! Performs one HTTP request to a vendor and returns the result, without deciding or repeating anything.

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

/// The user agent that vendors see in their logs.
const USER_AGENT: &str = concat!("sluicegate/", env!("CARGO_PKG_VERSION"));

/// The time after which the sender gives up an idle connection, before the server does. The shortest limit in common use is 5 s
/// (Node.js `server.keepAliveTimeout`). Load balancers wait 60 s and more. A request on a connection that the server is closing
/// has an unknown outcome.
const IDLE_CONNECTION: Duration = Duration::from_secs(4);

/// The longest wait for a connection including TLS. A guess: three lost SYN packets (1, 3 and 7 s) and some room.
const CONNECT: Duration = Duration::from_secs(10);

/// The most bytes of a reply's body. The longest known reply, an error for each of VibeFollow's 1,000 rows, is shorter.
const MAX_BODY: usize = 1024 * 1024;

/// The most lines of a reply's head. A guess: 64 KiB of lines with 16 bytes each, which no proxy adds up to. Some proxies
/// exceed hyper's own limit of 100. hyper's buffer of 408 KiB still limits the bytes of a head.
const MAX_HEADERS: usize = 4096;

/// The most bytes of a head over HTTP/2, where each line counts 32 bytes more (RFC 9113, section 6.5.2). It is as much as a
/// body may have.
const MAX_HEADER_LIST: u32 = 1024 * 1024;

/// The number of untouched requests in a row after which the next one counts as an outage. A guess: a server that replaces its
/// connections gives requests back once, and a server that gives back each of them is not there.
const UNTOUCHED_IN_A_ROW: u32 = 3;

/// The settings of a destination for its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderSettings {
    /// The time from the start of a request to the last byte of its reply, above zero. Connecting may take half of it, and at
    /// most 10 s, so that "cannot connect" differs from "does not answer".
    pub timeout: Duration,
}

/// A client that sends the requests of one destination and keeps connections open between them. Clones share the connections.
///
/// It takes proxies from `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` (upper or lower case), as operators expect. It
/// always reaches loopback addresses directly, as Go's `http.ProxyFromEnvironment` does. A proxy could not find a sidecar or a
/// test server there.
#[derive(Clone, Debug)]
pub struct Sender {
    proxied: Client,
    direct: Client,
    timeout: Duration,
    /// The last address that a request asked for, and the same parsed. Most requests of a destination go to one address. To
    /// parse it each time took 4% of the CPU of rows that are sent one by one (measured by `benches/delivery`).
    parsed: Arc<Mutex<Option<(http::Uri, Url)>>>,
    /// The number of untouched requests in a row since the last reply.
    untouched: Arc<AtomicU32>,
}

impl Sender {
    /// Makes a sender. It verifies servers against the system's authorities and those of `tls`, and nothing turns that off.
    ///
    /// # Errors
    /// Returns an error if TLS cannot be set up, most likely because the system has no root certificates.
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

    /// Sends `request` once and reads the whole reply. Returns redirects without following them, because they would take the
    /// token elsewhere. The server may have acted on the request whatever this returns, unless the failure says `untouched`.
    ///
    /// A body cannot be read if it is too long, or not in the coding that its head names. It is then empty in the reply,
    /// because the status and the head say enough. Only a success is not believed without its body.
    ///
    /// The timeout counts from `decided`. A process may have been stopped (SIGSTOP, a paused virtual machine) between the
    /// decision and the sending. It then sends nothing, because another owner may be at work by then.
    ///
    /// # Errors
    /// Returns a failure if no complete reply comes within the timeout, or the body of a success cannot be read.
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

    /// Returns the failure, but without `untouched` after `UNTOUCHED_IN_A_ROW` of them. The engine sends an untouched request
    /// again at once, so a server that gives back each request must become an outage. Requests in flight together count once,
    /// because one closing connection gives all of them back.
    fn not_again(&self, before: u32, failure: Failure) -> Failure {
        if failure.untouched {
            self.untouched.fetch_max(before + 1, Ordering::Relaxed);
        }
        Failure { untouched: failure.untouched && before < UNTOUCHED_IN_A_ROW, ..failure }
    }

    /// Returns the request in the client's own form.
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

    /// Returns the body, or the reason why it cannot be read.
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
        // The lane decides what is sent again, and if the budget pays for it. Only hyper still changes to another connection,
        // if a kept one turns out closed before a byte of the request was written. The server then sees one request.
        .retry(reqwest::retry::never())
        .pool_idle_timeout(IDLE_CONNECTION)
        // Over HTTP/2, a request that times out leaves its connection to the next ones, even if the server is gone. So the
        // client asks a connection that is silent while requests wait (PING). It gives the connection up by the time the first
        // request has timed out.
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

/// The reason why a sender cannot be made.
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
