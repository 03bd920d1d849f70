//! A provider that is down, in every way of being down, and comes back.

use sluicegate::testbed::simulator::{Kind, Mishap, Step};

use super::{QUICK, all_delivered, event, lane_metric, no_overlaps, outage, retries, roomy, round, script, set};
use crate::support::{Worker, World, until};

/// Runs all three lanes through the same outage while newer events of the same users arrive. `states` lists the states
/// that a lane may report, with `|` between.
async fn survive(step: Step, settings: &str, states: &str, reason: &str) {
    let mut world = World::start(2, roomy()).await;
    Kind::ALL.iter().for_each(|kind| set(&world, *kind, outage(step.clone())));
    let blocks = Kind::ALL.map(|kind| world.block(kind.name(), kind, settings)).concat();
    let worker = Worker::start(&world.config(&blocks)).await;
    world.produce_all(round(30, 1)).await;
    for kind in Kind::ALL {
        until(&format!("{kind:?} is {states}"), async || {
            let state = worker.state(kind.name()).await;
            states.split('|').any(|one| one == state)
        })
        .await;
        until("requests are tried again", async || retries(&worker, kind.name(), reason).await > 0.0).await;
    }
    world.produce_all(round(40, 2)).await;
    for kind in Kind::ALL {
        let id = kind.name();
        until("the newer events are read", async || {
            lane_metric(&worker, "sluicegate_events_consumed_total", id).await == 70.0
        })
        .await;
        let tried = retries(&worker, id, reason).await;
        until("tries go on", async || retries(&worker, id, reason).await > tried).await;
        let state = worker.state(id).await;
        assert!(states.split('|').any(|one| one == state), "{id}: {state}");
        assert_eq!(world.committed(id).0, 0, "{id} commits nothing");
        set(&world, kind, sluicegate::testbed::simulator::Faults::default());
    }
    for kind in Kind::ALL {
        all_delivered(&world, &worker, kind).await;
        until("the outage is over", async || worker.state(kind.name()).await == "idle").await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_with_503_loses_nothing() {
    survive(Step::Status(503), QUICK, "backing_off", "server").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_reset_lose_nothing() {
    survive(Step::Named(Mishap::Reset), QUICK, "backing_off", "reset").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_never_come_lose_nothing() {
    let settings = QUICK.replace("timeout: 5s", "timeout: 300ms");
    survive(Step::Named(Mishap::Hang), &settings, "backing_off", "timeout").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_page_with_200_is_no_success() {
    survive(Step::Named(Mishap::Html), QUICK, "backing_off|unreadable_success", "unreadable_success").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_answer_is_no_success() {
    survive(Step::Named(Mishap::Huge), QUICK, "backing_off|unreadable_success", "unreadable_success").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed_and_loses_nothing() {
    survive(Step::Named(Mishap::Redirect), QUICK, "account_fault", "account_fault").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_is_lost_is_made_good_by_a_resend_that_the_provider_knows() {
    let mut world = World::start(2, roomy()).await;
    let blocks = [
        world.block("vitally", Kind::Vitally, QUICK),
        world.block("vibefollow", Kind::Vibefollow, QUICK),
        world.block("userpilot", Kind::Userpilot, QUICK),
    ];
    for kind in Kind::ALL {
        set(&world, kind, script([Step::Named(Mishap::ApplyThenReset), Step::Named(Mishap::ApplyThenReset)]));
    }
    let worker = Worker::start(&world.config(&blocks.concat())).await;
    world.produce_all(round(20, 1)).await;
    for kind in Kind::ALL {
        all_delivered(&world, &worker, kind).await;
        assert!(retries(&worker, kind.name(), "reset").await > 0.0, "{kind:?}");
        no_overlaps(&world, kind);
        assert_eq!(lane_metric(&worker, "sluicegate_events_settled_total", kind.name()).await, 20.0, "{kind:?}");
    }
    for kind in [Kind::Vitally, Kind::Vibefollow] {
        let counters = world.simulator.provider(kind).summary().counters;
        assert!(counters.rows_repeated > 0, "{kind:?} knew the resend");
        assert_eq!(counters.rows_applied, 20, "{kind:?} applied each row once");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_and_a_newer_event_meanwhile_set_no_user_back() {
    let mut world = World::start(1, roomy()).await;
    let kinds = [("vitally", Kind::Vitally, "mode: single, "), ("vibefollow", Kind::Vibefollow, "mode: bulk, ")];
    let blocks = kinds.map(|(id, kind, mode)| world.block(id, kind, &format!("{mode}{QUICK}")));
    for (_, kind, _) in kinds {
        set(&world, kind, script(vec![Step::Named(Mishap::ApplyThenReset); 6]));
    }
    let worker = Worker::start(&world.config(&blocks.concat())).await;
    for version in 1..=30 {
        let (key, payload) = event("same", version, serde_json::json!({}));
        world.produce_all([(key, payload), event("other", version, serde_json::json!({}))]).await;
    }
    for (_, kind, _) in kinds {
        all_delivered(&world, &worker, kind).await;
        no_overlaps(&world, kind);
        assert_eq!(world.simulator.provider(kind).users()["same"]["traits"]["version"], 30);
        assert_eq!(world.simulator.provider(kind).faults().script.len(), 0, "{kind:?}: the script was played");
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_flaps_after_a_long_outage_costs_no_rows() {
    let mut world = World::start(1, roomy()).await;
    set(&world, Kind::Vibefollow, outage(Step::Status(503)));
    let settings = QUICK.replace("max: 500ms", "max: 50ms");
    let worker = Worker::start(&world.config(&world.block("vibefollow", Kind::Vibefollow, &settings))).await;
    world.produce_all(round(5, 1)).await;
    until("each row has failed often", async || retries(&worker, "vibefollow", "server").await > 60.0).await;
    // The provider accepts one request, and then the outage goes on for a while.
    let mut flap = vec![Step::Status(200)];
    flap.extend(vec![Step::Status(503); 8]);
    set(&world, Kind::Vibefollow, script(flap));
    all_delivered(&world, &worker, Kind::Vibefollow).await;
    worker.stop().await;
}
