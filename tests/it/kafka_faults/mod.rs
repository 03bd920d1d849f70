//! The faults of Kafka, one at a time: no event is lost, no commit runs ahead of delivery, and the lane names the fault.
//!
//! | fault | tests (in `kafka_client`, `delivery` or a module here) |
//! |---|---|
//! | partitions are revoked or lost while requests are in flight | `revoke`; `kafka_client::groups::a_revoke_*`, `delivery::two_workers_*` |
//! | a commit fails: generation, member, epoch, rebalance, coordinator, time-out, metadata, connection | `commits` |
//! | commits fail for longer than a session | `commits::commits_refused_for_longer_*` |
//! | all brokers down for 1 s, 60 s, 10 min; stopped; killed | `outage::brokers_that_are_down_*`, `real::a_kafka_that_is_*` |
//! | worker started or stopped during an outage | `outage::a_worker_that_starts_*`, `outage::sigterm_amid_*` |
//! | leader, coordinator, one broker of three | `outage::leaders_*`, `outage::a_coordinator_*`, `outage::one_broker_*` |
//! | answers after 2 s, fetch errors, throttling | `slow`, `real::a_broker_that_throttles_*` |
//! | retention overtakes the reader | `log::a_log_that_*` |
//! | a topic created again, partitions added, a log that was cut, transactions | `positions`; `kafka_client::places` |
//! | a new group, deleted offsets | `log::a_new_group_*`, `log::latest_is_chosen_once_*`, `log::deleted_offsets_*` |
//! | a right is taken or missing | `rights` |
//! | dead-letter topic that is missing, refuses, or does not answer | `dead_letter_topic`, `real::a_dead_letter_topic_*` |

mod commits;
mod dead_letter_topic;
mod log;
mod outage;
mod own_kafka;
mod positions;
mod real;
mod revoke;
mod rights;
mod slow;

use std::collections::BTreeSet;
use std::time::Duration;

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::json;
use sluicegate::config::Config;
use sluicegate::testbed::broker::EmbeddedBroker;
use sluicegate::testbed::simulator::{Faults, Kind, Latency, Snapshot};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::support::{Worker, World, metric, until};

/// Every lane here is Vitally's, in batches, since one lane shows the effect of Kafka on any lane.
const KIND: Kind = Kind::Vitally;
const ID: &str = "vitally";

/// Fast settings, so that the lane never waits longer than a test.
const FAST: &str = "limit: { rows_per_minute: 60000 }, batch: { max_rows: 20, linger: 0s }, request: { timeout: 2s }, \
                    retry: { initial: 50ms, max: 500ms }";

/// 100 rows a second, so that a backlog of some hundred rows outlasts a fault of some seconds.
const PACED: &str = "limit: { rows_per_minute: 6000 }, batch: { max_rows: 10, linger: 0s }, request: { timeout: 2s }, \
                     retry: { initial: 50ms, max: 500ms }";

/// The protocol whose members join within a moment, also on the mock cluster.
const NEW_PROTOCOL: &str = "group.protocol: consumer";

/// The classic protocol, with the shortest session that Kafka grants by default (group.min.session.timeout.ms).
const CLASSIC: &str = "session.timeout.ms: 6000, heartbeat.interval.ms: 500";

fn embedded(world: &World) -> Option<&EmbeddedBroker> {
    if world.embedded.is_none() {
        println!("skipped: only the embedded broker injects faults");
    }
    world.embedded.as_ref()
}

fn received_by(world: &World, kind: Kind) -> u64 {
    world.simulator.provider(kind).summary().counters.rows_received
}

/// Returns true if the broker is a real one, which injects no faults.
fn no_faults_to_inject() -> bool {
    let is_real = std::env::var("SLUICEGATE_TEST_BROKERS").is_ok();
    if is_real {
        println!("skipped: only the embedded broker injects faults");
    }
    is_real
}

fn broker(world: &World) -> &EmbeddedBroker {
    world.embedded.as_ref().expect("embedded")
}

/// Makes the next requests of this kind fail with these errors.
fn refuse(world: &World, api: RDKafkaApiKey, codes: &[RDKafkaRespErr]) {
    broker(world).request_errors(api, codes).expect("an answer");
}

/// Returns the configuration of a lane with these settings and these properties of librdkafka.
fn config(world: &World, settings: &str, properties: &str) -> Config {
    config_with_drain(world, settings, properties, "6s")
}

/// Returns the same configuration with this `shutdown.drain`.
fn config_with_drain(world: &World, settings: &str, properties: &str, drain: &str) -> Config {
    let yaml = world.yaml(&world.block(ID, KIND, settings), properties, drain);
    Config::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems}\n{yaml}"))
}

/// Generates one event of this version for each of these users.
fn events(users: std::ops::Range<u32>, version: u32) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    users.map(move |n| {
        let event = json!({
            "type": "identify", "userId": format!("user-{n}"), "messageId": format!("{n}-{version}"),
            "traits": { "version": version, "email": format!("user-{n}@example.com"), "company": { "id": "acme" } },
        });
        (format!("user-{n}").into_bytes(), Some(event.to_string().into_bytes()))
    })
}

fn latency(world: &World, min_ms: u64, max_ms: u64) {
    let latency = Some(Latency { min_ms, max_ms });
    world.simulator.provider(KIND).set_faults(Faults { latency, ..Faults::default() });
}

fn summary(world: &World) -> Snapshot {
    world.simulator.provider(KIND).summary()
}

fn received(world: &World) -> u64 {
    summary(world).counters.rows_received
}

async fn wait_state(worker: &Worker, state: &str) {
    until(&format!("the lane is {state}"), async || worker.state(ID).await == state).await;
}

/// Asserts that a lane which has committed the whole log is well. The provider holds the log's state, no user was set
/// back or in flight twice, and the ledger adds up. There are `letters` dead letters, and a fresh event gets through.
async fn all_well(world: &mut World, worker: &Worker, letters: usize) {
    finish(world, async |_| worker.get("/metrics").await.1, letters).await;
}

/// Asserts the same of the worker that serves these metrics.
async fn finish(world: &mut World, mut metrics: impl AsyncFnMut(&World) -> String, letters: usize) {
    for is_fresh in [false, true] {
        if is_fresh {
            world.produce_all(events(9_000..9_001, 1)).await;
        }
        world.wait_committed(ID).await;
        assert_eq!(world.wrong_state(KIND), Vec::<String>::new());
        let summary = summary(world);
        assert_eq!((&summary.regressions[..], &summary.overlaps[..]), (&[][..], &[][..]));
        assert_eq!(summary.counters.keys_reused, 0);
        let text = metrics(world).await;
        assert_eq!(metric(&text, "sluicegate_ledger_difference", &[]), 0.0);
        assert_eq!(metric(&text, "sluicegate_pending_events", &[]), 0.0);
    }
    assert!(world.simulator.provider(KIND).users().contains_key("user-9000"), "the fresh event did not get through");
    let found = world.dead_letters(ID);
    let offsets: BTreeSet<&str> = found.iter().map(|letter| letter.header("sluicegate.first_offset")).collect();
    assert_eq!(offsets.len(), letters, "{found:?}");
}

/// Reads the group's commits without pause. The committed sum never decreases, and never exceeds the number of rows
/// that the provider has applied. Only for logs in which each event is a row of its own.
struct CommitWatch {
    stop: watch::Sender<bool>,
    task: JoinHandle<i64>,
}

impl CommitWatch {
    fn start(world: &World) -> CommitWatch {
        let (stop, stopped) = watch::channel(false);
        let group = world.group_view(ID);
        let provider = world.simulator.provider(KIND).clone();
        let task = tokio::task::spawn_blocking(move || {
            let mut last = 0;
            // A test that fails drops the sender. Without this check its runtime would wait here forever.
            while !*stopped.borrow() && stopped.has_changed().is_ok() {
                if let Some(committed) = group.committed() {
                    let applied = provider.summary().counters.rows_applied;
                    assert!(committed >= last, "committed {committed} after {last}");
                    assert!(committed <= applied as i64, "committed {committed}, and the provider has {applied}");
                    last = committed;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            last
        });
        CommitWatch { stop, task }
    }

    /// Ends the watch and returns the last committed sum that it saw.
    async fn end(self) -> i64 {
        self.stop.send_replace(true);
        self.task.await.expect("no commit was ahead")
    }
}
