//! Kafka clients as operators see them: few log lines in an outage, refusals of one lane, authorities, names, passwords.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sluicegate::testbed::simulator::Kind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::certificates::Authority;
use crate::support::{DEADLINE, Process, QUICK, World, metric, one_event_each, without_limits};

fn block(world: &World, id: &str, kind: Kind) -> String {
    world.block(id, kind, &format!("batch: {{ linger: 0s }}, {QUICK}"))
}

async fn wait_state(process: &mut Process, id: &str, state: &str) {
    let deadline = Instant::now() + DEADLINE;
    let labels = [format!("destination=\"{id}\""), format!("state=\"{state}\"")];
    let labels = labels.each_ref().map(String::as_str);
    loop {
        let (_, text) = process.get("/metrics").await;
        if metric(&text, "sluicegate_lane_state", &labels) == 1.0 {
            return;
        }
        assert!(Instant::now() < deadline, "{id} is not {state}\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn end(mut process: Process) {
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(20)).await, 0, "{}", process.log());
}

/// Returns the lines of a log that an operator reads as trouble.
fn trouble(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_kafka_is_a_state_one_line_at_its_start_and_one_at_its_end() {
    let mut world = World::embedded(1, 4, without_limits()).await;
    let blocks = [block(&world, "vibefollow", Kind::Vibefollow), block(&world, "userpilot", Kind::Userpilot)].concat();
    let mut process = Process::start(&world.yaml(&blocks, "group.protocol: consumer", "5s"), &[]);
    world.produce_all(one_event_each(0..5)).await;
    for id in ["vibefollow", "userpilot"] {
        world.wait_committed(id).await;
    }
    let before = process.log().len();
    let broker = world.embedded.as_ref().expect("embedded");
    broker.broker_down().expect("an answer");
    for id in ["vibefollow", "userpilot"] {
        wait_state(&mut process, id, "kafka_down").await;
    }
    // Long enough for lines that repeat every few seconds.
    process.wait_log("no broker answers").await;
    let down = Instant::now();
    while down.elapsed() < Duration::from_secs(15) {
        assert!(process.is_running(), "{}", process.log());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    world.embedded.as_ref().expect("embedded").broker_up().expect("an answer");
    for id in ["vibefollow", "userpilot"] {
        wait_state(&mut process, id, "idle").await;
    }
    world.produce_all(one_event_each(5..10)).await;
    for id in ["vibefollow", "userpilot"] {
        world.wait_committed(id).await;
    }
    let log = process.log()[before..].to_owned();
    for id in ["vibefollow", "userpilot"] {
        let of_lane = |text: &str| log.lines().filter(|line| line.contains(text) && line.contains(id)).count();
        assert_eq!(of_lane("no broker answers: "), 2, "the line, and as the reason of the state: {log}");
        assert_eq!(of_lane("a broker answers again"), 1, "{log}");
    }
    // A commit or a query may also fail before the lane knows of the outage, and partitions may be lost during it. On a
    // busy machine librdkafka names a few more requests that it gave up.
    assert!(trouble(&log).len() <= 16, "{log}");
    end(process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn brokers_that_are_down_at_the_start_are_a_state_and_tried_no_more_than_once_a_second_and_client() {
    let world = World::embedded(1, 1, without_limits()).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a free port").local_addr().expect("an address");
    let yaml = world.yaml(&block(&world, "vibefollow", Kind::Vibefollow), "debug: broker", "5s");
    let yaml = yaml.replace(&world.brokers, &closed.to_string());
    let mut process = Process::start(&yaml.replace("format: text", "format: text, level: debug"), &[]);
    let started = Instant::now();
    wait_state(&mut process, "vibefollow", "kafka_down").await;
    while started.elapsed() < Duration::from_secs(12) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // librdkafka logs this for each connection that it begins (`rd_kafka_transport_connect`).
    let tries = process.log().matches("Connecting to ipv4#").count();
    let most = 2.0 * (started.elapsed().as_secs_f64() + 1.0);
    assert!(tries > 2 && (tries as f64) < most, "{tries} connections in {:?}", started.elapsed());
    let log = process.log();
    let trouble = trouble(&log);
    assert!(trouble.iter().filter(|line| !line.contains("DEBUG")).count() <= 3, "{trouble:?}");
    end(process).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_that_kafka_refuses_waits_and_comes_back_by_itself_while_the_other_goes_on() {
    let mut world = World::embedded(1, 2, without_limits()).await;
    let (one, other) = (block(&world, "vibefollow", Kind::Vibefollow), block(&world, "userpilot", Kind::Userpilot));
    let process = Process::start(&world.yaml(&one, "group.protocol: consumer", "5s"), &[]);
    world.produce_all(one_event_each(0..5)).await;
    world.wait_committed("vibefollow").await;
    end(process).await;
    // One group has positions now. The other has none, which `fail` refuses.
    let yaml = world.yaml(&[one, other].concat(), "group.protocol: consumer", "5s");
    let mut process = Process::start(&yaml.replace("  commit_interval", "  start: fail\n  commit_interval"), &[]);
    wait_state(&mut process, "userpilot", "kafka_refused").await;
    world.produce_all(one_event_each(5..10)).await;
    world.wait_committed("vibefollow").await;
    let log = process.log();
    let line = log.lines().find(|line| line.contains("ERROR")).unwrap_or_else(|| panic!("no line: {log}"));
    assert!(line.contains("userpilot") && line.contains("set kafka.start to earliest or latest"), "{line}");
    assert_eq!(world.simulator.provider(Kind::Userpilot).users().len(), 0);
    assert!(process.is_running());
    // The test follows the remedy: one run with `earliest` gives the group its positions.
    let other = block(&world, "userpilot", Kind::Userpilot);
    let helper = Process::start(&world.yaml(&other, "group.protocol: consumer", "5s"), &[]);
    world.wait_committed("userpilot").await;
    assert_eq!(world.wrong_state(Kind::Userpilot), Vec::<String>::new());
    end(helper).await;
    process.wait_log("kafka takes the lane again").await;
    end(process).await;
}

/// Returns the exit codes and the output of `check` and of `run` with these properties.
fn said_of(world: &World, properties: &str) -> [(Option<i32>, String); 2] {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), world.yaml(&block(world, "vibefollow", Kind::Vibefollow), properties, "5s"))
        .expect("written");
    ["check", "run"].map(|command| {
        let output = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["-c".as_ref(), file.path().as_os_str(), command.as_ref()])
            .stdin(Stdio::null())
            .output()
            .expect("the binary starts");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_librdkafka_cannot_do_is_refused_by_check_as_by_run_with_setting_and_remedy() {
    let world = World::embedded(1, 1, without_limits()).await;
    let sasl = "security.protocol: sasl_ssl, sasl.username: worker, sasl.password: MARKED";
    // librdkafka's INTRODUCTION.md names the mechanisms, except `AWS_MSK_IAM`, which is Amazon's own.
    for (properties, setting, remedy) in [
        (&format!("{sasl}, sasl.mechanism: OAUTHBEARER"), "sasl.mechanism", "use SCRAM-SHA-512"),
        (&format!("{sasl}, sasl.mechanisms: OAUTHBEARER"), "sasl.mechanisms", "use SCRAM-SHA-512"),
        (&format!("{sasl}, sasl.mechanism: GSSAPI"), "sasl.mechanism", "use SCRAM-SHA-512"),
        (&format!("{sasl}, sasl.mechanism: AWS_MSK_IAM"), "sasl.mechanism", "use SCRAM-SHA-512"),
        (&sasl.to_owned(), "sasl.mechanism", "use SCRAM-SHA-512"),
        (
            &"security.protocol: SASL_SSL, sasl.mechanism: PLAIN, sasl.username: worker".to_owned(),
            "kafka.password_file",
            "name a file that holds the password",
        ),
        (
            &"security.protocol: sasl_plaintext, sasl.mechanism: PLAIN, sasl.password: MARKED".to_owned(),
            "sasl.username",
            "name the user",
        ),
        (
            &"security.protocol: ssl, ssl.ca.location: /nowhere".to_owned(),
            "ssl.ca.location",
            "correct kafka.properties",
        ),
        (
            &"security.protocol: ssl, ssl.keystore.location: /nowhere".to_owned(),
            "ssl.keystore.password",
            "correct kafka.properties",
        ),
    ] {
        let [check, run] = said_of(&world, properties);
        assert!(
            check.0 == Some(78) && check.1.contains(setting) && check.1.contains(remedy),
            "{properties}: {check:?}"
        );
        assert!(run.0 == Some(78) && run.1.contains(setting), "{properties}: {run:?}");
        assert!(!check.1.contains("MARKED") && !run.1.contains("MARKED"), "{properties}");
    }
}

/// Starts a broker that completes TLS handshakes, and counts those after which the client sends a request.
async fn tls_broker(authority: &Authority) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let (acceptor, shaken) = (TlsAcceptor::from(authority.server(false)), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&shaken);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(mut stream) = acceptor.accept(stream).await
                && stream.read_u8().await.is_ok()
            {
                // A client that does not trust the certificate sends an alert and no request.
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    (address, shaken)
}

/// Returns true if the worker that `command` starts gets through to a broker of this authority.
async fn is_trusted(authority: &Authority, mut command: Command) -> bool {
    let (broker, shaken) = tls_broker(authority).await;
    let file = authority.file(
        "worker.yaml",
        &format!(
            "kafka: {{ brokers: \"{broker}\", topics: [t], group: g, properties: {{ security.protocol: ssl }} }}\n\
             http: {{ listen: 127.0.0.1:0 }}\n\
             destinations:\n  vibefollow: {{ type: vibefollow, base_url: \"http://127.0.0.1:9\", token: t }}\n"
        ),
    );
    let command = command.args([env!("CARGO_BIN_EXE_sluicegate").as_ref(), "-c".as_ref(), file.as_os_str()]);
    let mut child =
        command.args(["run"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let deadline = Instant::now() + Duration::from_secs(10);
    while shaken.load(Ordering::Relaxed) == 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let _ = child.kill();
    let _ = child.wait();
    shaken.load(Ordering::Relaxed) > 0
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_only_the_systems_store_or_openssls_variables_name_is_trusted() {
    let authority = Authority::new();
    let env = |pairs: &[(&str, &std::path::Path)]| {
        let mut command = Command::new("env");
        command.args(["-u", "SSL_CERT_FILE", "-u", "SSL_CERT_DIR"]);
        for (name, path) in pairs {
            command.arg(format!("{name}={}", path.display()));
        }
        command
    };
    assert!(!is_trusted(&authority, env(&[])).await, "no variable names it");
    let ca = authority.ca_file();
    assert!(is_trusted(&authority, env(&[("SSL_CERT_FILE", &ca)])).await, "OpenSSL's variable names it");
    // The test's own store replaces the system's in a mount namespace.
    let store = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
    let Some(store) = store.into_iter().find(|path| std::path::Path::new(path).exists()) else {
        eprintln!("skipped: this system has no store of authorities");
        return;
    };
    let mount = format!("mount --bind {} {store} && exec env -u SSL_CERT_FILE -u SSL_CERT_DIR \"$@\"", ca.display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "--map-root-user", "sh", "-c", &mount, "sh"]);
    let mut probe = Command::new("unshare");
    let may =
        probe.args(["--mount", "--map-root-user", "sh", "-c", &mount, "sh", "true"]).stderr(Stdio::null()).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("skipped: no mount namespaces here");
        return;
    }
    assert!(is_trusted(&authority, command).await, "the system's store names it");
}

/// The client id and the password of each connection.
type Logins = Arc<Mutex<Vec<(String, String)>>>;

/// Starts a broker that records client ids and passwords of PLAIN and hangs up.
async fn doorkeeper() -> (String, Logins) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let logins = Logins::default();
    let kept = Arc::clone(&logins);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Some(login) = login(stream).await {
                kept.lock().expect("no panic").push(login);
            }
        }
    });
    (address, logins)
}

/// Reads a login in Kafka's protocol without SaslAuthenticate (KIP-43): ApiVersions (18), SaslHandshake (17), then the
/// bare token.
async fn login(mut stream: TcpStream) -> Option<(String, String)> {
    // The first reply has no error, two APIs (17 in version 0, 18 in 0 to 3) and no throttling. The second has no error
    // and one mechanism.
    const VERSIONS: &[u8] = &[0, 0, 3, 0, 18, 0, 0, 0, 3, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    const MECHANISMS: &[u8] = &[0, 0, 0, 0, 0, 1, 0, 5, b'P', b'L', b'A', b'I', b'N'];
    let client_id = loop {
        let request = frame(&mut stream).await?;
        let is_handshake = request.get(1)? == &17;
        let answer = [request.get(4..8)?, if is_handshake { MECHANISMS } else { VERSIONS }].concat();
        stream.write_u32(u32::try_from(answer.len()).ok()?).await.ok()?;
        stream.write_all(&answer).await.ok()?;
        if is_handshake {
            let end = 10 + usize::from(u16::from_be_bytes(request.get(8..10)?.try_into().ok()?));
            break String::from_utf8(request.get(10..end)?.to_vec()).ok()?;
        }
    };
    let token = String::from_utf8(frame(&mut stream).await?).ok()?;
    Some((client_id, token.rsplit('\0').next()?.to_owned()))
}

async fn frame(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let length = stream.read_u32().await.ok()?;
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    stream.read_exact(&mut bytes).await.ok()?;
    Some(bytes)
}

async fn wait_login(logins: &Logins, process: &mut Process, client_id: &str, password: &str) {
    let wanted = (client_id.to_owned(), password.to_owned());
    let deadline = Instant::now() + DEADLINE;
    while !logins.lock().expect("no panic").contains(&wanted) {
        assert!(Instant::now() < deadline, "no {client_id}: {:?}\n{}", logins.lock(), process.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_have_names_of_their_own_and_log_in_with_what_the_password_file_holds_now() {
    let world = World::embedded(1, 1, without_limits()).await;
    let (broker, logins) = doorkeeper().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "\u{feff}MARKED-first\n").expect("written");
    let sasl = "security.protocol: sasl_plaintext, sasl.mechanism: PLAIN, sasl.username: worker";
    let yaml = |properties: &str| {
        let yaml = world.yaml(&block(&world, "vibefollow", Kind::Vibefollow), properties, "5s");
        let yaml = yaml.replace(&format!("brokers: {}", world.brokers), &format!("brokers: \"{broker}\""));
        yaml.replace("kafka:\n", &format!("kafka:\n  password_file: {}\n", file.path().display()))
    };
    let mut process = Process::start(&yaml(sasl), &[]);
    let clients = ["sluicegate-vibefollow", "sluicegate-vibefollow-dlq"];
    for client in clients {
        wait_login(&logins, &mut process, client, "MARKED-first").await;
    }
    std::fs::write(file.path(), "MARKED-second\n").expect("written");
    for client in clients {
        wait_login(&logins, &mut process, client, "MARKED-second").await;
    }
    assert!(process.log().contains("kafka.password_file has changed") && !process.log().contains("MARKED"));
    end(process).await;
    let mut process = Process::start(&yaml(&format!("{sasl}, client.id: ours")), &[]);
    wait_login(&logins, &mut process, "ours", "MARKED-second").await;
    end(process).await;
}
