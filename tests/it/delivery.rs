//! Events in, users out, in every mode of every provider.

use sluicegate::demo::generator::{Generator, GeneratorSettings};
use sluicegate::demo::simulator::{Kind, SimulatorSettings};

use crate::support::{Worker, World, until};

#[tokio::test(flavor = "multi_thread")]
async fn all_three_providers_end_with_what_the_log_says() {
    let mut world = World::start(4, SimulatorSettings { job_rows_per_minute: 60_000, ..Default::default() }).await;
    let worker = Worker::start(&world.config(&world.all_blocks())).await;
    let events = Generator::new(GeneratorSettings { seed: 1, users: 60, events: 400, ..Default::default() });
    world.produce_all(events.map(|event| (event.key, event.payload))).await;
    for kind in Kind::ALL {
        world.wait_committed(kind.name()).await;
        assert_eq!(world.wrong_state(kind), Vec::<String>::new(), "{kind:?}");
        let snapshot = world.simulator.provider(kind).summary();
        assert_eq!(
            (snapshot.limit_violations, snapshot.regressions.len(), snapshot.overlaps.len()),
            (0, 0, 0),
            "{kind:?}"
        );
    }
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    until("nothing is pending", async || worker.metric("sluicegate_pending_events", &[]).await == 0.0).await;
    worker.stop().await;
}
