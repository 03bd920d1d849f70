//! Events whose own times contradict the log: the log's order wins.

use sluicegate::testbed::simulator::{Kind, SimulatorSettings};

use crate::support::{QUICK, Worker, World, without_limits};

const VERSIONS: u32 = 5;

/// Returns an event whose own times are a year earlier for each version. Its plan is named after the version.
fn event(user: &str, version: u32) -> String {
    let year = 2026 - version;
    format!(
        r#"{{"type":"identify","userId":"{user}","messageId":"{user}-{version}","timestamp":"{year}-03-01T00:00:00Z","originalTimestamp":"{year}-03-01T00:00:00Z","sentAt":"{year}-03-01T00:00:00Z","context":{{"groupId":"acme"}},"traits":{{"version":{version},"email":"{user}@example.com","plan":"plan-{version}"}}}}"#
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn old_events_that_come_after_new_ones_win_in_the_logs_order_merged_or_one_by_one() {
    let settings: SimulatorSettings = without_limits();
    let mut world = World::start(2, settings).await;
    for version in 1..=VERSIONS {
        world.produce("merged", &event("merged", version)).await;
    }
    let blocks = Kind::ALL.map(|kind| world.block(kind.name(), kind, &format!("{QUICK}, batch: {{ linger: 0s }}")));
    let worker = Worker::start(&world.config(&blocks.concat())).await;
    for version in 1..=VERSIONS {
        world.produce("one-by-one", &event("one-by-one", version)).await;
        for kind in Kind::ALL {
            world.wait_committed(kind.name()).await;
        }
    }
    for kind in Kind::ALL {
        assert_eq!(world.wrong_state(kind), Vec::<String>::new(), "{kind:?}");
        let provider = world.simulator.provider(kind);
        for (user, state) in provider.users() {
            let state = state.to_string();
            assert!(state.contains(&format!("plan-{VERSIONS}")), "{kind:?} {user}: {state}");
        }
        let counters = provider.summary().counters;
        assert_eq!((counters.regressions, counters.overlaps), (0, 0), "{kind:?}");
        // Each event that came alone is one row. The number of rows for the merged events depends on how they were
        // fetched.
        assert!(counters.rows_received > u64::from(VERSIONS), "{kind:?}");
    }
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    assert_eq!(worker.metric("sluicegate_dead_letters_total", &[]).await, 0.0);
    worker.stop().await;
}
