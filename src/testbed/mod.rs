//! A world for the worker that needs no service: a broker in the process, simulated providers, an event generator, and a model of the right outcome.
//!
//! The demo, the tests, the benches and the commands `simulate` and `generate` share it. Nothing here uses `engine`,
//! `providers` or `mapping`: the judge must not share a mistake with the judged. Begin with `simulator/mod.rs` for a provider's
//! behavior, and with `model/mod.rs` for what a provider must hold in the end.

pub mod broker;
pub mod generator;
pub mod model;
pub mod random;
pub mod simulator;
