//! A destination that is down next to others that are well: its lane holds up only its own commits and fills only its buffer.

use sluicegate::testbed::simulator::Kind;

use super::{Behind, QUICK, all_delivered, lane_metric, no_overlaps, retries, round, wait_state};
use crate::proxy::{End, Fault};
use crate::support::{Worker, until};

/// A small event size, since an event may not be larger than a buffer.
const SMALL: &str = "events: { max_bytes: 4KiB }";
/// A small buffer, which is full soon.
const BUFFER: &str = "buffer: { max_bytes: 16KiB }";

/// Breaks the lane of `down` with this fault while the others deliver more than its buffer holds.
async fn others_go_on(down: Kind, fault: Fault, reason: &str) {
    const USERS: u64 = 100;
    let mut behind = Behind::start(2).await;
    let blocks = Kind::ALL.map(|kind| {
        let settings = if kind == down { QUICK.replace("timeout: 5s", "timeout: 1s") } else { QUICK.to_owned() };
        behind.block(kind, &format!("{settings}, {BUFFER}"))
    });
    let config = behind.world.config_with(SMALL, &blocks.concat());
    let worker = Worker::start(&config).await;
    behind.warm(10).await;
    behind.proxy(down).set(fault);
    let id = down.name();
    let well: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| *kind != down).collect();
    let mut held = Vec::new();
    for version in 2..=3 {
        behind.world.produce_all(round(USERS, version)).await;
        let events = behind.world.log.len() as f64;
        for kind in &well {
            until("the others settle everything", async || {
                lane_metric(&worker, "sluicegate_events_settled_total", kind.name()).await == events
            })
            .await;
        }
        until("its own buffer is full", async || lane_metric(&worker, "sluicegate_partitions_paused", id).await == 2.0)
            .await;
        held.push(lane_metric(&worker, "sluicegate_pending_bytes", id).await);
    }
    let limit = lane_metric(&worker, "sluicegate_pending_bytes_limit", id).await;
    assert!(held[0] >= limit && held[0] == held[1], "{id} holds ever more: {held:?} of {limit}");
    wait_state(&worker, id, "backing_off").await;
    assert!(retries(&worker, id, reason).await > 0.0, "{id}");
    assert!(behind.world.committed(id).0 <= 10, "{id} commits what was never delivered");
    for kind in &well {
        all_delivered(&behind.world, &worker, *kind).await;
        no_overlaps(&behind.world, *kind);
        assert_eq!(lane_metric(&worker, "sluicegate_partitions_paused", kind.name()).await, 0.0, "{kind:?}");
        for any in ["connect", "reset", "server", "protocol"] {
            assert_eq!(retries(&worker, kind.name(), any).await, 0.0, "{kind:?}: {any}");
        }
    }
    behind.proxy(down).set(Fault::None);
    behind.all_well(&worker).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vitally_as_a_black_hole_fills_its_own_buffer_and_holds_up_no_other_lane() {
    others_go_on(Kind::Vitally, Fault::BlackHole, "timeout").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vibefollow_as_a_black_hole_fills_its_own_buffer_and_holds_up_no_other_lane() {
    others_go_on(Kind::Vibefollow, Fault::BlackHole, "timeout").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn userpilot_resetting_all_fills_its_own_buffer_and_holds_up_no_other_lane() {
    others_go_on(Kind::Userpilot, Fault::Error(End::Reset), "reset").await;
}
