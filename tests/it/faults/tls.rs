//! TLS to a provider: certificates that are expired, from an unknown authority or for another host, and HTTP/2.
//!
//! A provider offers HTTP/2 over TLS.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use sluicegate::testbed::simulator::Kind;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{QUICK, event, roomy, round};
use crate::proxy::{Fault, Proxy};
use crate::support::{Process, World, metric, until};

/// A certificate authority of a test.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A flaw of a certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    Expired,
    OtherName,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Returns the TLS configuration of a server at 127.0.0.1, with HTTP/2 first if it is to offer that.
    fn server(&self, flaw: Flaw, offers_http2: bool) -> Arc<ServerConfig> {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = if flaw == Flaw::Expired { date_time_ymd(2021, 1, 1) } else { date_time_ymd(2120, 1, 1) };
        let last = if flaw == Flaw::OtherName { 2 } else { 1 };
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))));
        let key = KeyPair::generate().expect("a key");
        let certificate: CertificateDer<'static> =
            params.signed_by(&key, &self.issuer).expect("a certificate").der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a key that fits");
        if offers_http2 {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        Arc::new(config)
    }
}

/// A server that ends TLS in front of a simulator. A test can replace its certificate while it runs.
struct Terminator {
    address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    door: JoinHandle<()>,
}

impl Terminator {
    async fn start(upstream: SocketAddr, config: Arc<ServerConfig>) -> Terminator {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let config = Arc::new(Mutex::new(config));
        let current = Arc::clone(&config);
        let door = tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { continue };
                let config = Arc::clone(&current.lock().unwrap_or_else(PoisonError::into_inner));
                tokio::spawn(async move {
                    // A client that refuses the certificate ends the handshake, which these tests are about.
                    let Ok(mut client) = TlsAcceptor::from(config).accept(client).await else { return };
                    let Ok(mut provider) = TcpStream::connect(upstream).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut provider).await;
                });
            }
        });
        Terminator { address, config, door }
    }

    fn set(&self, config: Arc<ServerConfig>) {
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
    }
}

impl Drop for Terminator {
    fn drop(&mut self) {
        self.door.abort();
    }
}

/// Starts the lanes of all three providers in a process that trusts only this authority.
fn start(world: &World, to: SocketAddr, authority: &Authority, settings: &str) -> (Process, tempfile::NamedTempFile) {
    let mut roots = tempfile::NamedTempFile::new().expect("a file");
    roots.write_all(authority.pem.as_bytes()).expect("written");
    let block = |kind: Kind| {
        let mode = if kind == Kind::Userpilot { "mode: single, " } else { "" };
        let block = world.block(kind.name(), kind, &format!("{mode}{settings}"));
        block.replace(&world.simulator.base_url(), &format!("https://{to}"))
    };
    let yaml = world.yaml(&Kind::ALL.map(block).concat(), "group.protocol: consumer", "5s");
    let path = roots.path().to_str().expect("a path in UTF-8");
    // `SSL_CERT_DIR` names a file, so the folder of certificates is empty.
    (Process::start_with(&yaml, &[], &[("SSL_CERT_FILE", path), ("SSL_CERT_DIR", path)]), roots)
}

async fn lane(process: &mut Process, kind: Kind) -> serde_json::Value {
    let status: serde_json::Value = serde_json::from_str(&process.get("/status").await.1).expect("JSON");
    let lanes = status["lanes"].as_array().expect("lanes");
    lanes.iter().find(|lane| lane["destination"] == kind.name()).expect("the lane").clone()
}

async fn wait_retries(process: &mut Process, kind: Kind, reason: &str, least: f64) {
    let labels = [format!("destination=\"{}\"", kind.name()), format!("reason=\"{reason}\"")];
    let deadline = std::time::Instant::now() + crate::support::DEADLINE;
    loop {
        let text = process.get("/metrics").await.1;
        if metric(&text, "sluicegate_retries_total", &[&labels[0], &labels[1]]) >= least {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{kind:?}: no {least} retries for {reason}\n{}", process.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}

async fn all_arrived(world: &mut World, process: &mut Process) {
    world.produce_all([event("fresh", 1, serde_json::json!({}))]).await;
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
        assert_eq!(world.wrong_state(kind), Vec::<String>::new(), "{kind:?}");
        assert_eq!(world.simulator.provider(kind).summary().counters.regressions, 0, "{kind:?}");
        assert!(world.dead_letters(kind.name()).is_empty(), "{kind:?}");
    }
    assert_eq!(metric(&process.get("/metrics").await.1, "sluicegate_ledger_difference", &[]), 0.0);
    process.signal("TERM");
    assert_eq!(process.exit(std::time::Duration::from_secs(15)).await, 0, "{}", process.log());
}

/// Shows the lanes this certificate, and asserts that `/status` and the log say what is wrong. Then replaces it, and
/// the lanes go on.
async fn a_bad_certificate(bad: impl Fn(&Authority) -> Arc<ServerConfig>, says: &str) {
    let authority = Authority::new("the one that is trusted");
    let mut world = World::start(2, roomy()).await;
    let server = Terminator::start(world.simulator.addr(), bad(&authority)).await;
    let (mut process, _roots) = start(&world, server.address, &authority, QUICK);
    world.produce_all(round(20, 1)).await;
    for kind in Kind::ALL {
        wait_retries(&mut process, kind, "tls", 3.0).await;
        let lane = lane(&mut process, kind).await;
        assert_eq!(lane["state"], "backing_off", "{kind:?}");
        let error = lane["last_error"]["what"].as_str().expect("an error").to_owned();
        assert!(error.starts_with("tls: ") && error.contains(says), "{kind:?}: {error}");
        assert_eq!(world.committed(kind.name()).0, 0, "{kind:?}");
        assert_eq!(world.simulator.provider(kind).summary().counters.requests, 0, "{kind:?}: nothing was sent");
        process.wait_log(&format!("destination={}", kind.name())).await;
    }
    let log = process.log();
    for kind in Kind::ALL {
        let says_why = log.lines().any(|line| {
            line.contains("backing_off") && line.contains(kind.name()) && line.contains("tls: ") && line.contains(says)
        });
        assert!(says_why, "{kind:?}: the log does not say why\n{log}");
    }
    server.set(authority.server(Flaw::None, false));
    world.produce_all(round(20, 2)).await;
    all_arrived(&mut world, &mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_named_and_what_waited_is_delivered_when_it_is_renewed() {
    a_bad_certificate(|trusted| trusted.server(Flaw::Expired, false), "expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_an_unknown_authority_is_named_and_what_waited_is_delivered_when_it_is_replaced() {
    let unknown = Authority::new("one that no client knows");
    a_bad_certificate(|_| unknown.server(Flaw::None, false), "UnknownIssuer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_host_is_named_and_what_waited_is_delivered_when_it_is_replaced() {
    a_bad_certificate(|trusted| trusted.server(Flaw::OtherName, false), "not valid for name").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_root_certificate_the_worker_ends_at_once_and_says_what_to_install() {
    let world = World::start(1, roomy()).await;
    let nothing = tempfile::NamedTempFile::new().expect("a file");
    let path = nothing.path().to_str().expect("a path in UTF-8");
    let yaml = world.yaml(&world.block("vitally", Kind::Vitally, QUICK), "group.protocol: consumer", "5s");
    let mut process = Process::start_with(&yaml, &[], &[("SSL_CERT_FILE", path), ("SSL_CERT_DIR", path)]);
    let code = process.exit(std::time::Duration::from_secs(15)).await;
    let log = process.log();
    assert_eq!(code, 78, "{log}");
    assert!(log.contains("ca-certificates") && log.contains("SSL_CERT_FILE"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http2_connections_that_are_dead_without_a_word_are_replaced() {
    let authority = Authority::new("the one that is trusted");
    let mut world = World::start(2, roomy()).await;
    let server = Terminator::start(world.simulator.addr(), authority.server(Flaw::None, true)).await;
    let proxy = Proxy::raw(server.address).await;
    let settings = QUICK.replace("timeout: 5s", "timeout: 1s");
    let (mut process, _roots) = start(&world, proxy.address(), &authority, &settings);
    world.produce_all(round(20, 1)).await;
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
    }
    // HTTP/2 sends many requests over one connection.
    let requests: u64 = Kind::ALL.iter().map(|kind| world.simulator.provider(*kind).summary().counters.requests).sum();
    assert!(requests > 20, "{requests} requests");
    until("each lane keeps one connection", async || proxy.counts().open <= 3).await;
    for version in [10, 20] {
        let before = proxy.counts().connections;
        world.produce_all(round(20, version)).await;
        proxy.freeze();
        world.produce_all(round(20, version + 1)).await;
        for kind in Kind::ALL {
            until(&format!("{kind:?} gets through again"), async || {
                world.simulator.provider(kind).users().values().all(|user| {
                    [&user["traits"], &user["metadata"]].iter().any(|traits| traits["version"] == version + 1)
                })
            })
            .await;
        }
        assert!(proxy.counts().connections > before, "{:?}", proxy.counts());
        world.produce_all(round(20, version + 2)).await;
    }
    all_arrived(&mut world, &mut process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_never_ends_is_no_connection_and_is_tried_again() {
    let authority = Authority::new("the one that is trusted");
    let mut world = World::start(2, roomy()).await;
    let server = Terminator::start(world.simulator.addr(), authority.server(Flaw::None, true)).await;
    let proxy = Proxy::raw(server.address).await;
    proxy.set(Fault::BlackHole);
    let (mut process, _roots) =
        start(&world, proxy.address(), &authority, &QUICK.replace("timeout: 5s", "timeout: 2s"));
    world.produce_all(round(20, 1)).await;
    for kind in Kind::ALL {
        wait_retries(&mut process, kind, "connect", 2.0).await;
        let lane = lane(&mut process, kind).await;
        assert_eq!(lane["last_error"]["what"], "connect: no connection within 1s", "{kind:?}");
    }
    proxy.set(Fault::None);
    all_arrived(&mut world, &mut process).await;
}
