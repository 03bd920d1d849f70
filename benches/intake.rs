//! The speed at which the worker takes in a backlog from a real Kafka, compared with what the client library can do.
//!
//! One run on one core measures three programs: a loop that only counts, a loop that also parses, and the worker
//! (decode, repeats, merge, offsets).
//!
//! Run it with `SLUICEGATE_TEST_BROKERS=127.0.0.1:9092 cargo bench --bench intake`. It needs `taskset`. The measured
//! programs run on core 1, so keep the broker off it: `SLUICEGATE_BENCH_BROKER_PID` pins the broker to core 0. The
//! events are written once, to topics of their own, and later runs read them again. `SLUICEGATE_BENCH_ROUNDS=5`
//! measures each program five times.
//!
//! There are two topics. In one, all events name the same traits, as those of one call site do, so that an event
//! replaces its user's last one. In the other, a user's events name eight lists of traits in turn, so that they have to
//! be merged.
//!
//! At the end, the bench measures several lanes in one process, each of which reads the topic for itself. With
//! `SLUICEGATE_BENCH_OTHER=path/to/sluicegate` it measures another binary next to this one instead, to see what a
//! change has cost.

#[path = "shared/parsed.rs"]
mod parsed;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// The topics, and the number of lists of traits that a user's events have in each.
const TOPICS: [(&str, i64); 2] = [("sluicegate-bench-intake", 1), ("sluicegate-bench-intake-mixed", 8)];
const PARTITIONS: i32 = 12;
const EVENTS: i64 = 2_000_000;
const USERS: u64 = 50_000;

/// The variable that names the loop of a child; absent in the program that measures.
const ROLE: &str = "SLUICEGATE_BENCH_ROLE";

/// The variable that names the topic of a child.
const TOPIC: &str = "SLUICEGATE_BENCH_TOPIC";

const WORKER: &str = env!("CARGO_BIN_EXE_sluicegate");

/// The core of the measured programs.
const CORE: &str = "1";

/// The longest time for anything here.
const DEADLINE: Duration = Duration::from_secs(120);

fn main() {
    let Ok(brokers) = std::env::var("SLUICEGATE_TEST_BROKERS") else {
        return println!("skipped: set SLUICEGATE_TEST_BROKERS to a Kafka of your own");
    };
    match std::env::var(ROLE).as_deref() {
        Ok("count") => read(&brokers, |_| {}),
        Ok("parse") => read(&brokers, parsed::parse),
        _ => measure(&brokers),
    }
}

fn measure(brokers: &str) {
    TOPICS.iter().for_each(|(topic, n_lists)| write(brokers, topic, *n_lists));
    // The program that measures keeps off the core of the measured programs, too.
    let mut pids = vec![std::process::id().to_string()];
    pids.extend(std::env::var("SLUICEGATE_BENCH_BROKER_PID"));
    for pid in pids {
        let pinned = Command::new("taskset").args(["-acp", "0", &pid]).stdout(Stdio::null()).status();
        assert!(pinned.is_ok_and(|status| status.success()), "cannot keep process {pid} off core {CORE}");
    }
    let rounds = std::env::var("SLUICEGATE_BENCH_ROUNDS").map_or(3, |text| text.parse().expect("a number of rounds"));
    let other = std::env::var("SLUICEGATE_BENCH_OTHER").ok();
    for (topic, n_lists) in TOPICS {
        println!(
            "{topic}: {EVENTS} events of {USERS} users, {n_lists} lists of traits in turn, {PARTITIONS} partitions, one core"
        );
        let mut programs: Vec<(&str, Vec<Intake>)> =
            ["count", "parse", "worker", "other worker"].map(|program| (program, Vec::new())).into();
        if other.is_none() {
            programs.pop();
        }
        for _ in 0..rounds {
            for (program, runs) in &mut programs {
                runs.push(match (*program, &other) {
                    ("worker", _) => take_in(brokers, topic, WORKER, 1),
                    ("other worker", Some(other)) => take_in(brokers, topic, other, 1),
                    (role, _) => baseline(brokers, topic, role),
                });
            }
        }
        let figures: Vec<(&str, Intake)> =
            programs.iter().map(|(program, runs)| (*program, Intake::median(runs))).collect();
        let parse = Intake::median(&programs[1].1);
        for (program, Intake { rate, cpu }) in figures {
            println!(
                "  {program:<13} {rate:>9.0} events/s, {:>3.0}% of parse; {cpu:.2} CPU s per million, {:.2} times parse",
                100.0 * rate / parse.rate,
                cpu / parse.cpu
            );
        }
    }
    if other.is_some() {
        return;
    }
    let (topic, _) = TOPICS[0];
    for n_lanes in [1, 2, 3] {
        let runs: Vec<Intake> = (0..rounds).map(|_| take_in(brokers, topic, WORKER, n_lanes)).collect();
        let Intake { rate, cpu } = Intake::median(&runs);
        println!(
            "{n_lanes} lanes in one process: {rate:.0} events/s each, {cpu:.2} CPU s per million events of the topic"
        );
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Returns a key and an event of about 600 bytes, the size that the documentation's figures are for.
fn event(n: i64, n_lists: i64) -> (String, String) {
    // A prime, so that users come in an order without pattern.
    let user = n as u64 * 1_000_000_007 % USERS;
    // The number of the list of traits: a user's n-th event has the n-th list, in turn.
    let list = n / USERS as i64 % n_lists;
    let text = format!(
        r#"{{"type":"identify","userId":"user-{user:08}","anonymousId":"5f0c2f1e-8f0f-4b7e-9d39-0f4c1f3f6a77","messageId":"ajs-next-{n:013}-1b9d6bcd-bbfd-4b2d","timestamp":"2026-11-22T09:00:00.000Z","receivedAt":"2026-11-22T09:00:00.412Z","context":{{"groupId":"acme-42","ip":"203.0.113.7","library":{{"name":"analytics.js","version":"2.11.1"}},"locale":"en-US","page":{{"path":"/app","url":"https://example.com/app"}}}},"traits":{{"email":"ada@example.com","firstName{list}":"Ada","plan":"growth","seats":{n},"trial":false,"company":{{"id":"acme-42","name":"Acme"}},"createdAt":"2024-03-01T00:00:00Z"}}}}"#
    );
    (format!("user-{user:08}"), text)
}

/// Writes the events, unless an earlier run has written them.
fn write(brokers: &str, topic: &str, n_lists: i64) {
    let consumer = consumer(brokers);
    let there: i64 = (0..PARTITIONS)
        .filter_map(|partition| consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).ok())
        .map(|(_, high)| high)
        .sum();
    if there == EVENTS {
        return;
    }
    assert_eq!(there, 0, "topic {topic} holds something else: delete it");
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("partitioner", "murmur2_random")
        .set("linger.ms", "50")
        .set("batch.size", "262144")
        .create()
        .expect("a producer");
    for n in 0..EVENTS {
        let (key, text) = event(n, n_lists);
        let mut record = BaseRecord::to(topic).key(&key).payload(&text);
        while let Err((error, back)) = producer.send(record) {
            let is_full = matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
            assert!(is_full, "{error}");
            producer.poll(Duration::from_millis(10));
            record = back;
        }
    }
    producer.flush(DEADLINE).expect("the broker takes them all");
    println!("{EVENTS} events of {} bytes written to {topic}", event(0, n_lists).1.len());
}

fn consumer(brokers: &str) -> BaseConsumer {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "sluicegate-bench")
        .set("enable.auto.commit", "false")
        // Without this, fetching pauses for a second whenever the local queue is full.
        .set("fetch.queue.backoff.ms", "10")
        .create()
        .expect("a consumer")
}

/// Reads the topic from its beginning, as a child does, and prints the events a second and the CPU seconds.
fn read(brokers: &str, mut take: impl FnMut(&[u8])) {
    let consumer = consumer(brokers);
    let topic = std::env::var(TOPIC).expect("the topic to read");
    let mut list = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        list.add_partition_offset(&topic, partition, Offset::Beginning).expect("a list");
    }
    consumer.assign(&list).expect("an assignment");
    let (mut seen, mut began, deadline) = (0, None, Instant::now() + DEADLINE);
    while seen < EVENTS {
        assert!(Instant::now() < deadline, "{seen} events after {DEADLINE:?}");
        let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
        take(message.expect("a record").payload().expect("a payload"));
        began.get_or_insert_with(Instant::now);
        seen += 1;
    }
    let rate = EVENTS as f64 / began.expect("events").elapsed().as_secs_f64();
    println!("{rate} {}", cpu_seconds(std::process::id()));
}

fn pinned(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", CORE, program]);
    command
}

/// Measures a loop in a process of its own.
fn baseline(brokers: &str, topic: &str, role: &str) -> Intake {
    let program = std::env::current_exe().expect("a path");
    let output = pinned(&program.to_string_lossy())
        .envs([(ROLE, role), (TOPIC, topic), ("SLUICEGATE_TEST_BROKERS", brokers)])
        .output()
        .expect("taskset is installed");
    assert!(output.status.success(), "{role}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    Intake { rate: numbers[0], cpu: numbers[1] / (EVENTS as f64 / 1e6) }
}

/// A child that is killed when a measurement fails.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The figures of reading the topic, as the median of some runs or of one run.
struct Intake {
    /// The events a second from the first to the last; for a worker, those that each lane has read.
    rate: f64,
    /// The CPU seconds of the process per million events of the topic, start included.
    cpu: f64,
}

impl Intake {
    fn median(runs: &[Intake]) -> Intake {
        let rate = median(runs.iter().map(|run| run.rate).collect());
        let cpu = median(runs.iter().map(|run| run.cpu).collect());
        Intake { rate, cpu }
    }
}

/// Measures a worker that takes the topic in, with `n_lanes` lanes whose provider takes nothing.
fn take_in(brokers: &str, topic: &str, program: &str, n_lanes: usize) -> Intake {
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    // Port 9 is the discard service, which no machine offers today, so connections are refused.
    let lanes: String = (0..n_lanes)
        .map(|n| format!("  lane{n}: {{ type: vitally, base_url: \"http://127.0.0.1:9\", token: none, buffer: {{ max_bytes: 4GiB }} }}\n"))
        .collect();
    let mut config = tempfile::NamedTempFile::new().expect("a file");
    write!(
        config,
        "kafka: {{ brokers: \"{brokers}\", topics: [{topic}], group: bench-{}-{port}, properties: {{ group.protocol: consumer }} }}\n\
         http: {{ listen: \"127.0.0.1:{port}\" }}\n\
         log: {{ level: error }}\n\
         destinations:\n{lanes}",
        std::process::id()
    )
    .expect("written");
    let mut command = pinned(program);
    command.args(["run", "-c"]).arg(config.path());
    let worker = Killed(command.stdout(Stdio::null()).spawn().expect("taskset is installed"));
    let url = format!("http://127.0.0.1:{port}/metrics");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let all = n_lanes as f64 * EVENTS as f64;
    let rate = runtime.block_on(async {
        let client = reqwest::Client::new();
        let (deadline, mut first) = (Instant::now() + DEADLINE, None);
        loop {
            assert!(Instant::now() < deadline, "the worker does not take {EVENTS} events in");
            // A scrape costs the worker a thousandth of this.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let Ok(reply) = client.get(&url).send().await else { continue };
            let now = Instant::now();
            let text = reply.text().await.unwrap_or_default();
            let lines = text
                .lines()
                .filter_map(|line| line.strip_prefix("sluicegate_events_consumed_total{")?.rsplit_once(' '));
            let consumed: f64 = lines.filter_map(|(_, value)| value.parse::<f64>().ok()).sum();
            if consumed == 0.0 {
                continue;
            }
            let (from, at) = *first.get_or_insert((consumed, now));
            if consumed == all {
                break (consumed - from) / n_lanes as f64 / (now - at).as_secs_f64();
            }
        }
    });
    let cpu = cpu_seconds(worker.0.id()) / (EVENTS as f64 / 1e6);
    Intake { rate, cpu }
}

/// Returns the CPU seconds that a process has used, user and system together. `taskset` becomes the worker, so the
/// child's id is the worker's.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the worker runs");
    let ticks: f64 = stat
        .rsplit_once(')')
        .map(|(_, fields)| {
            fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum()
        })
        .expect("the fields of proc(5)");
    // The unit is USER_HZ, which is 100 on every Linux in use.
    ticks / 100.0
}
