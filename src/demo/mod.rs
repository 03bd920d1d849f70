//! What lets the worker be watched and judged without services: simulated providers, an event generator, and a plain model of the right outcome.
//!
//! Nothing here uses `engine`, `providers` or `event`: the judge must not share a mistake with the judged.

pub mod broker;
pub mod expected;
pub mod generator;
pub mod random;
pub mod simulator;
