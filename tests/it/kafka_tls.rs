//! TLS, mutual TLS and passwords to Kafka: the worker names a mistake plainly, and correct settings work on a real broker.
//!
//! `SLUICEGATE_TEST_KAFKA` names a script that starts a real broker (`start PORT`, `configs PORT ...`, `wipe PORT`).
//! Without it, the test that needs one is skipped.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sluicegate::testbed::simulator::Kind;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use crate::certificates::Authority;
use crate::support::{Process, QUICK, World, one_event_each, until, without_limits};

/// A part of every password of these tests.
const SECRET: &str = "MARKED";

/// Returns the output of `check --online`.
async fn check(yaml: &str) -> String {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), yaml).expect("written");
    let output = tokio::task::spawn_blocking(move || {
        Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .arg("-c")
            .arg(file.path())
            .args(["check", "--online"])
            .stdin(Stdio::null())
            .output()
            .expect("the binary starts")
    });
    let output = output.await.expect("no panic");
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn yaml(world: &World, brokers: &str, properties: &str) -> String {
    let block = world.block("vibefollow", Kind::Vibefollow, &format!("batch: {{ linger: 0s }}, {QUICK}"));
    let yaml = world.yaml(&block, &format!("group.protocol: consumer, {properties}"), "5s");
    yaml.replace(&format!("brokers: {}", world.brokers), &format!("brokers: {brokers}"))
}

/// Asserts that `check --online` and the worker's log both say `why` and show no password, and that the worker goes on.
async fn is_said_plainly(what: &str, yaml: &str, why: &str) {
    let mut worker = Process::start(yaml, &[]);
    let text = check(yaml).await;
    assert!(text.contains("WRONG brokers: no answer from") && text.contains(why), "{what}: {text}");
    assert!(text.contains("TLS and credentials in kafka.properties"), "{what}: {text}");
    worker.wait_log(why).await;
    assert!(worker.is_running(), "{what}: {}", worker.log());
    let (_, status) = worker.get("/status").await;
    for shown in [text, worker.log(), status] {
        assert!(!shown.contains(SECRET), "{what}: {shown}");
    }
    worker.signal("TERM");
    assert_eq!(worker.exit(Duration::from_secs(20)).await, 0, "{what}: {}", worker.log());
}

/// Starts a listener that completes TLS handshakes as a broker would, and sends nothing more.
async fn tls_listener(server: Arc<ServerConfig>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let acceptor = TlsAcceptor::from(server);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    drop(stream);
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_without_tls_spoken_to_with_tls_is_said_plainly() {
    let world = World::start(1, without_limits()).await;
    let yaml = yaml(&world, &world.brokers, "security.protocol: ssl");
    // Kafka closes such a connection, and the mock cluster resets it. The worker reports the cause in either case.
    is_said_plainly("tls to plaintext", &yaml, "SSL_HANDSHAKE").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_of_an_unknown_authority_is_refused_and_said_plainly() {
    let world = World::start(1, without_limits()).await;
    let (theirs, ours) = (Authority::new(), Authority::new());
    let broker = tls_listener(theirs.server(false)).await.to_string();
    let unknown = yaml(&world, &broker, "security.protocol: ssl");
    is_said_plainly("no authority", &unknown, "certificate verify failed").await;
    let wrong = format!(
        "security.protocol: sasl_ssl, sasl.mechanism: PLAIN, sasl.username: worker, sasl.password: MARKED-password, \
         ssl.ca.location: {}",
        ours.ca_file().display()
    );
    let wrong = yaml(&world, &broker, &wrong);
    is_said_plainly("another authority", &wrong, "certificate verify failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_with_tls_spoken_to_without_is_said_plainly() {
    let world = World::start(1, without_limits()).await;
    let broker = tls_listener(Authority::new().server(false)).await.to_string();
    is_said_plainly("plaintext to tls", &yaml(&world, &broker, "client.id: it"), "security.protocol").await;
}

/// A real broker with four listeners. Dropping this deletes its data.
struct Kafka {
    script: PathBuf,
    folder: tempfile::TempDir,
    port: u16,
}

impl Kafka {
    /// Starts the broker with TLS by this authority, and with this password of `worker` for PLAIN and SCRAM.
    fn start(script: PathBuf, authority: &Authority, password: &str) -> Kafka {
        let broker = authority.issue(&["localhost", "127.0.0.1"]);
        let keystore = authority.file("broker.pem", &format!("{}{}", broker.key, broker.cert));
        let kafka = Kafka { script, folder: tempfile::tempdir().expect("a folder"), port: free_ports() };
        let [plain, controller, tls, sasl] = [0, 1, 2, 3].map(|n| kafka.port + n);
        let doors = format!(
            "PLAINTEXT://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller},SSL://127.0.0.1:{tls},SASL_SSL://127.0.0.1:{sasl}"
        );
        let login = "org.apache.kafka.common.security";
        // The script separates lines by semicolons, so the semicolon that ends a login module's line is written as its
        // code.
        let extra = [
            format!("listeners={doors}"),
            format!("advertised.listeners={doors}"),
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SSL:SSL,SASL_SSL:SASL_SSL"
                .to_owned(),
            "ssl.keystore.type=PEM".to_owned(),
            format!("ssl.keystore.location={}", keystore.display()),
            "ssl.truststore.type=PEM".to_owned(),
            format!("ssl.truststore.location={}", authority.ca_file().display()),
            "listener.name.ssl.ssl.client.auth=required".to_owned(),
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512".to_owned(),
            format!(
                "listener.name.sasl_ssl.plain.sasl.jaas.config={login}.plain.PlainLoginModule required user_worker=\"{password}\"\\u003b"
            ),
            format!(
                "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={login}.scram.ScramLoginModule required\\u003b"
            ),
        ];
        // The script waits for a minute, and a loaded machine takes longer. A second call accepts a broker that runs.
        if !kafka.is_done(&["start"], &extra.join(";")) {
            kafka.run(&["start"]);
        }
        let scram = format!("SCRAM-SHA-512=[password={password}]");
        let alter = ["--alter", "--add-config", &scram, "--entity-type", "users", "--entity-name", "worker"];
        kafka.run(&[&["configs"], &alter[..]].concat());
        kafka
    }

    fn run(&self, arguments: &[&str]) {
        assert!(self.is_done(arguments, ""), "{arguments:?} failed; the log is in {}", self.folder.path().display());
    }

    fn is_done(&self, arguments: &[&str], extra: &str) -> bool {
        let status = Command::new(&self.script)
            .arg(arguments[0])
            .arg(self.port.to_string())
            .args(&arguments[1..])
            .env("KAFKA_HOME_DIR", self.folder.path())
            .env("KAFKA_EXTRA", extra)
            .stdin(Stdio::null())
            // The broker inherits the streams, and a pipe would stay open as long as the broker runs.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("the script runs");
        status.success()
    }

    fn door(&self, n: u16) -> String {
        format!("127.0.0.1:{}", self.port + n)
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let _ = Command::new(&self.script)
            .args(["wipe", &self.port.to_string()])
            .env("KAFKA_HOME_DIR", self.folder.path())
            .stdin(Stdio::null())
            .status();
    }
}

/// Returns the first of four ports in a row on which no program listens.
fn free_ports() -> u16 {
    // The ports are below those that systems assign by themselves (32,768 and up on Linux), so that no client takes one
    // before Kafka does. They are above those of `kafka_faults::own_kafka`.
    let first = 31_000 + (std::process::id() % 150) as u16 * 10;
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (first..32_700).step_by(10).find(|first| (*first..first + 4).all(is_free)).expect("four free ports")
}

/// Asserts that `check --online` and the worker both reach the broker in this way, the `n`th, and show no password.
async fn is_reached(world: &mut World, n: usize, way: &str, yaml: &str) {
    let text = check(yaml).await;
    assert!(text.contains("ok    brokers: 1 answered") && !text.contains("WRONG"), "{way}: {text}");
    let yaml = yaml.replace("log: { format: text }", "log: { format: text, level: debug }");
    let mut process = Process::start(&yaml, &[]);
    world.produce_all(one_event_each(n * 5..n * 5 + 5)).await;
    world.produce("broken", "no JSON").await;
    world.wait_committed("vibefollow").await;
    assert_eq!(world.dead_letters("vibefollow").len(), n + 1, "{way}: the producer gets through as well");
    assert_eq!(world.wrong_state(Kind::Vibefollow), Vec::<String>::new(), "{way}");
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(20)).await, 0, "{way}: {}", process.log());
    assert!(process.log().contains("DEBUG") && !process.log().contains(SECRET), "{way}");
    assert!(!text.contains(SECRET), "{way}: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_broker_is_reached_by_mutual_tls_and_by_passwords_and_refusals_are_said_plainly() {
    let Some(script) = std::env::var_os("SLUICEGATE_TEST_KAFKA").map(PathBuf::from) else {
        eprintln!("skipped: SLUICEGATE_TEST_KAFKA names no script that starts a broker");
        return;
    };
    let authority = Authority::new();
    let password = "MARKED-pass word";
    let kafka = {
        let (password, kept) = (password.to_owned(), &authority);
        tokio::task::block_in_place(|| Kafka::start(script, kept, &password))
    };
    let mut world = World::start_on(Some(kafka.door(0)), 2, without_limits()).await;
    let worker = authority.issue(&["worker"]);
    let cert = authority.file("worker.crt", &worker.cert);
    let key = authority.file("worker.key", &worker.key);
    let password_file = authority.file("password", &format!("{password}\n"));
    let trusted = format!("ssl.ca.location: {}, debug: \"security,broker,protocol\"", authority.ca_file().display());
    let mutual = format!(
        "security.protocol: ssl, {trusted}, ssl.certificate.location: {}, ssl.key.location: {}",
        cert.display(),
        key.display()
    );
    let sasl = |mechanism: &str| {
        format!("security.protocol: sasl_ssl, {trusted}, sasl.mechanism: {mechanism}, sasl.username: worker")
    };
    let in_file =
        |yaml: String| yaml.replace("kafka:\n", &format!("kafka:\n  password_file: {}\n", password_file.display()));
    let ways = [
        ("mutual TLS", yaml(&world, &kafka.door(2), &mutual)),
        ("PLAIN", yaml(&world, &kafka.door(3), &format!("{}, sasl.password: \"{password}\"", sasl("PLAIN")))),
        ("SCRAM", in_file(yaml(&world, &kafka.door(3), &sasl("SCRAM-SHA-512")))),
    ];
    for (n, (way, yaml)) in ways.iter().enumerate() {
        is_reached(&mut world, n, way, yaml).await;
    }
    let refused = [
        ("no certificate", yaml(&world, &kafka.door(2), &format!("security.protocol: ssl, {trusted}")), "SSL"),
        (
            "a wrong password",
            yaml(&world, &kafka.door(3), &format!("{}, sasl.password: MARKED-wrong", sasl("PLAIN"))),
            "Authentication failed",
        ),
        (
            "a wrong SCRAM password",
            yaml(&world, &kafka.door(3), &format!("{}, sasl.password: MARKED-wrong", sasl("SCRAM-SHA-512"))),
            "Authentication failed",
        ),
    ];
    for (what, yaml, why) in &refused {
        is_said_plainly(what, yaml, why).await;
    }
    until("nothing more has come", async || world.simulator.provider(Kind::Vibefollow).users().len() == 15).await;
}
