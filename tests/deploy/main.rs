//! Black-box tests of what is deployed with the worker: the dashboards and the alerts, the metrics that both use, and the links
//! of all pages.

mod dashboards;
mod exported;
mod links;
mod lint;
mod promql;
mod rules;
