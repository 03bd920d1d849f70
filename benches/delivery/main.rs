//! The speed of delivery without a limit, from a real Kafka to a provider that answers at once, next to bare client libraries.
//!
//! Rows go in batches of 100 and one by one, in one run with one core for the measured process.
//!
//! Run it with `SLUICEGATE_TEST_BROKERS=127.0.0.1:9092 cargo bench --bench delivery`, or add `-- single` for the cases
//! of that name. It needs `taskset`. The measured process runs on core 1, and everything else here on core 0; with
//! `SLUICEGATE_BENCH_BROKER_PID` the broker too. The events are written once, to topics of their own, and later runs
//! read them again. `SLUICEGATE_BENCH_ROUNDS=5` measures each case five times, and `SLUICEGATE_BENCH_WORKER=path`
//! measures another build of the worker.

mod baseline;
#[path = "../shared/parsed.rs"]
mod parsed;
mod process;
mod provider;
mod topic;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer as _;
use rdkafka::{Offset, TopicPartitionList};

use process::{Figures, Killed, child, cpu_seconds, peak_mib, pin, pinned};
use provider::Provider;

/// The requests in flight of the cases; 64 is the default of one-row modes.
const IN_FLIGHT: [usize; 3] = [1, 8, 64];

/// The variables that hold the role of a child, and the arguments of that role.
const ROLE: &str = "SLUICEGATE_BENCH_ROLE";
const BROKERS: &str = "SLUICEGATE_TEST_BROKERS";
const IN_FLIGHT_OF_CHILD: &str = "SLUICEGATE_BENCH_IN_FLIGHT";
const URL: &str = "SLUICEGATE_BENCH_URL";
const BODY: &str = "SLUICEGATE_BENCH_BODY";

/// The buffer of the lane. Reading is faster than sending, so the buffer is full, and its size is most of the peak. A
/// lane without a limit does not need the default of 256 MiB, which is for merging pending rows.
const BUFFER: &str = "64MiB";

/// The longest time for anything here.
const DEADLINE: Duration = Duration::from_secs(120);

/// The work of an adapter, with as many events as take about ten seconds.
struct Load {
    name: &'static str,
    /// The mode of the Vitally adapter.
    mode: &'static str,
    topic: &'static str,
    events: usize,
}

const BATCHES: Load =
    Load { name: "batches of 100", mode: "batch", topic: "sluicegate-bench-delivery", events: 1_000_000 };
const SINGLE: Load =
    Load { name: "single rows", mode: "single", topic: "sluicegate-bench-delivery-single", events: 150_000 };

fn main() {
    let Ok(brokers) = std::env::var(BROKERS) else {
        return println!("skipped: set {BROKERS} to a Kafka of your own");
    };
    match std::env::var(ROLE).as_deref() {
        Ok("parse") => baseline::parse(&brokers),
        Ok("post") => baseline::post(),
        _ => measure(&brokers),
    }
}

fn measure(brokers: &str) {
    pin(&std::process::id().to_string());
    for load in [&BATCHES, &SINGLE] {
        topic::write(brokers, load);
    }
    if let Ok(pid) = std::env::var("SLUICEGATE_BENCH_BROKER_PID") {
        pin(&pid);
    }
    let rounds = std::env::var("SLUICEGATE_BENCH_ROUNDS").map_or(3, |text| text.parse().expect("a number of rounds"));
    // Cargo adds the argument `--bench`.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let provider = Provider::start();
    let mut measured: BTreeMap<String, Vec<Figures>> = BTreeMap::new();
    let mut note = |round: usize, name: String, figures: Figures| {
        print(&format!("round {}: {name}", round + 1), figures);
        measured.entry(name).or_default().push(figures);
    };
    for round in 0..rounds {
        note(round, PARSE.to_owned(), child("parse", &[(BROKERS, brokers)]));
        for load in [&BATCHES, &SINGLE] {
            for in_flight in IN_FLIGHT {
                let name = case(load, in_flight);
                if !name.contains(&filter) {
                    continue;
                }
                note(round, name, deliver(brokers, load, in_flight, round, &provider));
                if load.mode == SINGLE.mode {
                    note(round, floor(in_flight), post(provider.url(), &provider.body(), in_flight));
                }
            }
        }
    }
    println!("\nmedians of {rounds}");
    let median = |name: &str| measured.get(name).map(|figures| median(figures));
    let parse = median(PARSE).expect("measured in every round");
    print(PARSE, parse);
    for (load, in_flight) in [&BATCHES, &SINGLE].into_iter().flat_map(|load| IN_FLIGHT.map(|n| (load, n))) {
        let Some(worker) = median(&case(load, in_flight)) else { continue };
        print(&case(load, in_flight), worker);
        let (beside, what) = match median(&floor(in_flight)).filter(|_| load.mode == SINGLE.mode) {
            Some(bare) => {
                print(&floor(in_flight), bare);
                (bare, "the bare loop")
            }
            None => (parse, "the parsing loop"),
        };
        println!(
            "  {:.0}% of the rate of {what}, {:.1} times its CPU",
            100.0 * worker.rate / beside.rate,
            worker.cpu_seconds_per_million / beside.cpu_seconds_per_million
        );
    }
}

const PARSE: &str = "consumer that parses";

fn case(load: &Load, in_flight: usize) -> String {
    format!("{}, {in_flight} in flight", load.name)
}

fn floor(in_flight: usize) -> String {
    format!("bare POST loop, {in_flight} in flight")
}

fn print(name: &str, figures: Figures) {
    let Figures { rate, cpu_seconds_per_million, peak_mib } = figures;
    println!("{name:<40} {rate:>8.0}/s {cpu_seconds_per_million:>6.1} CPU s per million {peak_mib:>5.0} MiB");
}

fn median(figures: &[Figures]) -> Figures {
    let of = |part: fn(&Figures) -> f64| {
        let mut parts: Vec<f64> = figures.iter().map(part).collect();
        parts.sort_by(f64::total_cmp);
        parts[parts.len() / 2]
    };
    Figures {
        rate: of(|figures| figures.rate),
        cpu_seconds_per_million: of(|figures| figures.cpu_seconds_per_million),
        peak_mib: of(|figures| figures.peak_mib),
    }
}

/// Measures the bare loop with a body that the worker sent.
fn post(url: &str, body: &str, in_flight: usize) -> Figures {
    let url = format!("{url}/analytics/v1/user");
    child("post", &[(BROKERS, ""), (URL, &url), (BODY, body), (IN_FLIGHT_OF_CHILD, &in_flight.to_string())])
}

/// Measures the worker with a fresh group, from the first event that it reads to the last row that arrives.
///
/// # Panics
/// Unless every row arrives once and every partition is committed to its end when the worker has left.
fn deliver(brokers: &str, load: &Load, in_flight: usize, round: usize, provider: &Provider) -> Figures {
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let mut config = tempfile::NamedTempFile::new().expect("a file");
    let Load { mode, topic, events, .. } = *load;
    let group = format!("bench-{}-{mode}-{in_flight}-{round}", std::process::id());
    let url = provider.url();
    write!(
        config,
        "kafka: {{ brokers: \"{brokers}\", topics: [{topic}], group: {group}, properties: {{ group.protocol: consumer }} }}\n\
         http: {{ listen: \"127.0.0.1:{port}\" }}\n\
         log: {{ level: error }}\n\
         destinations:\n  vitally: {{ type: vitally, mode: {mode}, base_url: \"{url}\", token: none, limit: {{ rows_per_minute: unlimited }}, buffer: {{ max_bytes: {BUFFER} }}, request: {{ max_in_flight: {in_flight} }} }}\n",
    )
    .expect("written");
    provider.expect(events);
    let program =
        std::env::var("SLUICEGATE_BENCH_WORKER").unwrap_or_else(|_| env!("CARGO_BIN_EXE_sluicegate").to_owned());
    let mut command = pinned(&program);
    command.args(["run", "-c"]).arg(config.path());
    let mut worker = Killed(command.stdout(Stdio::null()).spawn().expect("taskset is installed"));
    let pid = worker.0.id();
    let (began, cpu_before) = first_event(pid, port);
    let deadline = began + DEADLINE;
    let ended = loop {
        if let Some(at) = provider.all_arrived() {
            break at;
        }
        assert!(Instant::now() < deadline, "{} of {events} rows after {DEADLINE:?}", provider.rows());
        std::thread::sleep(Duration::from_millis(5));
    };
    let figures = Figures {
        rate: events as f64 / ended.duration_since(began).as_secs_f64(),
        cpu_seconds_per_million: (cpu_seconds(pid) - cpu_before) * 1e6 / events as f64,
        peak_mib: peak_mib(pid),
    };
    let stopped = Command::new("kill").args(["-TERM", &pid.to_string()]).status();
    assert!(stopped.is_ok_and(|status| status.success()), "cannot stop the worker");
    assert!(worker.0.wait().is_ok_and(|status| status.success()), "the worker does not end well");
    assert_eq!(provider.rows(), events, "rows that were sent twice");
    let mut committed = TopicPartitionList::new();
    let ends = topic::ends(brokers, load);
    for (partition, _) in &ends {
        committed.add_partition(topic, *partition);
    }
    let committed = topic::consumer(brokers, &format!("{group}.vitally"))
        .committed_offsets(committed, Duration::from_secs(10))
        .expect("positions of the group");
    for (partition, end) in ends {
        let position = committed.find_partition(topic, partition).map(|element| element.offset());
        assert_eq!(position, Some(Offset::Offset(end)), "partition {partition} is not committed to its end");
    }
    figures
}

/// Returns the last moment at which the worker had read nothing, and its CPU time by then.
fn first_event(pid: u32, port: u16) -> (Instant, f64) {
    let url = format!("http://127.0.0.1:{port}/metrics");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let client = reqwest::Client::new();
        let deadline = Instant::now() + DEADLINE;
        let mut last = (Instant::now(), cpu_seconds(pid));
        loop {
            let looked = (Instant::now(), cpu_seconds(pid));
            assert!(looked.0 < deadline, "the worker reads nothing");
            if let Ok(reply) = client.get(&url).send().await {
                let text = reply.text().await.unwrap_or_default();
                let line = text.lines().find_map(|line| line.strip_prefix("sluicegate_events_consumed_total{"));
                if line.is_some_and(|line| !line.ends_with(" 0")) {
                    break last;
                }
            }
            last = looked;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
}
