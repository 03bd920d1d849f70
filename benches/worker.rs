//! The costs of the whole worker, as a process with three lanes: latency, start, memory and CPU time.
//!
//! The latency is the time of a record from the producer to the provider, and the start is the time to the first
//! request. Memory and CPU time are those of idle lanes, and of lanes that the limit holds back.
//!
//! `cargo bench --bench worker` takes 100 seconds. The embedded broker and the simulated providers run in this process,
//! the worker in its own. With `SLUICEGATE_TEST_BROKERS=127.0.0.1:9092` a real Kafka takes the embedded broker's place.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::producer::{FutureProducer, FutureRecord};
use sluicegate::testbed::broker::EmbeddedBroker;
use sluicegate::testbed::simulator::{Kind, Simulator, SimulatorSettings};
use tempfile::NamedTempFile;

/// The number of partitions, as many as a small topic has.
const PARTITIONS: i32 = 8;

/// The number of records sent one by one for the latency figure.
const PROBES: usize = 10;

/// The number of starts of a worker whose group has committed positions.
const STARTS: usize = 5;

/// The time that CPU is measured for in each phase. At 1,200 rows a minute it is four requests of 100 rows.
const PHASE: Duration = Duration::from_secs(20);

/// The time until joins, first commits and log lines are over.
const SETTLED: Duration = Duration::from_secs(10);

/// The longest wait for anything here.
const DEADLINE: Duration = Duration::from_secs(30);

/// The users of the backlog: more than three lanes send in the whole of this bench.
const BACKLOG: usize = 20_000;

#[tokio::main]
async fn main() {
    let topic = format!("sluicegate-bench-worker-{}", std::process::id());
    // The embedded broker ends when this is dropped.
    let (brokers, embedded) = match std::env::var("SLUICEGATE_TEST_BROKERS") {
        Ok(brokers) => (brokers, None),
        Err(_) => {
            let broker = EmbeddedBroker::start(&[(&topic, PARTITIONS)]).expect("an embedded broker");
            (broker.bootstrap_servers().to_owned(), Some(broker))
        }
    };
    println!("broker: {}", if embedded.is_some() { "embedded" } else { "Kafka" });
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &brokers).set("linger.ms", "0");
    let admin: AdminClient<_> = client.create().expect("a client");
    if embedded.is_none() {
        let new = NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1));
        admin.create_topics(&[new], &AdminOptions::new()).await.expect("the topic is created");
    }
    let bench = Bench {
        simulator: Simulator::start(SimulatorSettings::default(), SocketAddr::from(([127, 0, 0, 1], 0)))
            .await
            .expect("a free port"),
        producer: client.create().expect("a producer"),
        brokers,
        topic,
        is_embedded: embedded.is_some(),
    };
    bench.latency().await;
    bench.start().await;
    bench.lanes().await;
    if embedded.is_none() {
        admin.delete_topics(&[&bench.topic], &AdminOptions::new()).await.expect("the topic is deleted");
    }
}

struct Bench {
    simulator: Simulator,
    producer: FutureProducer,
    brokers: String,
    topic: String,
    is_embedded: bool,
}

impl Bench {
    fn config(&self, group: &str) -> NamedTempFile {
        let blocks = Kind::ALL.map(|kind| {
            let (name, url) = (kind.name(), self.simulator.base_url());
            format!(
                "  {name}: {{ type: {name}, base_url: \"{url}\", token: demo-{name}-token, batch: {{ linger: 0s }} }}\n"
            )
        });
        // The embedded broker answers a fetch only when its wait is over; Kafka answers as soon as there is a record.
        // With the default of 500 ms the latency would be the embedded broker's.
        let briefly = if self.is_embedded && group != "lanes" { ", fetch.wait.max.ms: 5" } else { "" };
        let mut file = NamedTempFile::new().expect("a file");
        write!(
            file,
            "kafka: {{ brokers: \"{}\", topics: [{}], group: \"{}-{group}\", properties: {{ group.protocol: consumer{briefly} }} }}\n\
             http: {{ listen: 127.0.0.1:0 }}\nlog: {{ level: warn }}\ndestinations:\n{}",
            self.brokers,
            self.topic,
            self.topic,
            blocks.concat()
        )
        .expect("written");
        file
    }

    async fn produce(&self, user: &str) {
        let event = format!(r#"{{"userId":"{user}","context":{{"groupId":"acme"}},"traits":{{"plan":"pro"}}}}"#);
        let record = FutureRecord::to(&self.topic).key(user).payload(&event);
        self.producer.send(record, Duration::from_secs(10)).await.expect("the broker takes it");
    }

    /// Returns the time of the first arrival at a provider beyond those `seen`, once it is there.
    async fn arrival(&self, kind: Kind, seen: usize) -> Instant {
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some((at, _)) = self.simulator.provider(kind).arrivals().get(seen) {
                return *at;
            }
            assert!(Instant::now() < deadline, "nothing arrives at {}", kind.name());
            tokio::time::sleep(Duration::from_micros(500)).await;
        }
    }

    fn seen(&self, kind: Kind) -> usize {
        self.simulator.provider(kind).arrivals().len()
    }

    async fn latency(&self) {
        let config = self.config("existing");
        let worker = Worker::start(&config);
        self.produce("first").await;
        self.arrival(Kind::Vitally, 0).await;
        let mut took = Vec::new();
        for probe in 0..PROBES {
            // Long enough for the lane to be idle again after its last commit.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let (seen, sent) = (self.seen(Kind::Vitally), Instant::now());
            self.produce(&format!("probe-{probe}")).await;
            took.push(self.arrival(Kind::Vitally, seen).await.saturating_duration_since(sent));
        }
        worker.leave();
        took.sort_unstable();
        println!(
            "latency, idle lane, linger 0s: producer's send to the request's arrival, {PROBES} records: median {:?}, p90 {:?}, max {:?}",
            took[PROBES / 2],
            took[PROBES * 9 / 10],
            took[PROBES - 1]
        );
    }

    /// Measures the start of a worker that left its group cleanly, while a record waits.
    async fn start(&self) {
        let config = self.config("existing");
        let (mut first, mut last) = (Vec::new(), Vec::new());
        for start in 0..STARTS {
            let seen = Kind::ALL.map(|kind| self.seen(kind));
            self.produce(&format!("start-{start}")).await;
            let spawned = Instant::now();
            let worker = Worker::start(&config);
            let mut took = Vec::new();
            for (kind, seen) in Kind::ALL.into_iter().zip(seen) {
                took.push(self.arrival(kind, seen).await.saturating_duration_since(spawned));
            }
            first.extend(took.iter().min().copied());
            last.extend(took.iter().max().copied());
            // The next start must not find this one's row in flight.
            tokio::time::sleep(Duration::from_secs(2)).await;
            worker.leave();
        }
        first.sort_unstable();
        last.sort_unstable();
        println!(
            "start with an existing group to the first request, {STARTS} starts: median {:?}, max {:?}; to the first of every lane: median {:?}, max {:?}",
            first[STARTS / 2],
            first[STARTS - 1],
            last[STARTS / 2],
            last[STARTS - 1]
        );
    }

    async fn lanes(&self) {
        let config = self.config("lanes");
        let worker = Worker::start(&config);
        tokio::time::sleep(SETTLED).await;
        println!("memory, three idle lanes: {:.1} MiB resident", worker.resident());
        worker.watch("three idle lanes").await;
        for user in 0..BACKLOG {
            let event =
                format!(r#"{{"userId":"user-{user}","context":{{"groupId":"acme"}},"traits":{{"plan":"pro"}}}}"#);
            let key = format!("user-{user}");
            let _ = self.producer.send_result(FutureRecord::to(&self.topic).key(&key).payload(&event));
        }
        tokio::time::sleep(SETTLED).await;
        worker.watch("three limited lanes with a backlog").await;
        println!("memory, three lanes with {BACKLOG} users pending each: {:.1} MiB resident", worker.resident());
        worker.leave();
    }
}

/// A running worker, killed when it is dropped.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The CPU time and the wake-ups of the threads of one name.
#[derive(Clone, Copy, Default)]
struct Used {
    threads: usize,
    cpu: Duration,
    wakeups: u64,
}

impl Worker {
    fn start(config: &NamedTempFile) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
        command.args(["run", "-c"]).arg(config.path()).stdout(Stdio::null());
        Worker(command.spawn().expect("the worker starts"))
    }

    /// Stops the worker, which commits and leaves its groups.
    fn leave(mut self) {
        let stopped = Command::new("kill").arg(self.0.id().to_string()).status();
        assert!(stopped.is_ok_and(|status| status.success()), "the worker has ended by itself");
        let _ = self.0.wait();
    }

    /// Prints the CPU time and the wake-ups of a phase, by thread.
    async fn watch(&self, phase: &str) {
        let (before, began) = (self.used(), Instant::now());
        tokio::time::sleep(PHASE).await;
        let (after, took) = (self.used(), began.elapsed());
        let mut used: Vec<(String, Used)> = after
            .into_iter()
            .map(|(name, used)| {
                let before = before.get(&name).copied().unwrap_or_default();
                let (cpu, wakeups) = (used.cpu.saturating_sub(before.cpu), used.wakeups.saturating_sub(before.wakeups));
                (name, Used { threads: used.threads, cpu, wakeups })
            })
            .collect();
        used.sort_by_key(|(_, used)| std::cmp::Reverse(used.cpu));
        let share = |cpu: Duration| cpu.as_secs_f64() / took.as_secs_f64() * 100.0;
        let per_second = |wakeups: u64| wakeups as f64 / took.as_secs_f64();
        println!(
            "cpu, {phase}: {:.2}% of a core together, {:.0} wake-ups a second",
            share(used.iter().map(|(_, used)| used.cpu).sum()),
            per_second(used.iter().map(|(_, used)| used.wakeups).sum())
        );
        for (name, Used { threads, cpu, wakeups }) in used {
            println!("  {name:<16} x{threads:<3} {:>6.2}% {:>7.1}/s", share(cpu), per_second(wakeups));
        }
    }

    /// Returns what the threads of each name have used so far.
    fn used(&self) -> BTreeMap<String, Used> {
        let mut all: BTreeMap<String, Used> = BTreeMap::new();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.0.id())).expect("a running worker");
        for task in tasks.flatten() {
            // A thread may end while this reads its files.
            let text = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let used = all.entry(text("comm").trim().to_owned()).or_default();
            used.threads += 1;
            let nanos = text("schedstat").split_whitespace().next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
            used.cpu += Duration::from_nanos(nanos);
            used.wakeups += text("status")
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok())
                .unwrap_or(0);
        }
        all
    }

    fn resident(&self) -> f64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.0.id())).unwrap_or_default();
        let pages: f64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0.0);
        pages * 4096.0 / f64::from(1 << 20)
    }
}
