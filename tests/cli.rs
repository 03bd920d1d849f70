//! Tests of the binary as people and scripts use it: arguments go in, exit codes and texts come out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use sluicegate::metrics::Metrics;
use sluicegate::ops::{Board, LaneStatus, Ops, serve};
use sluicegate::testbed::broker::EmbeddedBroker;
use sluicegate::testbed::generator::{Generator, GeneratorSettings};
use tempfile::TempDir;

/// The longest wait for anything; a pass takes a fraction of it.
const DEADLINE: Duration = Duration::from_secs(30);

/// Returns a command for the binary, without the variables of the process that runs the tests.
fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// The exit code and the output of a run.
#[derive(Debug)]
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

fn run(args: &[&str]) -> Ended {
    ended(binary().args(args))
}

fn ended(command: &mut Command) -> Ended {
    let output = command.output().expect("the binary starts");
    Ended {
        code: output.status.code().expect("no signal"),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// A configuration file in a folder of its own.
struct ConfigFile {
    folder: TempDir,
}

impl ConfigFile {
    fn new(yaml: &str) -> ConfigFile {
        let file = ConfigFile { folder: tempfile::tempdir().expect("a folder") };
        fs::write(file.path(), yaml).expect("written");
        file
    }

    /// Writes the documented file, with tokens that exist.
    fn documented() -> ConfigFile {
        let documented = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sluicegate.yaml");
        let text = fs::read_to_string(documented).expect("the documented file");
        let file = ConfigFile::new("");
        let secrets = file.folder.path();
        for id in ["vitally", "vibefollow", "userpilot"] {
            fs::write(secrets.join(id), "MARKED\n").expect("written");
        }
        fs::write(file.path(), text.replace("/run/secrets", &secrets.display().to_string())).expect("written");
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("sluicegate.yaml")
    }

    fn run(&self, args: &[&str]) -> Ended {
        ended(binary().arg("-c").arg(self.path()).args(args))
    }
}

/// Writes a configuration with one destination that reads `identify` from these brokers.
fn reading_from(brokers: &str) -> ConfigFile {
    ConfigFile::new(&format!(
        "{{kafka: {{brokers: '{brokers}'}}, destinations: {{userpilot: {{type: userpilot, token: t0}}}}}}"
    ))
}

/// Returns an address that nothing listens on.
fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

#[test]
fn a_wrong_flag_ends_with_64_and_the_usage() {
    let ended = run(&["run", "--bogus"]);
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(ended.stderr.contains("--bogus") && ended.stderr.contains("Usage:"), "{ended:?}");
}

#[test]
fn a_missing_file_ends_with_78_and_its_name() {
    let ended = run(&["-c", "/no/such/file.yaml", "check"]);
    assert_eq!(ended.code, 78, "{ended:?}");
    assert!(ended.stderr.contains("/no/such/file.yaml: cannot be read"), "{ended:?}");
}

#[test]
fn all_problems_are_reported_at_once_whatever_the_command() {
    let file = ConfigFile::new("{kafka: {topics: [], strat: x}, destinations: {d: {type: userpilot, linger: 1s}}}");
    for command in [["check"].as_slice(), &["run"], &["config", "print"], &["generate"]] {
        let ended = file.run(command);
        assert_eq!(ended.code, 78, "{command:?}: {ended:?}");
        for path in ["kafka.topics", "kafka.strat", "destinations.d.linger", "destinations.d.token"] {
            assert!(ended.stderr.lines().any(|line| line.starts_with(path)), "{command:?}: {path}: {ended:?}");
        }
        assert_eq!(ended.stdout, "", "{command:?}");
    }
}

#[test]
fn the_printed_settings_hide_tokens_and_passwords() {
    let file = ConfigFile::new(
        "{kafka: {properties: {sasl.password: MARKED}}, destinations: {d: {type: userpilot, token: MARKED}}}",
    );
    let ended = file.run(&["config", "print"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("sasl.password: '***'") && ended.stdout.contains("token: '***'"), "{ended:?}");
    assert!(!format!("{ended:?}").contains("MARKED"), "{ended:?}");
}

#[test]
fn the_environment_lies_over_the_file() {
    let file = reading_from("a:1");
    let ended = ended(
        binary()
            .env("SLUICEGATE__KAFKA__BROKERS", "b:2")
            .env("SLUICEGATE__DESTINATIONS__USERPILOT__TOKEN", "MARKED")
            .args(["config", "print", "-c"])
            .arg(file.path()),
    );
    assert!(ended.code == 0 && ended.stdout.contains("brokers: b:2"), "{ended:?}");
    assert!(!ended.stdout.contains("MARKED"), "{ended:?}");
}

#[test]
fn the_schema_the_version_and_the_completions_are_for_programs() {
    let json = |args: &[&str]| -> serde_json::Value {
        let ended = run(args);
        assert_eq!(ended.code, 0, "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("JSON")
    };
    assert_eq!(json(&["config", "schema"])["title"], "Sluicegate");
    assert_eq!(json(&["version", "--json"])["version"], env!("CARGO_PKG_VERSION"));
    let completions = run(&["completions", "bash"]);
    assert!(completions.code == 0 && completions.stdout.contains("complete -F _sluicegate"), "{completions:?}");
}

#[test]
fn the_documented_file_is_valid_once_its_tokens_are_there() {
    let ended = ConfigFile::documented().run(&["check"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    assert!(ended.stdout.contains("valid (3 destinations)"), "{ended:?}");
}

#[test]
fn a_check_names_each_token_that_cannot_be_read() {
    let file = ConfigFile::documented();
    fs::remove_file(file.folder.path().join("vitally")).expect("removed");
    fs::write(file.folder.path().join("userpilot"), "Token MARKED\n").expect("written");
    let ended = file.run(&["check"]);
    assert_eq!(ended.code, 78, "{ended:?}");
    for path in ["destinations.vitally.token_file", "destinations.userpilot.token_file"] {
        assert!(ended.stderr.contains(path), "{ended:?}");
    }
    assert!(!ended.stderr.contains("vibefollow.token_file") && !ended.stderr.contains("MARKED"), "{ended:?}");
}

#[test]
fn an_online_check_tells_how_to_create_the_dead_letter_topic_and_is_content_once_it_is_there() {
    let broker = EmbeddedBroker::start(&[("identify", 6)]).expect("a broker");
    let file = reading_from(broker.bootstrap_servers());
    let without = file.run(&["check", "--online"]);
    assert_eq!(without.code, 78, "{without:?}");
    let wrong: Vec<&str> = without.stdout.lines().filter(|line| line.starts_with("WRONG")).collect();
    let [wrong] = wrong.as_slice() else { panic!("{without:?}") };
    let create = format!(
        "kafka-topics.sh --bootstrap-server {} --create --topic identify.dlq.userpilot --partitions 6",
        broker.bootstrap_servers()
    );
    assert!(wrong.contains("topic identify.dlq.userpilot: does not exist") && wrong.contains(&create), "{wrong}");

    broker.create_topic("identify.dlq.userpilot", 6).expect("created");
    let with = file.run(&["check", "--online"]);
    assert_eq!((with.code, with.stderr.as_str()), (0, ""), "{with:?}");
    assert!(with.stdout.contains("topic identify: 6 partitions"), "{with:?}");
}

#[test]
fn an_online_check_of_brokers_that_do_not_answer_ends_with_69_in_time() {
    let port = closed_port();
    let started = Instant::now();
    let ended = reading_from(&port).run(&["check", "--online"]);
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    assert_eq!(ended.code, 69, "{ended:?}");
    assert!(ended.stdout.contains(&format!("no answer from {port}")), "{ended:?}");
    assert!(ended.stdout.contains("Connection refused") && ended.stdout.contains("check kafka.brokers"), "{ended:?}");
}

#[test]
fn asking_a_process_that_is_not_there_ends_with_69_and_says_where_it_was_looked_for() {
    let port = closed_port();
    for command in ["healthcheck", "status"] {
        let ended = run(&[command, "--url", &format!("http://{port}")]);
        assert_eq!((ended.code, ended.stdout.as_str()), (69, ""), "{ended:?}");
        assert!(ended.stderr.contains(&port) && ended.stderr.contains("Connection refused"), "{ended:?}");
    }
    // The address comes from the configuration, which may be wrong elsewhere.
    let file = ConfigFile::new(&format!("{{http: {{listen: '{port}'}}, destinations: {{d: {{type: userpilot}}}}}}"));
    let ended = file.run(&["healthcheck"]);
    assert!(ended.code == 69 && ended.stderr.contains(&port), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_process_tells_its_health_and_its_lanes() {
    let mut board = Board::default();
    // The lane's loop has never turned, as in a lane that is stuck.
    let reporter = board.lane(LaneStatus {
        destination: "vitally".to_owned(),
        state: "limited".to_owned(),
        pending_rows: 812,
        ..LaneStatus::default()
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let metrics = Metrics::new();
    let ops = Ops { metrics: Arc::new(metrics), board: Arc::new(board) };
    tokio::spawn(serve(listener, ops, std::future::pending()));
    let ask = async |args: &'static [&'static str]| {
        let url = url.clone();
        tokio::task::spawn_blocking(move || ended(binary().args(args).args(["--url", &url]))).await.expect("no panic")
    };

    let stuck = ask(&["healthcheck"]).await;
    assert!(stuck.code == 69 && stuck.stderr.contains("503") && stuck.stderr.contains("vitally"), "{stuck:?}");
    reporter.update(|status| status.loop_turn_ms = i64::MAX);
    let alive = ask(&["healthcheck"]).await;
    assert_eq!(alive.code, 0, "{alive:?}");

    let table = ask(&["status"]).await;
    let lane = table.stdout.lines().find(|line| line.starts_with("vitally")).unwrap_or_default();
    assert!(table.code == 0 && lane.contains("limited") && lane.contains("812"), "{table:?}");
    let json = ask(&["status", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["lanes"][0]["pending_rows"], 812);
}

#[test]
fn a_check_refuses_what_cannot_work_and_only_warns_of_what_hardly_will() {
    let check = |destinations: &str| ConfigFile::new(&format!("{{destinations: {{{destinations}}}}}")).run(&["check"]);
    let refused = check(
        "a: {type: vibefollow, token: t0, base_url: 'http://api.vibefollow.com'}, b: {type: userpilot, token: '${MARKED}'}, \
         c: {type: vitally, token: t0, base_url: 'https://acme.vitally.io'}",
    );
    assert_eq!(refused.code, 78, "{refused:?}");
    for line in [
        "destinations.a.base_url = http://api.vibefollow.com: http:// sends the token in clear text",
        "destinations.b.token: is a placeholder that nothing has replaced",
        "destinations.c.base_url = https://acme.vitally.io: this host of vitally serves people",
    ] {
        assert!(refused.stderr.lines().any(|found| found.starts_with(line)), "{line}: {refused:?}");
    }
    assert!(!refused.stderr.contains("MARKED"), "{refused:?}");

    // One provider, simulated or not, counts both lanes in one window.
    let twice = check(
        "a: {type: vibefollow, token: t0, base_url: 'http://127.0.0.1:1'}, \
         b: {type: vibefollow, token: t0, base_url: 'http://127.0.0.1:1'}",
    );
    assert_eq!(twice.code, 78, "{twice:?}");
    assert!(twice.stderr.contains("lower their rows_per_minute so that they add up to 1200"), "{twice:?}");

    let warned = check("a: {type: vibefollow, token: t0, limit: {rows_per_minute: 5000}}");
    assert_eq!(warned.code, 0, "{warned:?}");
    assert!(
        warned.stderr.starts_with("warning: destinations.a.limit.rows_per_minute = 5000: is above the 1200"),
        "{warned:?}"
    );
}

#[test]
fn the_log_on_a_terminal_has_colors_only_where_they_are_wanted_and_never_module_paths() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    // The worker logs a warning, and then ends, since its port is taken.
    let file = ConfigFile::new(&format!(
        "{{http: {{listen: '{}'}}, destinations: {{d: {{type: userpilot, token: t0, limit: {{rows_per_minute: 5000}}}}}}}}",
        taken.local_addr().expect("an address")
    ));
    let command = format!("{} -c {} run", env!("CARGO_BIN_EXE_sluicegate"), file.path().display());
    for (variables, is_colored) in [
        (&[("TERM", "xterm")][..], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "1")], false),
        (&[("TERM", "dumb")], false),
    ] {
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
        let Ok(output) = script.output() else {
            println!("skipped: there is no script(1) to make a terminal with");
            return;
        };
        let log = String::from_utf8_lossy(&output.stdout);
        assert!(log.contains("WARN") && log.contains("destinations.d.limit.rows_per_minute = 5000"), "{log}");
        assert_eq!(log.contains('\x1b'), is_colored, "{variables:?}: {log}");
        assert!(!log.contains("sluicegate::"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_can_wait_until_nothing_is_left_and_hears_the_rest() {
    let mut board = Board::default();
    let mut reporter = board.lane(LaneStatus {
        destination: "vitally".to_owned(),
        state: "delivering".to_owned(),
        pending_rows: 3,
        pending_events: 7,
        events_skipped: 2,
        partitions_assigned: 1,
        ..LaneStatus::default()
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let ops = Ops { metrics: Arc::new(Metrics::new()), board: Arc::new(board) };
    tokio::spawn(serve(listener, ops, std::future::pending()));
    let (change, mut changed) = tokio::sync::watch::channel(None);
    let (asked, mut asks) = tokio::sync::watch::channel(());
    tokio::spawn(async move {
        loop {
            let ask = reporter.asked().await;
            reporter.update(|status| {
                status.lag = *changed.borrow_and_update();
                status.lag_as_of_ms = Some(i64::MAX);
                if status.lag == Some(0) {
                    (status.pending_rows, status.pending_events) = (0, 0);
                }
            });
            ask.answered();
            asked.send_replace(());
        }
    });
    let wait = async |timeout: &'static str| {
        let url = url.clone();
        let args = ["status", "--wait-drained", "--timeout", timeout, "--url"];
        tokio::task::spawn_blocking(move || ended(binary().args(args).arg(&url))).await.expect("no panic")
    };
    let unknown = wait("1s").await;
    assert_eq!((unknown.code, unknown.stdout.as_str()), (75, ""), "{unknown:?}");
    assert!(
        unknown.stderr.starts_with("not drained within 1s (--timeout): vitally: 3 rows and 7 events pending"),
        "{unknown:?}"
    );
    assert!(unknown.stderr.contains("lag unknown"), "{unknown:?}");
    asks.mark_unchanged();
    let known = async {
        asks.changed().await.expect("a lane");
        change.send(Some(0)).expect("a lane");
    };
    let (drained, ()) = tokio::join!(wait("30s"), known);
    assert_eq!((drained.code, drained.stdout.as_str()), (0, "drained: nothing waits on any lane\n"), "{drained:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_status_is_printed_again_where_it_cannot_be_drawn_in_place() {
    let mut board = Board::default();
    let _reporter = board.lane(LaneStatus { destination: "vitally".to_owned(), ..LaneStatus::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let ops = Ops { metrics: Arc::new(Metrics::new()), board: Arc::new(board) };
    tokio::spawn(serve(listener, ops, std::future::pending()));
    let read = tokio::task::spawn_blocking(move || {
        let mut command = binary();
        command.args(["status", "--watch", "--every", "50ms", "--url", &url]).stdout(Stdio::piped());
        let mut running = Running(command.spawn().expect("the binary starts"));
        let lines = BufReader::new(running.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let mut heads = 0;
        lines
            .take_while(|line| {
                heads += usize::from(line.starts_with("LANE "));
                heads < 3
            })
            .collect::<Vec<_>>()
    });
    let lines = read.await.expect("three tables");
    assert!(lines.iter().all(|line| !line.contains('\x1b')), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains('?')), "lag is not known: {lines:?}");
}

/// A process that is killed if the test fails.
struct Running(Child);

impl Running {
    fn terminate(&self) {
        let kill = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        assert!(kill.expect("kill starts").success());
    }

    /// Returns the exit code, once the process has ended.
    fn wait(&mut self) -> i32 {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status.code().expect("no signal");
            }
            assert!(started.elapsed() < DEADLINE, "still running");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a pass the process is already gone.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Returns the first value of a YAML key that a process prints.
fn printed(stdout: &mut BufReader<ChildStdout>, key: &str) -> String {
    let mut line = String::new();
    while stdout.read_line(&mut line).expect("text") > 0 {
        if let Some(value) = line.trim().strip_prefix(key).and_then(|rest| rest.strip_prefix(": ")) {
            return value.to_owned();
        }
        line.clear();
    }
    panic!("the process ended without printing {key}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_prints_a_configuration_serves_it_and_ends_with_0() {
    let child = binary().args(["simulate", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn();
    let mut running = Running(child.expect("the binary starts"));
    let mut stdout = BufReader::new(running.0.stdout.take().expect("piped"));
    let base_url = printed(&mut stdout, "base_url");
    let token = printed(&mut stdout, "token");
    assert_eq!(token, "demo-vitally-token");

    let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().expect("a client");
    let row = r#"{"type":"user","userId":"u1","accountId":"a1","messageId":"m1","timestamp":"2026-01-05T08:00:00Z","traits":{}}"#;
    let sent = client
        .post(format!("{base_url}/analytics/v1/user"))
        .header("authorization", format!("Basic {token}"))
        .header("content-type", "application/json")
        .body(row)
        .send()
        .await
        .expect("an answer");
    assert_eq!(sent.status(), 200, "{:?}", sent.text().await);
    let state = client.get(format!("{base_url}/state")).send().await.expect("an answer").bytes().await.expect("a body");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
    assert_eq!(state["vitally"]["user_count"], 1, "{state}");

    running.terminate();
    assert_eq!(running.wait(), 0);
}

#[test]
fn a_port_that_is_taken_ends_the_simulator_with_69() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("an address").to_string();
    let ended = run(&["simulate", "--listen", &addr]);
    assert_eq!(ended.code, 69, "{ended:?}");
    assert!(ended.stderr.contains(&addr) && ended.stderr.contains("--listen"), "{ended:?}");
}

/// Returns all records of a topic: partition, key and payload.
fn records(brokers: &str, topic: &str, partitions: i32) -> Vec<(i32, Vec<u8>, Option<Vec<u8>>)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "test")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let mut list = TopicPartitionList::new();
    for partition in 0..partitions {
        list.add_partition_offset(topic, partition, Offset::Beginning).expect("an offset");
    }
    consumer.assign(&list).expect("assigned");
    let (mut found, mut ends) = (Vec::new(), 0);
    while ends < partitions {
        match consumer.poll(DEADLINE).expect("a record in time") {
            Ok(record) => {
                let key = record.key().expect("a key").to_vec();
                found.push((record.partition(), key, record.payload().map(<[u8]>::to_vec)));
            }
            Err(KafkaError::PartitionEOF(_)) => ends += 1,
            Err(error) => panic!("{error}"),
        }
    }
    found
}

#[test]
fn generated_events_are_in_the_topic_each_user_in_one_partition() {
    let broker = EmbeddedBroker::start(&[("signups", 8)]).expect("a broker");
    let file = reading_from(broker.bootstrap_servers());
    let ended = file.run(&["generate", "--topic", "signups", "--events", "3000", "--users", "50", "--seed", "7"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    assert!(ended.stdout.starts_with("wrote 3000 events to topic signups in "), "{ended:?}");

    let mut homes: BTreeMap<Vec<u8>, BTreeSet<i32>> = BTreeMap::new();
    let mut found: BTreeMap<Vec<u8>, Vec<Option<u64>>> = BTreeMap::new();
    for (partition, key, payload) in records(broker.bootstrap_servers(), "signups", 8) {
        homes.entry(key.clone()).or_default().insert(partition);
        found.entry(key).or_default().push(version(payload.as_deref()));
    }
    // The times differ, but the users and the order of their events are the same.
    let settings = GeneratorSettings { seed: 7, users: 50, events: 3000, ..GeneratorSettings::default() };
    let mut expected: BTreeMap<Vec<u8>, Vec<Option<u64>>> = BTreeMap::new();
    for event in Generator::new(settings) {
        expected.entry(event.key).or_default().push(version(event.payload.as_deref()));
    }
    assert_eq!(found, expected);
    assert!(homes.values().all(|partitions| partitions.len() == 1), "{homes:?}");
    let used: BTreeSet<&i32> = homes.values().flatten().collect();
    assert!(used.len() > 4, "{used:?}");
}

fn version(payload: Option<&[u8]>) -> Option<u64> {
    let event: serde_json::Value = serde_json::from_slice(payload?).ok()?;
    event["traits"]["version"].as_u64().or(event["context"]["traits"]["version"].as_u64())
}

#[test]
fn a_rate_paces_the_generator() {
    let broker = EmbeddedBroker::start(&[("identify", 4)]).expect("a broker");
    let started = Instant::now();
    let brokers = broker.bootstrap_servers();
    let ended = run(&["generate", "--brokers", brokers, "--events", "101", "--rate", "100"]);
    assert!(ended.code == 0 && started.elapsed() >= Duration::from_secs(1), "{:?} {ended:?}", started.elapsed());
    assert_eq!(records(brokers, "identify", 4).len(), 101);
}

#[test]
fn generating_without_a_broker_or_a_topic_ends_with_69_in_time() {
    let port = closed_port();
    let started = Instant::now();
    let closed = run(&["generate", "--brokers", &port, "--events", "10"]);
    assert_eq!(closed.code, 69, "{closed:?}");
    assert!(closed.stderr.contains(&port) && closed.stderr.contains("Connection refused"), "{closed:?}");

    let broker = EmbeddedBroker::start(&[("identify", 4)]).expect("a broker");
    let unknown = RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
    broker.topic_error("identify", unknown).expect("arranged");
    let missing = run(&["generate", "--brokers", broker.bootstrap_servers(), "--events", "10"]);
    assert_eq!(missing.code, 69, "{missing:?}");
    assert!(missing.stderr.contains("topic identify does not exist"), "{missing:?}");
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
}
