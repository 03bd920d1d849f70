//! Tests the sender against what small hand-written servers really cause.

mod bodies;
mod http2;
mod names;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::{self, JoinHandle};

use http::header::{AUTHORIZATION, HeaderValue, LOCATION, USER_AGENT};
use http::{Request, StatusCode};

use super::failure::MAX_TEXT;
use super::*;

/// The timeout of requests that must not end by it. No test waits for it if the code is right.
const PATIENT: Duration = Duration::from_secs(30);
/// The timeout of requests that must end by it.
const HASTY: Duration = Duration::from_secs(1);

fn sender(timeout: Duration) -> Sender {
    Sender::new(SenderSettings { timeout }, &Tls::default()).expect("a sender")
}

/// Returns a request with a query and a token that no failure may show.
fn request(url: &str) -> Request<Bytes> {
    let mut request = Request::post(format!("{url}/users?marked=query")).body(Bytes::from_static(b"marked body"));
    let token = request.as_mut().expect("a valid request").headers_mut().entry(AUTHORIZATION);
    let mut value = HeaderValue::from_static("Bearer marked-token");
    value.set_sensitive(true);
    token.or_insert(value);
    request.expect("a valid request")
}

async fn failure(timeout: Duration, url: &str) -> Failure {
    let failure = sender(timeout).send(request(url), Instant::now()).await.expect_err("no complete reply");
    assert!(!format!("{failure:?}").contains("marked"), "{failure:?}");
    assert!(!failure.text.is_empty() && failure.text.len() <= MAX_TEXT + 100, "{failure:?}");
    failure
}

/// Runs `script` for the first connection. Joining the thread gives the script's result and the listener.
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
    // A reset is as good an end as any other.
    let _ = stream.read(&mut [0; 64]);
}

fn another_connection(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).expect("a listener that does not wait");
    listener.accept().is_ok()
}

/// Waits next to the runtime, which has to run on so that the client closes its connection.
async fn join<T: Send + 'static>(thread: JoinHandle<T>) -> T {
    let ended = tokio::task::spawn_blocking(move || thread.join()).await;
    ended.expect("the wait ends").expect("the server's script ends well")
}

#[tokio::test]
async fn a_reply_comes_back_with_status_headers_body_and_time() {
    let (url, server) = server(|stream| {
        let request = read_request(stream);
        write(stream, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\nContent-Length: 5\r\n\r\nhello");
        request
    });
    let before = SystemTime::now();
    let reply = sender(PATIENT).send(request(&url), Instant::now()).await.expect("a reply");
    assert_eq!(reply.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(reply.headers["retry-after"], "7");
    assert_eq!(&reply.body[..], b"hello");
    assert!(before <= reply.received_at && reply.received_at <= SystemTime::now());

    let (seen, _) = join(server).await;
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
    sender(PATIENT).send(request, Instant::now()).await.expect("a reply");
    assert!(join(server).await.0.contains("user-agent: other\r\n"));
}

#[tokio::test]
async fn a_redirect_is_returned_and_not_followed() {
    let (url, server) = server(|stream| {
        read_request(stream);
        let here = stream.local_addr().expect("an address");
        let head = format!("HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{here}/\r\n");
        write(stream, &format!("{head}Connection: close\r\nContent-Length: 0\r\n\r\n"));
    });
    let reply = sender(PATIENT).send(request(&url), Instant::now()).await.expect("a reply");
    assert_eq!(reply.status, StatusCode::TEMPORARY_REDIRECT);
    assert!(reply.headers.contains_key(LOCATION));
    assert!(!another_connection(&join(server).await.1));
}

#[tokio::test]
async fn a_server_that_never_answers_is_a_timeout() {
    let (url, server) = server(wait_for_answer_in_vain);
    let failure = failure(HASTY, &url).await;
    assert_eq!(failure, Failure::new(Outage::Timeout, "not complete within 1s".to_owned()));
    join(server).await;
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
        // The server sends a byte every 5 ms until the client has gone. Each read makes progress, but the whole does not end.
        stream.set_read_timeout(Some(Duration::from_millis(5))).expect("a read timeout");
        while stream.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            && stream.write_all(b"x").is_ok()
        {}
    });
    let failure = failure(HASTY, &url).await;
    assert_eq!(failure.outage, Outage::Timeout);
    assert_eq!(failure.text, "body of a reply with status 200: not complete within 1s");
    join(server).await;
}

#[tokio::test]
async fn a_connection_closed_before_the_reply_is_a_reset() {
    let (url, server) = server(|stream| {
        read_request(stream);
    });
    assert_eq!(failure(PATIENT, &url).await.outage, Outage::Reset);
    join(server).await;
}

#[tokio::test]
async fn a_connection_reset_before_the_reply_is_a_reset() {
    let (url, server) = server(|stream| {
        // Closing with unread data makes the kernel answer with RST.
        stream.peek(&mut [0]).expect("a request begins");
    });
    assert_eq!(failure(PATIENT, &url).await.outage, Outage::Reset);
    join(server).await;
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
        join(server).await;
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
    sender.send(request(&url), Instant::now()).await.expect("the first reply");
    let failure = sender.send(request(&url), Instant::now()).await.expect_err("no second reply");
    assert_eq!(failure.outage, Outage::Reset, "{failure:?}");
    assert!(!another_connection(&join(server).await.1));
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
        join(server).await;
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
    join(server).await;
}

#[tokio::test]
async fn a_refused_connection_is_recognized() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let failure = failure(PATIENT, &url).await;
    assert_eq!(failure.outage, Outage::Connect);
    assert!(failure.text.contains("refused"), "{failure:?}");
}

#[tokio::test]
async fn tls_that_the_server_does_not_speak_is_recognized() {
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
        join(server).await;
    }
}

#[tokio::test]
async fn a_handshake_without_an_end_is_a_failure_to_connect() {
    let (url, server) = server(|stream| drop(stream.read_to_end(&mut Vec::new())));
    let failure = failure(HASTY, &url.replace("http:", "https:")).await;
    assert_eq!(failure, Failure::new(Outage::Connect, "no connection within 500ms".to_owned()));
    join(server).await;
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_is_a_failure_and_not_a_panic() {
    let failure = failure(PATIENT, "ftp://127.0.0.1").await;
    assert!(matches!(failure.outage, Outage::Connect | Outage::Protocol), "{failure:?}");
    let request = Request::get("/no-host?marked=query").body(Bytes::new()).expect("a valid request");
    let failure = sender(PATIENT).send(request, Instant::now()).await.expect_err("no host");
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

/// Acts as SIGSTOP does: no task of the process runs, and the clock goes on.
fn stop_the_process(time: Duration) {
    thread::sleep(time);
}

#[tokio::test]
async fn a_process_that_was_stopped_before_it_connected_sends_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let decided = Instant::now();
    stop_the_process(HASTY * 2);
    let failure = sender(HASTY).send(request(&url), decided).await.expect_err("too late");
    assert_eq!(failure.outage, Outage::Timeout);
    assert!(!another_connection(&listener), "it has connected");
}

#[tokio::test]
async fn a_process_that_was_stopped_while_it_connected_sends_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let sender = sender(HASTY);
    let mut sent = std::pin::pin!(sender.send(request(&url), Instant::now()));
    tokio::select! {
        biased;
        _ = &mut sent => panic!("no server has answered"),
        () = std::future::ready(()) => stop_the_process(HASTY * 2),
    }
    sent.await.expect_err("too late");
    // hyper connects and writes in tasks of its own. They have their turn before the connection counts as unused.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(HASTY)).expect("a socket");
        stream.read(&mut [0; 64]).unwrap_or(0)
    });
    assert_eq!(join(server).await, 0, "bytes of the request have come");
}
