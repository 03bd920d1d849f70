//! The demo: the whole worker against the testbed, with faults, a view in the terminal and a judgment at the end.
//!
//! Nothing here uses `engine` or `providers`. Only `workers` starts the worker, as `main` would. Begin with `run.rs`.

mod auditor;
mod backlog;
mod error;
mod fault;
mod feed;
mod input;
pub mod run;
mod summary;
mod terminal;
mod text;
mod view;
mod workers;
