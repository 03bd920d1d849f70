//! The meaning of replies: encoded, in another form, from an edge, unreadable, or sent without a look at the request.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::json;
use sluicegate::testbed::simulator::Kind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Behind, ONE_BY_ONE, QUICK, all_delivered, event, lane_metric, retries, roomy, round};
use crate::certificates::Authority;
use crate::proxy::{Dress, Fault};
use crate::support::{Worker, World, until};

/// Every provider in each of its modes that has its own kind of reply.
const MODES: [[(Kind, &str); 3]; 2] = [
    [(Kind::Vitally, "batch"), (Kind::Vibefollow, "single"), (Kind::Userpilot, "single")],
    [(Kind::Vitally, "single"), (Kind::Vibefollow, "bulk"), (Kind::Userpilot, "bulk_json")],
];

/// Delivers rows while every reply has one of these forms. Asserts that all rows arrive and that no reply counts as a
/// failure.
async fn dressed_replies_are_understood(dresses: &[Dress]) {
    for modes in MODES {
        let mut behind = Behind::start(1).await;
        let blocks = modes.map(|(kind, mode)| behind.block(kind, &format!("mode: {mode}, {QUICK}")));
        let worker = Worker::start(&behind.world.config(&blocks.concat())).await;
        for (version, dress) in (1..).zip(dresses) {
            behind.set(&Fault::Dress(*dress));
            behind.world.produce_all(round(10, version)).await;
            for (kind, _) in modes {
                all_delivered(&behind.world, &worker, kind).await;
            }
        }
        for (kind, mode) in modes {
            for reason in ["protocol", "edge", "unreadable_success", "reset"] {
                assert_eq!(retries(&worker, kind.name(), reason).await, 0.0, "{kind:?} {mode}: {reason}");
            }
            for request in behind.proxy(kind).seen() {
                assert_eq!(request.header("accept-encoding"), Some("identity"), "{kind:?} {mode}");
            }
        }
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_that_are_coded_without_a_request_for_it_are_read() {
    dressed_replies_are_understood(&[Dress::Gzip, Dress::Deflate, Dress::Zstd]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_documented_body_is_a_success_under_any_status_of_its_class_and_beside_anything() {
    dressed_replies_are_understood(&[Dress::Surplus]).await;
}

/// Returns nginx's own page for a bad request, which is not the provider's verdict on any row.
fn nginx(status: &str) -> Fault {
    let page = format!(
        "<html>\r\n<head><title>{status}</title></head>\r\n<body>\r\n<center><h1>{status}</h1></center>\r\n\
         <hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    );
    let head = format!("Server: nginx\r\nContent-Type: text/html\r\nContent-Length: {}", page.len());
    Fault::Answer(format!("HTTP/1.1 {status}\r\n{head}\r\n\r\n{page}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_an_edge_refuse_no_row_and_all_is_delivered_when_they_end() {
    let mut behind = Behind::start(2).await;
    let settings = QUICK.replace("max: 500ms", "max: 50ms");
    let worker = Worker::start(&behind.world.config(&behind.blocks(&settings))).await;
    for (version, status) in (1..).zip(["400 Bad Request", "422 Unprocessable Entity", "403 Forbidden", "409 Conflict"])
    {
        let before = behind.proxies.each_ref().map(|proxy| proxy.counts().requests);
        behind.set(&nginx(status));
        behind.world.produce_all(round(20, version)).await;
        for (proxy, before) in behind.proxies.iter().zip(before) {
            until("it is tried again and again", async || proxy.counts().requests >= before + 30).await;
        }
        for kind in Kind::ALL {
            assert!(retries(&worker, kind.name(), "edge").await > 0.0, "{kind:?}: {status}");
            assert_eq!(
                lane_metric(&worker, "sluicegate_dead_letters_total", kind.name()).await,
                0.0,
                "{kind:?}: {status}"
            );
        }
        behind.set(&Fault::None);
        behind.all_well(&worker).await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_firewall_that_blocks_one_body_does_not_keep_the_other_users_back() {
    let mut behind = Behind::start(1).await;
    let Fault::Answer(answer) = nginx("403 Forbidden") else { unreachable!("it is an answer") };
    behind.set(&Fault::Block { words: "<script>", answer });
    let settings = QUICK.replace("max: 500ms", "max: 50ms");
    let worker = Worker::start(&behind.world.config(&behind.blocks(&settings))).await;
    let more = |user: u64| if user == 3 { json!({ "bio": "<script>" }) } else { json!({}) };
    behind.world.produce_all((0..40).map(|user| event(&format!("user-{user}"), 1, more(user)))).await;
    for kind in Kind::ALL {
        let provider = behind.world.simulator.provider(kind);
        until(&format!("{kind:?}: the others arrive"), async || provider.summary().user_count == 39).await;
        assert!(!provider.users().contains_key("user-3"), "{kind:?}");
    }
    worker.stop().await;
}

/// Returns a success whose gzip stream is damaged.
fn damaged_success() -> Fault {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(br#"{"message":"Success.","data":{"accepted":true}}"#).expect("memory");
    let coded = encoder.finish().expect("memory");
    // A fault's answer is text, so it keeps only the printable bytes of the stream. The magic number is lost.
    let text: String = coded.iter().filter(|byte| byte.is_ascii_graphic()).map(|byte| char::from(*byte)).collect();
    Fault::Answer(format!("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n{text}", text.len()))
}

#[tokio::test(flavor = "multi_thread")]
async fn successes_that_cannot_be_read_are_not_believed_and_cost_no_row() {
    let mut behind = Behind::start(2).await;
    let settings = QUICK.replace("max: 500ms", "max: 50ms");
    let worker = Worker::start(&behind.world.config(&behind.blocks(&settings))).await;
    let nothing =
        Fault::Answer("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>".to_owned());
    for (version, reply) in (1..).zip([damaged_success(), nothing]) {
        behind.set(&reply);
        behind.world.produce_all(round(20, version)).await;
        for kind in Kind::ALL {
            let id = kind.name();
            let tried = retries(&worker, id, "unreadable_success").await;
            until("it is tried again", async || retries(&worker, id, "unreadable_success").await >= tried + 3.0).await;
            assert_eq!(lane_metric(&worker, "sluicegate_dead_letters_total", id).await, 0.0, "{id}");
        }
        behind.set(&Fault::None);
        behind.all_well(&worker).await;
    }
    worker.stop().await;
}

/// Starts a server that closes the next `to_give_back` connections as HTTP/2 does. Each of them gets a GOAWAY that
/// names none of its requests as processed. The server passes the other connections on to the simulator.
async fn front(authority: &Authority, to_give_back: Arc<AtomicU32>, behind: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let mut server = (*authority.server(false)).clone();
    server.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(server));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, to_give_back) = (acceptor.clone(), Arc::clone(&to_give_back));
            tokio::spawn(async move {
                // A client that hangs up is not the server's concern.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let left = to_give_back.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
                if left.is_ok() {
                    let _ = give_back(&mut stream).await;
                } else if let Ok(mut provider) = TcpStream::connect(behind).await {
                    let _ = tokio::io::copy_bidirectional(&mut stream, &mut provider).await;
                }
            });
        }
    });
    address
}

/// Reads the client's preface, sends empty settings, reads frames until a request has begun, and sends the GOAWAY (RFC
/// 9113, section 6.8).
async fn give_back(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    const HEADERS: u8 = 1;
    stream.read_exact(&mut [0; 24]).await?;
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await?;
    let mut head = [0; 9];
    while head[3] != HEADERS {
        stream.read_exact(&mut head).await?;
        let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
        stream.read_exact(&mut payload).await?;
    }
    stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).await?;
    stream.shutdown().await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_a_closing_connection_never_looked_at_go_out_again_at_once() {
    let mut world = World::start(1, roomy()).await;
    let authority = Authority::new();
    let to_give_back = Arc::new(AtomicU32::new(3));
    let front = front(&authority, Arc::clone(&to_give_back), world.simulator.addr()).await;
    // A lane that took these for an outage would wait far beyond the test's deadline.
    let settings = ONE_BY_ONE.replace("initial: 50ms, max: 500ms", "initial: 10m, max: 10m");
    let tls = format!("tls: {{ ca_file: {} }}", authority.ca_file().display());
    let block = world.block("vibefollow", Kind::Vibefollow, &format!("{settings}, {tls}"));
    let block = block.replace(&world.simulator.base_url(), &format!("https://{front}"));
    let worker = Worker::start(&world.config(&block)).await;
    world.produce_all((0..10).map(|user| event(&format!("user-{user}"), 1, json!({})))).await;
    all_delivered(&world, &worker, Kind::Vibefollow).await;
    assert_eq!(to_give_back.load(Ordering::SeqCst), 0);
    assert_eq!(retries(&worker, "vibefollow", "untouched").await, 3.0);
    assert_eq!(retries(&worker, "vibefollow", "reset").await, 0.0);
    assert_eq!(super::last_error(&worker, "vibefollow").await, "");
    worker.stop().await;
}
