//! A testbed without services: an embedded broker, simulated providers, an event generator, and a model of the right outcome.
//!
//! The demo, the tests, the benches and the commands `simulate` and `generate` share the testbed. Nothing in it uses
//! `engine`, `providers` or the decoding of `event`: the judge must not share a mistake with the code that it judges.
//! Begin with `simulator/mod.rs` for a provider's behavior, and with `model/mod.rs` for what a provider must hold in
//! the end.

pub mod broker;
pub mod generator;
pub mod model;
pub mod random;
pub mod simulator;
