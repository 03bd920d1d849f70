//! TLS from the worker to a provider, with a company's own certificate authority and with certificates for both sides.

use std::net::SocketAddr;
use std::sync::Arc;

use sluicegate::testbed::simulator::Kind;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::certificates::Authority;
use crate::support::{QUICK, Worker, World, one_event_each, until, without_limits};

/// Starts a server that ends TLS and passes everything on to the simulator.
async fn front(server: Arc<ServerConfig>, behind: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let acceptor = TlsAcceptor::from(server);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // A client that hangs up is not the server's concern.
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                let mut behind = TcpStream::connect(behind).await.expect("the simulator listens");
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
            });
        }
    });
    address
}

fn block(world: &World, kind: Kind, front: SocketAddr, tls: &str) -> String {
    let block = world.block(kind.name(), kind, &format!("batch: {{ linger: 0s }}, {QUICK}, tls: {{ {tls} }}"));
    block.replace(&world.simulator.base_url(), &format!("https://{front}"))
}

/// Asserts that the events stay in the topic while the provider refuses the connection, and are delivered once the
/// files are right.
async fn refused_then_delivered(kind: Kind, clients: bool) {
    let mut world = World::start(1, without_limits()).await;
    let (ours, other) = (Authority::new(), Authority::new());
    let front = front(ours.server(clients), world.simulator.addr()).await;
    let (ca, other_ca) = (ours.ca_file().display().to_string(), other.ca_file().display().to_string());
    let pair = |authority: &Authority, name: &str| {
        let pair = authority.issue(&["worker"]);
        let cert = authority.file(&format!("{name}.crt"), &pair.cert);
        let key = authority.file(&format!("{name}.key"), &pair.key);
        format!("cert_file: {}, key_file: {}", cert.display(), key.display())
    };
    let (good, bad) = if clients {
        let bad = vec![format!("ca_file: {ca}"), format!("ca_file: {ca}, {}", pair(&other, "stranger"))];
        (format!("ca_file: {ca}, {}", pair(&ours, "worker")), bad)
    } else {
        (format!("ca_file: {ca}"), vec![String::new(), format!("ca_file: {other_ca}")])
    };
    world.produce_all(one_event_each(0..5)).await;
    for tls in bad {
        let worker = Worker::start(&world.config(&block(&world, kind, front, &tls))).await;
        let lane = format!("destination=\"{}\"", kind.name());
        until("the lane is refused twice", async || worker.metric("sluicegate_retries_total", &[&lane]).await >= 2.0)
            .await;
        assert_eq!(worker.state(kind.name()).await, "backing_off", "{tls}");
        let (_, status) = worker.get("/status").await;
        // A client that is refused after its handshake sees only an alert or the end of the connection.
        assert!(clients || status.contains("tls: ") && status.contains("UnknownIssuer"), "{tls}: {status}");
        worker.stop().await;
        assert_eq!(world.simulator.provider(kind).summary().counters.requests, 0, "{tls}");
        assert_eq!((world.committed(kind.name()).0, world.dead_letters(kind.name()).len()), (0, 0), "{tls}");
    }
    let worker = Worker::start(&world.config(&block(&world, kind, front, &good))).await;
    world.wait_committed(kind.name()).await;
    world.produce("fresh", r#"{"userId":"fresh","traits":{"company":{"id":"acme"}}}"#).await;
    world.wait_committed(kind.name()).await;
    assert_eq!(world.wrong_state(kind), Vec::<String>::new());
    let summary = world.simulator.provider(kind).summary();
    assert_eq!((summary.user_count, summary.counters.regressions), (6, 0));
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    assert!(world.dead_letters(kind.name()).is_empty());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_of_ones_own_is_trusted_when_it_is_named_and_not_before() {
    refused_then_delivered(Kind::Vibefollow, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_asks_for_a_certificate_is_shown_the_configured_one() {
    refused_then_delivered(Kind::Vitally, true).await;
}
