//! Providers whose names do not resolve.
//!
//! The sender's own tests show what a name that moves does to connections, because they can replace the system's
//! resolver.

use std::time::Duration;

use sluicegate::testbed::simulator::Kind;

use super::{QUICK, event, roomy, round};
use crate::support::{Process, World, metric, until};

/// The variables that keep the worker from using a proxy, which would ask the resolver in its place.
const NO_PROXY: [(&str, &str); 2] = [("NO_PROXY", "*"), ("no_proxy", "*")];

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_resolve_is_named_and_what_waited_is_delivered_when_the_address_is_fixed() {
    let mut world = World::start(2, roomy()).await;
    let blocks = Kind::ALL.map(|kind| world.block(kind.name(), kind, QUICK)).concat();
    let yaml = world.yaml(&blocks, "group.protocol: consumer", "5s");
    // RFC 6761 reserves `invalid`, so this name never resolves.
    let wrong = yaml.replace(&world.simulator.base_url(), "http://nothing.invalid");
    let mut process = Process::start_with(&wrong, &[], &NO_PROXY);
    world.produce_all(round(20, 1)).await;
    // The worker serves its metrics before the test asks for them.
    process.wait_log("serving ").await;
    for kind in Kind::ALL {
        process.wait_log(&format!("destination={} from=", kind.name())).await;
    }
    process.wait_log("to=\"backing_off\"").await;
    let (mut tries, begun) = (0.0, std::time::Instant::now());
    while tries < 9.0 {
        let text = process.get("/metrics").await.1;
        tries = Kind::ALL
            .map(|kind| {
                let lane = format!("destination=\"{}\"", kind.name());
                metric(&text, "sluicegate_retries_total", &[&lane, "reason=\"dns\""]).min(3.0)
            })
            .iter()
            .sum();
        assert!(begun.elapsed() < crate::support::DEADLINE, "{tries} tries\n{}", process.log());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A resolver that takes longer than a connection may take shows as `connect: ` in one try or the other.
    loop {
        let status: serde_json::Value = serde_json::from_str(&process.get("/status").await.1).expect("JSON");
        let lanes = status["lanes"].as_array().expect("lanes");
        assert!(lanes.iter().all(|lane| lane["state"] == "backing_off"), "{status}");
        let is_named =
            |lane: &serde_json::Value| lane["last_error"]["what"].as_str().expect("an error").starts_with("dns: ");
        if lanes.iter().all(is_named) {
            break;
        }
        assert!(begun.elapsed() < crate::support::DEADLINE, "{status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(process.log().lines().any(|line| line.contains("backing_off") && line.contains("dns: ")));
    assert!(process.is_running());
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(15)).await, 0, "{}", process.log());

    let mut process = Process::start_with(&yaml, &[], &NO_PROXY);
    world.produce_all(round(20, 2)).await;
    world.produce_all([event("fresh", 1, serde_json::json!({}))]).await;
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
        assert_eq!(world.wrong_state(kind), Vec::<String>::new(), "{kind:?}");
        let provider = world.simulator.provider(kind);
        until("no request is under way", async || provider.summary().users_in_flight == 0).await;
        assert_eq!(provider.summary().counters.regressions, 0, "{kind:?}");
        assert!(world.dead_letters(kind.name()).is_empty(), "{kind:?}");
    }
    assert_eq!(metric(&process.get("/metrics").await.1, "sluicegate_ledger_difference", &[]), 0.0);
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(15)).await, 0, "{}", process.log());
}
