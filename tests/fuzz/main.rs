//! Gives damaged and invented input to everything that reads others' data: every input gets an answer, and none a panic.
//!
//! `SLUICEGATE_FUZZ_CASES` is the number of inputs of each test, and `SLUICEGATE_FUZZ_SEED` selects them. The test
//! shrinks and prints a failing input. `SLUICEGATE_FUZZ_CASES=2000000 cargo test --release --test fuzz` makes
//! sixteen million inputs in eight tests.

mod damage;
mod events;
mod merging;
mod promises;
mod replies;

use std::time::Instant;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// The number of inputs of each test by default. They take some seconds without optimization.
const CASES: u32 = 4_000;

fn number(variable: &str) -> Option<u32> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

/// Calls `check` with the configured number of inputs.
///
/// # Panics
/// If `check` panics, with the smallest such input that was found.
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
