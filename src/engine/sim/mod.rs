//! Runs the engine through random schedules in virtual time and checks it against a plain replay of the log.
//!
//! `SLUICEGATE_SIM_SCHEDULES=100000 cargo test --lib sim` runs as many as one likes, `SLUICEGATE_SIM_FROM=5000` begins at another
//! seed than 0, and `SLUICEGATE_SIM_SEED=7` runs one of them.

mod blame;
mod clock;
mod replicas;
mod run;
mod usage;
mod world;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use run::Run;

/// As many schedules as `cargo test` runs; each takes a few milliseconds.
const SCHEDULES: u64 = 1500;

/// Faults after which a test stops looking for more.
const MOST_FAULTS: usize = 5;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs this many schedules, each of a seed of its own, and returns the results and the faults, which name their seed.
fn on_all_cores<R: Send>(schedules: u64, run: impl Fn(u64) -> Result<R, String> + Sync) -> (Vec<R>, Vec<String>) {
    let first = setting("SLUICEGATE_SIM_FROM").unwrap_or(0);
    let (next, ends) = (AtomicU64::new(first), Mutex::new((Vec::new(), Vec::new())));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + schedules {
                        return;
                    }
                    let end = run(seed);
                    let (good, faults) = &mut *ends.lock().expect("no schedule panics while it notes its end");
                    match end {
                        Ok(result) => good.push(result),
                        Err(fault) => faults.push(format!("seed {seed}: {fault}")),
                    }
                    if faults.len() >= MOST_FAULTS {
                        return;
                    }
                }
            });
        }
    });
    ends.into_inner().expect("no schedule panics while it notes its end")
}

#[test]
fn random_schedules_end_as_a_plain_replay_of_the_log_does() {
    if let Some(seed) = setting("SLUICEGATE_SIM_SEED") {
        Run::new(seed).finish().unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        return;
    }
    let schedules = setting("SLUICEGATE_SIM_SCHEDULES").unwrap_or(SCHEDULES);
    let (runs, faults) = on_all_cores(schedules, |seed| Run::new(seed).finish());
    let mut totals = run::Totals::default();
    runs.into_iter().for_each(|run| totals += run);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    // A simulation that provokes nothing shows nothing; a short one may.
    assert!(schedules < SCHEDULES || totals.everything_happened(), "{totals:?}");
    if std::env::var("SLUICEGATE_SIM_VERBOSE").is_ok() {
        println!("{totals:?}");
    }
}

#[test]
fn a_seed_run_twice_asks_for_the_same_actions_at_the_same_times() {
    for seed in 0..20 {
        let [first, second] = [Run::actions(seed), Run::actions(seed)];
        assert!(first.len() > 50, "seed {seed} shows little: {} actions", first.len());
        for (at, (one, other)) in first.iter().zip(&second).enumerate() {
            assert_eq!(one, other, "seed {seed}, action {at}");
        }
        assert_eq!(first.len(), second.len(), "seed {seed}");
    }
}
