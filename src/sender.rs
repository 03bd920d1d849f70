//! Performs one HTTP request to a provider and says what came of it; decides and repeats nothing.

use std::error::Error as _;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::{Client, ClientBuilder, Response};

use crate::engine::verdict::Outage;
use crate::providers::Reply;

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

/// Most characters of a failure's text: a guess at what stays readable in a log line.
const MAX_TEXT: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderSettings {
    /// From the start of a request to the last byte of its reply.
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
}

impl Sender {
    /// # Errors
    /// TLS cannot be set up, most likely because the system has no root certificates, or a proxy address is malformed.
    pub fn new(settings: SenderSettings) -> Result<Sender, Error> {
        let client = |builder: ClientBuilder| builder.build().map_err(|error| Error::Client(describe(&error)));
        Ok(Sender {
            proxied: client(builder(settings))?,
            direct: client(builder(settings).no_proxy())?,
            timeout: settings.timeout,
        })
    }

    /// Sends `request` once and reads the reply whole. Redirects are returned, not followed: they would take the token
    /// elsewhere. The server may have acted on the request whatever this returns.
    ///
    /// # Errors
    /// No complete reply of at most 1 MiB came within the timeout.
    pub async fn send(&self, request: http::Request<Bytes>) -> Result<Reply, Failure> {
        let client = if request.uri().host().is_some_and(is_loopback) { &self.direct } else { &self.proxied };
        let sent = match reqwest::Request::try_from(request) {
            Ok(request) => client.execute(request).await,
            Err(error) => Err(error),
        };
        let response = sent.map_err(|error| self.failure(&error))?;
        let received_at = SystemTime::now();
        let status = response.status();
        let headers = response.headers().clone();
        let body = self.body(response).await.map_err(|failure| Failure {
            outage: failure.outage,
            text: format!("body of a reply with status {}: {}", status.as_u16(), failure.text),
        })?;
        Ok(Reply { status, headers, body, received_at })
    }

    async fn body(&self, mut response: Response) -> Result<Bytes, Failure> {
        let too_long = || Failure { outage: Outage::Protocol, text: format!("longer than {MAX_BODY} bytes") };
        if response.content_length().is_some_and(|length| length > MAX_BODY as u64) {
            return Err(too_long());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failure(&error))? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    fn failure(&self, error: &reqwest::Error) -> Failure {
        let outage = classify(error);
        let text = match outage {
            Outage::Timeout => format!("not complete within {}", humantime::format_duration(self.timeout)),
            _ => describe(error),
        };
        Failure { outage, text }
    }
}

fn builder(settings: SenderSettings) -> ClientBuilder {
    Client::builder()
        .user_agent(USER_AGENT)
        .timeout(settings.timeout)
        // Half of the whole, so that "cannot connect" is told apart from "does not answer".
        .connect_timeout(CONNECT.min(settings.timeout / 2))
        .redirect(reqwest::redirect::Policy::none())
        // The lane decides what is sent again, and pays for it from the budget. What remains is hyper's change to another
        // connection when a kept one turns out closed before a byte of the request was written: the server sees one request.
        .retry(reqwest::retry::never())
        .pool_idle_timeout(IDLE_CONNECTION)
        .tcp_nodelay(true)
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    match address.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

/// A request without a complete reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One of `Timeout`, `Connect`, `Dns`, `Tls`, `Reset` and `Protocol`.
    pub outage: Outage,
    /// What happened, in a few words; holds no URL, header, body or token.
    pub text: String,
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

/// The one place that reads reqwest's errors. Some are told apart by their text alone, because their types belong to
/// crates that reqwest does not show; the tests below hold the texts to what servers really cause.
fn classify(error: &reqwest::Error) -> Outage {
    let io = chain(error).find_map(|cause| cause.downcast_ref::<io::Error>()).map(innermost);
    if error.is_connect() {
        if error.is_dns() || chain(error).any(|cause| cause.to_string() == "dns error") {
            return Outage::Dns;
        }
        // rustls reports what it refuses as invalid data, and a peer that hangs up during the handshake as an early end.
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

/// hyper: an end in the middle of a message, a connection that ended with the request in its queue. h2: the peer gave up
/// the stream or the connection (RST_STREAM, GOAWAY).
fn says_closed(text: &str) -> bool {
    text.starts_with("connection closed before message completed")
        || text.starts_with("operation was canceled")
        || text.starts_with("channel closed")
        || text.starts_with("stream error received")
        || text.starts_with("connection error received")
        || text.starts_with("end of file before message length reached")
}

/// The causes of an error, without the error itself, whose text may name the URL.
fn chain(error: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

/// An IO error may wrap another one without giving it as its source (hyper-rustls does so).
fn innermost(mut error: &io::Error) -> &io::Error {
    while let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>()) {
        error = inner;
    }
    error
}

/// The causes in a few words, each once.
fn describe(error: &reqwest::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in chain(error) {
        let mut part = cause.to_string();
        // h2 adds the peer's own words to its GOAWAY.
        if let Some(quoted) = part.find(" (b\"") {
            part.truncate(quoted);
        }
        // "client error (Connect)" says no more than the next cause does.
        if !part.starts_with("client error (") && parts.last() != Some(&part) {
            parts.push(part);
        }
    }
    let text = if parts.is_empty() { "the request could not be sent".to_owned() } else { parts.join(": ") };
    match text.char_indices().nth(MAX_TEXT) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::{self, JoinHandle};

    use http::header::{AUTHORIZATION, HeaderValue, LOCATION, USER_AGENT};
    use http::{Request, StatusCode};

    use super::*;

    /// For what must not end by the timeout; never waited for when the code is right.
    const PATIENT: Duration = Duration::from_secs(30);
    /// For what must end by the timeout.
    const HASTY: Duration = Duration::from_millis(300);

    fn sender(timeout: Duration) -> Sender {
        Sender::new(SenderSettings { timeout }).expect("a sender")
    }

    /// A request with a query and a token that no failure may show.
    fn request(url: &str) -> Request<Bytes> {
        let mut request = Request::post(format!("{url}/users?marked=query")).body(Bytes::from_static(b"marked body"));
        let token = request.as_mut().expect("a valid request").headers_mut().entry(AUTHORIZATION);
        let mut value = HeaderValue::from_static("Bearer marked-token");
        value.set_sensitive(true);
        token.or_insert(value);
        request.expect("a valid request")
    }

    async fn failure(timeout: Duration, url: &str) -> Failure {
        let failure = sender(timeout).send(request(url)).await.expect_err("no complete reply");
        assert!(!format!("{failure:?}").contains("marked"), "{failure:?}");
        assert!(!failure.text.is_empty() && failure.text.len() <= MAX_TEXT + 100, "{failure:?}");
        failure
    }

    /// Runs `script` for the first connection. Joining it gives what the script returns, and the listener.
    fn server<T: Send + 'static>(
        script: impl FnOnce(&mut TcpStream) -> T + Send + 'static,
    ) -> (String, JoinHandle<(T, TcpListener)>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let run = move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            (script(&mut stream), listener)
        };
        (url, thread::spawn(run))
    }

    /// Reads one request, head and body, as text.
    fn read_request(stream: &mut TcpStream) -> String {
        let mut text = String::new();
        let mut byte = [0];
        while !text.ends_with("marked body") {
            stream.read_exact(&mut byte).expect("a whole request");
            text.push(char::from(byte[0]));
        }
        text
    }

    fn write(stream: &mut TcpStream, text: &str) {
        stream.write_all(text.as_bytes()).expect("the client reads");
    }

    /// Keeps the connection open and silent until the client has closed it.
    fn wait_for_close(stream: &mut TcpStream) {
        // A reset is as good an end as any.
        let _ = stream.read(&mut [0; 64]);
    }

    fn another_connection(listener: &TcpListener) -> bool {
        listener.set_nonblocking(true).expect("a listener that does not wait");
        listener.accept().is_ok()
    }

    fn join<T>(thread: JoinHandle<T>) -> T {
        thread.join().expect("the server's script ends well")
    }

    #[tokio::test]
    async fn a_reply_comes_back_with_status_headers_body_and_time() {
        let (url, server) = server(|stream| {
            let request = read_request(stream);
            write(stream, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nhello");
            request
        });
        let before = SystemTime::now();
        let reply = sender(PATIENT).send(request(&url)).await.expect("a reply");
        assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(reply.headers["retry-after"], "7");
        assert_eq!(&reply.body[..], b"hello");
        assert!(before <= reply.received_at && reply.received_at <= SystemTime::now());

        let (seen, _) = join(server);
        assert!(seen.starts_with("POST /users?marked=query HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("authorization: Bearer marked-token\r\n"), "{seen}");
        assert!(seen.contains(concat!("user-agent: sluicegate/", env!("CARGO_PKG_VERSION"), "\r\n")), "{seen}");
    }

    #[tokio::test]
    async fn an_adapter_may_name_another_user_agent() {
        let (url, server) = server(|stream| {
            let request = read_request(stream);
            write(stream, "HTTP/1.1 204 No Content\r\n\r\n");
            request
        });
        let mut request = request(&url);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static("other"));
        sender(PATIENT).send(request).await.expect("a reply");
        assert!(join(server).0.contains("user-agent: other\r\n"));
    }

    #[tokio::test]
    async fn a_redirect_is_returned_and_not_followed() {
        let (url, server) = server(|stream| {
            read_request(stream);
            let here = stream.local_addr().expect("an address");
            let head = format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{here}/\r\n");
            write(stream, &format!("{head}Connection: close\r\nContent-Length: 0\r\n\r\n"));
        });
        let reply = sender(PATIENT).send(request(&url)).await.expect("a reply");
        assert_eq!(reply.status, StatusCode::TEMPORARY_REDIRECT);
        assert!(reply.headers.contains_key(LOCATION));
        assert!(!another_connection(&join(server).1));
    }

    #[tokio::test]
    async fn a_server_that_never_answers_is_a_timeout() {
        let (url, server) = server(wait_for_answer_in_vain);
        let failure = failure(HASTY, &url).await;
        assert_eq!(failure, Failure { outage: Outage::Timeout, text: "not complete within 300ms".to_owned() });
        join(server);
    }

    fn wait_for_answer_in_vain(stream: &mut TcpStream) {
        read_request(stream);
        wait_for_close(stream);
    }

    #[tokio::test]
    async fn a_body_that_trickles_ends_at_the_timeout_of_the_whole() {
        let (url, server) = server(|stream| {
            read_request(stream);
            write(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
            // A byte every 5 ms until the client has gone: each read makes progress, the whole does not end.
            stream.set_read_timeout(Some(Duration::from_millis(5))).expect("a read timeout");
            while stream.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
                && stream.write_all(b"x").is_ok()
            {}
        });
        let failure = failure(HASTY, &url).await;
        assert_eq!(failure.outage, Outage::Timeout);
        assert_eq!(failure.text, "body of a reply with status 200: not complete within 300ms");
        join(server);
    }

    #[tokio::test]
    async fn an_endless_body_is_cut_off_at_the_cap() {
        let (url, server) = server(|stream| {
            read_request(stream);
            write(stream, "HTTP/1.1 200 OK\r\n\r\n");
            while stream.write_all(&[b'x'; 64 * 1024]).is_ok() {}
        });
        let failure = failure(PATIENT, &url).await;
        assert_eq!(failure.outage, Outage::Protocol);
        assert_eq!(failure.text, "body of a reply with status 200: longer than 1048576 bytes");
        join(server);
    }

    #[tokio::test]
    async fn an_announced_body_over_the_cap_is_not_waited_for() {
        let (url, server) = server(|stream| {
            read_request(stream);
            write(stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1));
            wait_for_close(stream);
        });
        assert_eq!(failure(PATIENT, &url).await.outage, Outage::Protocol);
        join(server);
    }

    #[tokio::test]
    async fn a_body_of_exactly_the_cap_is_read() {
        let (url, server) = server(|stream| {
            read_request(stream);
            write(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
            stream.write_all(&vec![b'x'; MAX_BODY]).expect("the client reads");
        });
        let reply = sender(PATIENT).send(request(&url)).await.expect("a reply");
        assert_eq!(reply.body.len(), MAX_BODY);
        join(server);
    }

    #[tokio::test]
    async fn a_connection_closed_before_the_reply_is_a_reset() {
        let (url, server) = server(|stream| {
            read_request(stream);
        });
        assert_eq!(failure(PATIENT, &url).await.outage, Outage::Reset);
        join(server);
    }

    #[tokio::test]
    async fn a_connection_reset_before_the_reply_is_a_reset() {
        let (url, server) = server(|stream| {
            // Closing with unread data makes the kernel answer with RST.
            stream.peek(&mut [0]).expect("a request begins");
        });
        assert_eq!(failure(PATIENT, &url).await.outage, Outage::Reset);
        join(server);
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_a_reset() {
        for head in ["Content-Length: 10\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"] {
            let (url, server) = server(move |stream| {
                read_request(stream);
                write(stream, &format!("HTTP/1.1 500 Oops\r\n{head}"));
            });
            let failure = failure(PATIENT, &url).await;
            assert_eq!(failure.outage, Outage::Reset, "{failure:?}");
            assert!(failure.text.starts_with("body of a reply with status 500: "), "{failure:?}");
            join(server);
        }
    }

    #[tokio::test]
    async fn a_request_that_dies_on_a_kept_connection_is_not_sent_again() {
        let (url, server) = server(|stream| {
            read_request(stream);
            write(stream, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
            read_request(stream);
        });
        let sender = sender(PATIENT);
        sender.send(request(&url)).await.expect("the first reply");
        let failure = sender.send(request(&url)).await.expect_err("no second reply");
        assert_eq!(failure.outage, Outage::Reset, "{failure:?}");
        assert!(!another_connection(&join(server).1));
    }

    #[tokio::test]
    async fn a_reply_that_is_not_http_breaks_the_protocol() {
        for reply in ["SSH-2.0-OpenSSH_9.6 marked\r\n", "HTTP/1.1 200 OK\r\nContent-Length: marked\r\n\r\n"] {
            let (url, server) = server(move |stream| {
                read_request(stream);
                write(stream, reply);
                wait_for_close(stream);
            });
            let failure = failure(PATIENT, &url).await;
            assert_eq!(failure.outage, Outage::Protocol, "{failure:?}");
            join(server);
        }
    }

    #[tokio::test]
    async fn a_broken_chunk_breaks_the_protocol() {
        let (url, server) = server(|stream| {
            read_request(stream);
            write(stream, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmarked\r\n");
            wait_for_close(stream);
        });
        let failure = failure(PATIENT, &url).await;
        assert_eq!(failure.outage, Outage::Protocol, "{failure:?}");
        join(server);
    }

    #[tokio::test]
    async fn a_refused_connection_is_told_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        drop(listener);
        let failure = failure(PATIENT, &url).await;
        assert_eq!(failure.outage, Outage::Connect);
        assert!(failure.text.contains("refused"), "{failure:?}");
    }

    #[tokio::test]
    async fn a_name_that_does_not_resolve_is_told_apart() {
        // RFC 6761 reserves `invalid`. A machine whose proxy is set cannot connect to it either.
        let failure = failure(PATIENT, "http://nothing.invalid").await;
        assert!(matches!(failure.outage, Outage::Dns | Outage::Connect), "{failure:?}");
        if std::env::vars().all(|(name, _)| !name.to_ascii_lowercase().ends_with("_proxy")) {
            assert_eq!(failure.outage, Outage::Dns, "{failure:?}");
        }
    }

    #[tokio::test]
    async fn tls_that_the_server_does_not_speak_is_told_apart() {
        let plain = |stream: &mut TcpStream| {
            stream.peek(&mut [0]).expect("a handshake begins");
            write(stream, "HTTP/1.1 400 Bad Request\r\n\r\n");
            wait_for_close(stream);
            wait_for_close(stream);
        };
        let hangs_up = |stream: &mut TcpStream| {
            stream.read_exact(&mut [0; 5]).expect("the record's head");
            stream.shutdown(std::net::Shutdown::Write).expect("an end without a reply");
            let _ = stream.read_to_end(&mut Vec::new());
        };
        for script in [plain as fn(&mut TcpStream), hangs_up] {
            let (url, server) = server(script);
            let failure = failure(PATIENT, &url.replace("http:", "https:")).await;
            assert_eq!(failure.outage, Outage::Tls, "{failure:?}");
            join(server);
        }
    }

    #[tokio::test]
    async fn a_handshake_without_an_end_is_a_failure_to_connect() {
        let (url, server) = server(|stream| drop(stream.read_to_end(&mut Vec::new())));
        assert_eq!(failure(HASTY, &url.replace("http:", "https:")).await.outage, Outage::Connect);
        join(server);
    }

    #[tokio::test]
    async fn a_request_that_cannot_be_sent_is_a_failure_and_not_a_panic() {
        let failure = failure(PATIENT, "ftp://127.0.0.1").await;
        assert!(matches!(failure.outage, Outage::Connect | Outage::Protocol), "{failure:?}");
        let request = Request::get("/no-host?marked=query").body(Bytes::new()).expect("a valid request");
        let failure = sender(PATIENT).send(request).await.expect_err("no host");
        assert_eq!(failure.outage, Outage::Protocol, "{failure:?}");
        assert!(!failure.text.contains("marked"), "{failure:?}");
    }

    #[test]
    fn only_loopback_addresses_are_kept_from_a_proxy() {
        for host in ["127.0.0.1", "127.8.8.8", "[::1]", "localhost", "LocalHost"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["128.0.0.1", "[::2]", "localhost.example.com", "api.vibefollow.com", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
