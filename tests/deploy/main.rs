//! Black-box tests of the dashboards and alerts, of the metrics that both use, and of the links of all pages.

mod dashboards;
mod exported;
mod links;
mod lint;
mod promql;
mod rules;
