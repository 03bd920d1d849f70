//! Tests of replicas that join, leave, die, freeze and thaw while there is more to send than the limit lets through.
//!
//! The replicas are processes in the same groups. The judge knows only what the simulated providers received, what was
//! committed, and a plain replay.
//!
//! The short scenarios always run, on librdkafka's mock cluster or on the broker that `SLUICEGATE_TEST_BROKERS` names.
//! The long ones take a quarter of an hour and need a real Kafka:
//!
//! ```text
//! SLUICEGATE_LONG_TESTS=1 SLUICEGATE_TEST_BROKERS=127.0.0.1:9092 cargo test --test replicas -- --nocapture
//! ```
//!
//! Four more variables change the runs.
//!
//! - `SLUICEGATE_SCENARIOS` takes only the scenarios whose names contain it.
//! - `SLUICEGATE_TEST_PROPERTIES` gives the long ones `kafka.properties` (`group.protocol: consumer`,
//!   `group.instance.id: replica-{name}`).
//! - `SLUICEGATE_TEST_BINARY` takes another build of the worker.
//! - `SLUICEGATE_TEST_LOGS` names a folder for the workers' logs and the times at which rows arrived.

mod backlog;
mod judge;
mod scenario;
mod stage;
#[allow(dead_code, unused_imports, reason = "each binary uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use judge::Judgement;
use scenario::Scenario;

/// Plays the scenarios at the same time, since they mostly wait, and prints what each provider saw.
async fn play(scenarios: Vec<Scenario>) {
    let chosen = std::env::var("SLUICEGATE_SCENARIOS").unwrap_or_default();
    let mut playing = tokio::task::JoinSet::new();
    for scenario in scenarios.into_iter().filter(|scenario| scenario.name.contains(&chosen)) {
        playing.spawn(async move { stage::play(&scenario).await });
    }
    let mut faults = Vec::new();
    println!("{}", Judgement::HEADER);
    while let Some(played) = playing.join_next().await {
        match played {
            Ok(judgements) => {
                for judgement in judgements {
                    println!("{judgement}");
                    faults.extend(judgement.faults);
                }
            }
            Err(panic) => faults.push(panic.to_string()),
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_the_limit_while_they_come_and_go() {
    play(scenario::short()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_the_limit_through_minutes_of_change_on_a_real_kafka() {
    if std::env::var_os("SLUICEGATE_LONG_TESTS").is_none() {
        return println!("skipped: takes a quarter of an hour; set SLUICEGATE_LONG_TESTS=1");
    }
    assert!(std::env::var_os("SLUICEGATE_TEST_BROKERS").is_some(), "needs a real Kafka: set SLUICEGATE_TEST_BROKERS");
    play(scenario::long(&std::env::var("SLUICEGATE_TEST_PROPERTIES").unwrap_or_default())).await;
}
