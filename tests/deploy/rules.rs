//! The alerts and recording rules. They ask for what the worker exports, and each alert says what an operator needs. Each is
//! tested with promtool where it fires.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::dashboards;
use crate::exported::EXPORTED;
use crate::promql::Query;

#[derive(Deserialize)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    #[serde(default)]
    alert: String,
    #[serde(default)]
    record: String,
    expr: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default, rename = "for")]
    lasts: String,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn folder() -> PathBuf {
    root().join("deploy/charts/sluicegate/rules")
}

fn rules(file: &str) -> Vec<Rule> {
    let text = fs::read_to_string(folder().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let file: RuleFile = serde_norway::from_str(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
    file.groups.into_iter().flat_map(|group| group.rules).collect()
}

fn alerts() -> Vec<Rule> {
    rules("alerts.yaml")
}

fn query(rule: &Rule) -> Query {
    Query::read(&rule.expr).unwrap_or_else(|error| panic!("{}{}: {error}", rule.alert, rule.record))
}

#[test]
fn every_rule_asks_for_what_the_worker_exports_or_another_rule_records() {
    let recorded: BTreeSet<String> = rules("recording.yaml").into_iter().map(|rule| rule.record).collect();
    for rule in alerts().iter().chain(&rules("recording.yaml")) {
        let (name, query) = (format!("{}{}", rule.alert, rule.record), query(rule));
        assert_eq!(EXPORTED.unknown(&query), Vec::<String>::new(), "{name}");
        for metric in query.selectors.iter().map(|selector| &selector.metric).filter(|metric| metric.contains(':')) {
            assert!(recorded.contains(metric), "{name}: nothing records {metric}");
        }
    }
}

#[test]
fn every_recorded_series_is_used() {
    let used: BTreeSet<String> = alerts()
        .iter()
        .chain(&rules("recording.yaml"))
        .flat_map(|rule| query(rule).selectors)
        .map(|selector| selector.metric)
        .collect();
    for rule in rules("recording.yaml") {
        assert!(used.contains(&rule.record), "{} is recorded for nothing", rule.record);
    }
}

#[test]
fn every_alert_says_how_bad_it_is_what_happens_and_where_to_look() {
    let uids: Vec<String> = dashboards::all().iter().map(|(name, _)| format!("/d/sluicegate-{name}")).collect();
    let mut names = BTreeSet::new();
    for alert in alerts() {
        let name = &alert.alert;
        assert!(name.starts_with("Sluicegate") && names.insert(name.clone()), "{name} has no name of its own");
        let severity = alert.labels.get("severity").map(String::as_str).unwrap_or_default();
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: severity `{severity}`");
        assert!(!alert.lasts.is_empty(), "{name} has no `for`");
        let annotation = |key: &str| alert.annotations.get(key).unwrap_or_else(|| panic!("{name} has no {key}"));
        assert!(annotation("summary").ends_with('.') && annotation("description").ends_with('.'), "{name}");
        let dashboard = annotation("dashboard").split('?').next().unwrap_or_default();
        assert!(uids.iter().any(|uid| uid == dashboard), "{name}: no dashboard {dashboard}");
        let anchor = format!("deploy/RUNBOOK.md#{}", name.to_lowercase());
        assert!(annotation("runbook_url").ends_with(&anchor), "{name}: its runbook is not {anchor}");
    }
}

#[test]
fn annotations_name_labels_that_the_alert_has() {
    for alert in alerts() {
        let known = query(&alert).result_labels(&EXPORTED);
        for (key, text) in &alert.annotations {
            let used = dashboards::placeholders(text);
            for label in used.iter().filter_map(|inside| inside.strip_prefix("$labels.")) {
                assert!(known.contains(label), "{}: {key} names {label}, which is none of {known:?}", alert.alert);
            }
        }
    }
}

#[test]
fn every_alert_fires_in_a_test_of_promtool() {
    let files = fs::read_dir(folder().join("tests")).expect("a folder of tests");
    let tests: String = files.map(|file| fs::read_to_string(file.expect("an entry").path()).expect("a test")).collect();
    for alert in alerts() {
        let expectation = format!("alertname=\"{}\"", alert.alert);
        let fires = tests.lines().any(|line| line.contains("labels:") && line.contains(&expectation));
        assert!(fires, "no test lets {} fire", alert.alert);
    }
}

#[test]
fn every_alert_has_its_section_in_the_runbook() {
    let runbook = fs::read_to_string(root().join("deploy/RUNBOOK.md")).expect("a runbook");
    let sections: BTreeSet<&str> = runbook.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let missing: Vec<String> =
        alerts().into_iter().map(|alert| alert.alert).filter(|name| !sections.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "the runbook says nothing about {missing:?}");
}
