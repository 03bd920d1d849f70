//! Black-box tests of what is deployed beside the worker: the dashboards, the alerts, and whether both speak of metrics that
//! the worker has.

mod dashboards;
mod exported;
mod lint;
mod promql;
mod rules;
