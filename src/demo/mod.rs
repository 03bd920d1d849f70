//! What `sluicegate demo` and the tests run against instead of the real thing.

pub mod broker;
