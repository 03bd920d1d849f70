//! Loads that are not spread evenly: one user with half of all events, one partition with nearly all events.

use serde_json::json;
use sluicegate::testbed::simulator::Kind;

use crate::is_long;
use crate::support::{Worker, World, until, without_limits};

type Event = (Vec<u8>, Option<Vec<u8>>);

fn event(user: &str, version: usize) -> Event {
    let event = json!({ "userId": user, "context": { "groupId": "acme" }, "traits": { "version": version } });
    (user.as_bytes().to_vec(), Some(event.to_string().into_bytes()))
}

/// Returns events of the hot user and of other users in turn. Each other user has one event.
fn half_hot(from: usize, to: usize) -> Vec<Event> {
    (from..to).flat_map(|n| [event("hot", n + 1), event(&format!("user-{n}"), 1)]).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_half_of_all_events_gets_a_row_in_turn_and_starves_no_user() {
    let (chunk, chunks, limit) = if is_long() { (3_000, 10, 12_000) } else { (200, 4, 6_000) };
    let mut world = World::start(4, without_limits()).await;
    world.produce_all(half_hot(0, chunk)).await;
    let more = format!("mode: single, limit: {{ rows_per_minute: {limit} }}, batch: {{ linger: 0s }}");
    let worker = Worker::start(&world.config(&world.block("vitally", Kind::Vitally, &more))).await;
    let provider = world.simulator.provider(Kind::Vitally).clone();
    // The next chunk comes while much of the one before waits, so other users are always in front of the hot user.
    for n in 1..chunks {
        until("half of the chunk before is delivered", async || provider.summary().user_count > n * chunk - chunk / 2)
            .await;
        world.produce_all(half_hot(n * chunk, (n + 1) * chunk)).await;
    }
    world.wait_committed("vitally").await;
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    let counters = provider.summary().counters;
    let others = (chunk * chunks) as u64;
    let hot = counters.rows_received - others;
    println!("{others} events of one user in {hot} rows beside as many users with one row each");
    // The hot user has one row for the events at the start, then one a chunk. Each row waits behind the users who came
    // before it. A chunk that is written while rows leave can be met in two halves.
    assert!((1..=2 * chunks as u64).contains(&hot), "{hot} rows of the hot user");
    assert_eq!((counters.regressions, counters.overlaps), (0, 0));
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    assert_eq!(worker.metric("sluicegate_dead_letters_total", &[]).await, 0.0);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_quiet_partitions_do_not_wait_for_the_backlog_of_a_hot_one() {
    const PARTITIONS: i32 = 16;
    const HOT: usize = 20_000;
    let world = &mut World::start(PARTITIONS, without_limits()).await;
    let all: Vec<Event> = (0..HOT).map(|n| event(&format!("hot-{n}"), 1)).collect();
    world.produce_all_to(Some(0), all).await;
    // An eighth of the backlog fills the buffer. It is the smallest buffer that an event of the largest size fits into.
    let more = "limit: { rows_per_minute: 120000 }, batch: { linger: 0s }, request: { timeout: 5s }, buffer: { max_bytes: 1MiB }";
    let worker = Worker::start(&world.config(&world.block("vitally", Kind::Vitally, more))).await;
    let provider = world.simulator.provider(Kind::Vitally).clone();
    until("the hot partition's rows leave", async || provider.summary().user_count > 200).await;
    for partition in 1..PARTITIONS {
        let (_, payload) = event(&format!("quiet-{partition}"), 1);
        world.produce_at(partition, None, payload.as_deref()).await;
    }
    let before = provider.summary().user_count;
    let delivered = loop {
        let users = provider.users();
        if (1..PARTITIONS).all(|partition| users.contains_key(&format!("quiet-{partition}"))) {
            break users.len();
        }
        assert!(users.len() < HOT, "all of the hot partition went first");
        // A look at all these users takes its time.
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    println!("quiet partitions' users written after {before} users and delivered after {delivered} of {HOT}");
    world.wait_committed("vitally").await;
    assert_eq!(world.wrong_state(Kind::Vitally), Vec::<String>::new());
    let counters = provider.summary().counters;
    assert_eq!((counters.regressions, counters.overlaps), (0, 0));
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    worker.stop().await;
}
