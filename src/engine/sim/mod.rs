//! Runs the engine through random schedules in virtual time and checks it against a plain replay of the log.
//!
//! `SLUICEGATE_SIM_SCHEDULES=100000 cargo test --lib sim` runs as many as one likes; `SLUICEGATE_SIM_SEED=7` one of them.

mod blame;
mod clock;
mod replicas;
mod run;
mod usage;
mod world;

use run::Run;

/// As many schedules as `cargo test` runs; each takes a few milliseconds.
const SCHEDULES: u64 = 1500;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn random_schedules_end_as_a_plain_replay_of_the_log_does() {
    if let Some(seed) = setting("SLUICEGATE_SIM_SEED") {
        Run::new(seed).finish().unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        return;
    }
    let mut totals = run::Totals::default();
    let mut faults = Vec::new();
    let schedules = setting("SLUICEGATE_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    for seed in 0..schedules {
        match Run::new(seed).finish() {
            Ok(run) => totals += run,
            Err(fault) => faults.push(format!("seed {seed}: {fault}")),
        }
        if faults.len() >= 5 {
            break;
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // A simulation that provokes nothing shows nothing; a short one may.
    assert!(schedules < SCHEDULES || totals.everything_happened(), "{totals:?}");
    if std::env::var("SLUICEGATE_SIM_VERBOSE").is_ok() {
        println!("{totals:?}");
    }
}
