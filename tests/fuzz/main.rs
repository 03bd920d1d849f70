//! Throws damaged and invented input at everything that reads what others wrote: never a panic, always an answer.
//!
//! `SLUICEGATE_FUZZ_CASES` says how many inputs each test makes, `SLUICEGATE_FUZZ_SEED` which ones; a failing input is
//! shrunk and printed. `SLUICEGATE_FUZZ_CASES=2000000 cargo test --release --test fuzz` makes ten million.

mod damage;
mod events;
mod promises;
mod replies;

use std::time::Instant;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Inputs of each test where nothing is said: some seconds without optimization.
const CASES: u32 = 4_000;

fn number(variable: &str) -> Option<u32> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

/// Calls `check` with as many inputs as are asked for.
///
/// # Panics
/// With the smallest input found for which `check` panics.
fn run<S: Strategy>(what: &str, inputs: S, check: impl Fn(S::Value)) {
    let cases = number("SLUICEGATE_FUZZ_CASES").unwrap_or(CASES);
    let seed = RngSeed::Fixed(number("SLUICEGATE_FUZZ_SEED").unwrap_or(1).into());
    let mut runner = TestRunner::new(Config { cases, rng_seed: seed, failure_persistence: None, ..Config::default() });
    let started = Instant::now();
    let result = runner.run(&inputs, |input| {
        check(input);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{what}: {error}");
    }
    eprintln!("{what}: {cases} inputs in {:.1} s", started.elapsed().as_secs_f64());
}
