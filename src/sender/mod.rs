//! Performs one HTTP request to a provider and says what came of it; decides and repeats nothing.

mod failure;
pub mod tls;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::{Client, ClientBuilder, Response, Url};

use crate::engine::verdict::Outage;
use crate::providers::Reply;

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
        })
    }

    /// Sends `request` once and reads the reply whole. Redirects are returned, not followed: they would take the token
    /// elsewhere. The server may have acted on the request whatever this returns.
    ///
    /// The timeout counts from `decided`. A process that was stopped (SIGSTOP, a paused virtual machine) between the decision
    /// and the sending sends nothing: another owner may be at work by then.
    ///
    /// # Errors
    /// No complete reply of at most 1 MiB came within the timeout.
    pub async fn send(&self, request: http::Request<Bytes>, decided: Instant) -> Result<Reply, Failure> {
        let Some(left) = self.timeout.checked_sub(decided.elapsed()) else { return Err(Failure::late(self.timeout)) };
        let client = if request.uri().host().is_some_and(is_loopback) { &self.direct } else { &self.proxied };
        let sent = match self.prepare(request) {
            Ok(mut request) => {
                *request.timeout_mut() = Some(left);
                client.execute(request).await
            }
            Err(error) => Err(error),
        };
        let mut response = sent.map_err(|error| Failure::of(&error, self.timeout))?;
        let received_at = SystemTime::now();
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let body = self.body(response).await.map_err(|failure| Failure {
            outage: failure.outage,
            text: format!("body of a reply with status {}: {}", status.as_u16(), failure.text),
        })?;
        Ok(Reply { status, headers, body, received_at })
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

    async fn body(&self, mut response: Response) -> Result<Bytes, Failure> {
        let too_long = || Failure { outage: Outage::Protocol, text: format!("longer than {MAX_BODY} bytes") };
        if response.content_length().is_some_and(|length| length > MAX_BODY as u64) {
            return Err(too_long());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| Failure::of(&error, self.timeout))? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
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
        .timeout(settings.timeout)
        .connect_timeout(connect_timeout(settings.timeout))
        .redirect(reqwest::redirect::Policy::none())
        // The lane decides what is sent again, and pays for it from the budget. What remains is hyper's change to another
        // connection when a kept one turns out closed before a byte of the request was written: the server sees one request.
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
