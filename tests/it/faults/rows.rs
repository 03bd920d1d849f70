//! Rows that a provider cannot accept, next to rows that it can.

use serde_json::json;
use sluicegate::testbed::simulator::{Faults, Kind};

use super::{QUICK, all_delivered, event, lane_metric, retries, roomy, round, set};
use crate::support::{Worker, World, until};

/// Returns the blocks of all three providers in the modes that send the most rows at a time.
fn wide_blocks(world: &World, settings: &str) -> String {
    let bulk = format!("mode: bulk, {settings}");
    [
        world.block("vitally", Kind::Vitally, settings),
        world.block("vibefollow", Kind::Vibefollow, &bulk),
        world.block("userpilot", Kind::Userpilot, settings),
    ]
    .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_makes_every_request_fail_ends_alone_while_its_mates_arrive() {
    let mut world = World::start(1, roomy()).await;
    let settings = QUICK
        .replace("batch: { linger: 0s }", "batch: { linger: 0s, max_rows: 20 }")
        .replace("max: 500ms", "max: 200ms, max_attempts: 3");
    let toxic = |user: u64| if user == 7 { json!({ "toxic": true }) } else { json!({}) };
    world.produce_all((0..60).map(|user| event(&format!("user-{user:02}"), 1, toxic(user)))).await;
    let worker = Worker::start(&world.config(&wide_blocks(&world, &settings))).await;
    for kind in Kind::ALL {
        let provider = world.simulator.provider(kind).clone();
        until(&format!("{kind:?}: its mates arrive"), async || {
            provider.users().keys().filter(|user| user.starts_with("user-")).count() == 59
        })
        .await;
        // Other rows keep succeeding, which makes it the row's own fault.
        let mut version = 1;
        while lane_metric(&worker, "sluicegate_dead_letters_total", kind.name()).await == 0.0 {
            version += 1;
            assert!(version < 1000, "{kind:?}: the row does not end");
            world.produce_all([event(&format!("walker-{}", kind.name()), version, json!({}))]).await;
            until("the walker is through", async || {
                provider.users().get(&format!("walker-{}", kind.name())).is_some_and(|user| {
                    [&user["traits"], &user["metadata"]].iter().any(|traits| traits["version"] == version)
                })
            })
            .await;
        }
        world.wait_committed(kind.name()).await;
        let letters = world.dead_letters(kind.name());
        assert_eq!(letters.len(), 1, "{kind:?}");
        assert_eq!(letters[0].key.as_deref(), Some(b"user-07".as_slice()), "{kind:?}");
        assert_eq!(letters[0].headers["sluicegate.class"], "exhausted", "{kind:?}");
        let attempts: u32 = letters[0].headers["sluicegate.attempts"].parse().expect("a number");
        assert!(attempts >= 3, "{kind:?}: {attempts}");
        assert!(!provider.users().contains_key("user-07"));
        assert_eq!(provider.summary().counters.regressions, 0);
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_makes_every_request_fail_does_not_hold_its_mates_back_when_no_other_row_comes() {
    let mut world = World::start(1, roomy()).await;
    let settings = QUICK.replace("max: 500ms", "max: 100ms, max_attempts: 3");
    let toxic = |user: u64| if user == 7 { json!({ "toxic": true }) } else { json!({}) };
    world.produce_all((0..20).map(|user| event(&format!("user-{user:02}"), 1, toxic(user)))).await;
    let worker = Worker::start(&world.config(&world.block("vitally", Kind::Vitally, &settings))).await;
    let provider = world.simulator.provider(Kind::Vitally);
    until("its mates arrive", async || provider.users().len() == 19).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_is_halved_until_it_fits() {
    let mut world = World::start(1, roomy()).await;
    for kind in Kind::ALL {
        set(&world, kind, Faults { max_bytes: Some(3_000), ..Faults::default() });
    }
    // The first requests are small, so the test needs more rows than these hold.
    world.produce_all(round(300, 1)).await;
    let worker = Worker::start(&world.config(&wide_blocks(&world, QUICK))).await;
    for kind in Kind::ALL {
        all_delivered(&world, &worker, kind).await;
        assert!(retries(&worker, kind.name(), "split").await > 0.0, "{kind:?}");
        let statuses = world.simulator.provider(kind).summary().counters.statuses;
        assert!(statuses[&413] > 0, "{kind:?}: {statuses:?}");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_too_large_alone_is_a_dead_letter_and_the_others_arrive() {
    let mut world = World::start(1, roomy()).await;
    for kind in Kind::ALL {
        set(&world, kind, Faults { max_bytes: Some(3_000), ..Faults::default() });
    }
    let wide = |user: u64| if user == 3 { json!({ "plan": "x".repeat(4_000) }) } else { json!({}) };
    world.produce_all((0..20).map(|user| event(&format!("user-{user:02}"), 1, wide(user)))).await;
    let worker = Worker::start(&world.config(&wide_blocks(&world, QUICK))).await;
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
        let letters = world.dead_letters(kind.name());
        assert_eq!(letters.len(), 1, "{kind:?}");
        assert_eq!(letters[0].key.as_deref(), Some(b"user-03".as_slice()), "{kind:?}");
        assert_eq!(letters[0].headers["sluicegate.reason"], "row_too_large", "{kind:?}");
        assert_eq!(letters[0].headers["sluicegate.status"], "413", "{kind:?}");
        assert_eq!(world.simulator.provider(kind).users().len(), 19, "{kind:?}");
        assert_eq!(lane_metric(&worker, "sluicegate_ledger_difference", kind.name()).await, 0.0);
    }
    worker.stop().await;
}
