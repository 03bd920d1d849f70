//! What lets the worker be watched and judged without services: simulated providers, an event generator, and a plain model of the right outcome.
//!
//! Nothing here uses `engine`, `providers` or `event`: the judge must not share a mistake with the judged. Only `lanes`
//! knows the worker, which it starts as `main` would.

mod backlog;
pub mod broker;
mod console;
pub mod expected;
mod fault;
mod feed;
pub mod generator;
mod input;
mod lanes;
pub mod random;
pub mod run;
pub mod simulator;
mod summary;
mod topics;
mod view;
