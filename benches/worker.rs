//! The whole worker as a process: how long a record takes from the producer to the provider on an idle lane, and what three
//! lanes cost while they are idle and while the limit holds them back.
//!
//! `cargo bench --bench worker`; broker (embedded) and simulated providers run in this process, the worker in its own.

use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{FutureProducer, FutureRecord};
use sluicegate::demo::broker::EmbeddedBroker;
use sluicegate::demo::simulator::{Kind, Simulator, SimulatorSettings};

const TOPIC: &str = "identify";

/// Records sent one by one for the latency figure.
const PROBES: usize = 30;

/// How long CPU is measured for in each phase.
const PHASE: Duration = Duration::from_secs(15);

#[tokio::main]
async fn main() {
    let dead = ["identify.dlq.vitally", "identify.dlq.vibefollow", "identify.dlq.userpilot"];
    let mut topics = vec![(TOPIC, 8)];
    topics.extend(dead.iter().map(|topic| (*topic, 1)));
    let broker = EmbeddedBroker::start(&topics).expect("an embedded broker");
    let simulator = Simulator::start(SimulatorSettings::default(), SocketAddr::from(([127, 0, 0, 1], 0))).await;
    let simulator = simulator.expect("a free port");
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", broker.bootstrap_servers())
        .set("linger.ms", "0")
        .create()
        .expect("a producer");
    let blocks = Kind::ALL.map(|kind| {
        let name = kind.name();
        let url = simulator.base_url();
        format!(
            "  {name}: {{ type: {name}, base_url: \"{url}\", token: demo-{name}-token, batch: {{ linger: 0s }} }}\n"
        )
    });
    let brokers = broker.bootstrap_servers();
    let config = |group: &str, properties: &str| {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        write!(
            file,
            "kafka: {{ brokers: \"{brokers}\", topics: [{TOPIC}], group: {group}, properties: {{ group.protocol: consumer{properties} }} }}\n\
             http: {{ listen: 127.0.0.1:0 }}\nlog: {{ level: warn }}\ndestinations:\n{}",
            blocks.concat()
        )
        .expect("written");
        file
    };
    // The mock cluster answers a fetch only when its wait is over, where Kafka answers as soon as there is a record: with
    // the default of 500 ms the figure would be the mock's.
    let waiting_briefly = config("latency", ", fetch.wait.max.ms: 5");
    let mut worker = Worker::start(waiting_briefly.path());

    produce(&producer, "first").await;
    let vitally = simulator.provider(Kind::Vitally);
    while vitally.arrivals().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut took = Vec::new();
    for probe in 0..PROBES {
        // Long enough for the lane to be idle again, its last commit behind it.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let seen = vitally.arrivals().len();
        let sent = Instant::now();
        produce(&producer, &format!("probe-{probe}")).await;
        while vitally.arrivals().len() == seen {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        took.push(vitally.arrivals()[seen].0.saturating_duration_since(sent));
    }
    took.sort_unstable();
    println!(
        "latency, idle lane, linger 0s: producer's send to the request's arrival, {PROBES} records: median {:?}, p90 {:?}, max {:?}",
        took[PROBES / 2],
        took[PROBES * 9 / 10],
        took[PROBES - 1]
    );

    worker.end();
    let usual = config("cpu", "");
    worker = Worker::start(usual.path());
    tokio::time::sleep(Duration::from_secs(30)).await;
    println!("cpu, three idle lanes: {:.2}% of a core each", worker.cpu_share().await / 3.0 * 100.0);
    for user in 0..20_000 {
        let event = format!(r#"{{"userId":"user-{user}","context":{{"groupId":"acme"}},"traits":{{"plan":"pro"}}}}"#);
        let key = format!("user-{user}");
        let _ = producer.send_result(FutureRecord::to(TOPIC).key(&key).payload(&event));
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    println!("cpu, three limited lanes with a backlog: {:.2}% of a core each", worker.cpu_share().await / 3.0 * 100.0);
    println!("memory, three lanes with that backlog: {} MiB resident", worker.resident() >> 20);
    worker.end();
}

async fn produce(producer: &FutureProducer, user: &str) {
    let event = format!(r#"{{"userId":"{user}","context":{{"groupId":"acme"}},"traits":{{"plan":"pro"}}}}"#);
    let record = FutureRecord::to(TOPIC).key(user).payload(&event);
    producer.send(record, Duration::from_secs(10)).await.expect("the broker takes it");
}

struct Worker {
    child: Child,
}

impl Worker {
    fn start(config: &std::path::Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["run", "-c"])
            .arg(config)
            .stdout(Stdio::null())
            .spawn()
            .expect("the worker starts");
        Worker { child }
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// CPU seconds per second over a phase.
    async fn cpu_share(&mut self) -> f64 {
        let (before, began) = (self.cpu_seconds(), Instant::now());
        tokio::time::sleep(PHASE).await;
        (self.cpu_seconds() - before) / began.elapsed().as_secs_f64()
    }

    /// User and system time so far; Linux counts in hundredths of a second.
    fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("a running worker");
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let fields: Vec<f64> = after_name.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
        (fields[11] + fields[12]) / 100.0
    }

    fn resident(&self) -> usize {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.child.id())).unwrap_or_default();
        statm.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
    }
}
