//! The 17 rules of Grafana's dashboard-linter (v0.2.0), written again because the tool is not available everywhere.
//!
//! A test shows for each rule that it finds a break. The exclusions are in the linter's own file, `.lint`, next to the
//! dashboards.

use std::fmt;

use serde_json::Value;

use crate::dashboards::{self, panels, targets, text};
use crate::promql::{Query, RATE_INTERVAL};

/// The units of Grafana's list that the dashboards use.
const UNITS: [&str; 13] = [
    "bytes",
    "cpm",
    "dtdhms",
    "dtdurations",
    "eps",
    "none",
    "percentunit",
    "reqps",
    "rowspm",
    "rowsps",
    "s",
    "short",
    "string",
];

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Finding {
    pub rule: &'static str,
    pub panel: String,
    pub what: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.rule, self.panel, self.what)
    }
}

fn finding(rule: &'static str, panel: &str, what: impl Into<String>) -> Finding {
    Finding { rule, panel: panel.to_owned(), what: what.into() }
}

/// Returns every broken rule of a dashboard, whether it is excluded or not.
pub fn lint(dashboard: &Value) -> Vec<Finding> {
    let mut findings = lint_templates(dashboard);
    if dashboard["editable"] != Value::Bool(false) {
        findings.push(finding("uneditable-dashboard", "", "editable is not false"));
    }
    for panel in panels(dashboard) {
        lint_panel(panel, &mut findings);
        for target in targets(panel) {
            lint_target(text(&panel["title"]), target, &mut findings);
        }
    }
    findings
}

fn lint_templates(dashboard: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let variables = dashboards::variables(dashboard);
    let sources: Vec<&&Value> = variables.iter().filter(|variable| variable["type"] == "datasource").collect();
    let is_right = |source: &Value| {
        source["name"] == "datasource" && source["label"] == "Data Source" && source["query"] == "prometheus"
    };
    if sources.len() != 1 || !is_right(sources[0]) {
        findings.push(finding(
            "template-datasource-rule",
            "",
            "not one variable `datasource` with label `Data Source`",
        ));
    }
    for (name, rule) in [("job", "template-job-rule"), ("instance", "template-instance-rule")] {
        let variable = variables.iter().find(|variable| variable["name"] == name);
        let is_right = variable.is_some_and(|variable| {
            variable["type"] == "query"
                && variable["datasource"]["uid"] == "${datasource}"
                && variable["label"] == name
                && variable["multi"] == true
                && variable["allValue"] == ".+"
        });
        if !is_right {
            findings.push(finding(rule, "", format!("no variable {name} on $datasource, multi, with allValue .+")));
        }
    }
    for variable in variables.iter().filter(|variable| variable["type"] == "query") {
        let name = text(&variable["name"]);
        let selector = dashboards::label_values(variable).map(|(selector, _)| Query::read(&selector));
        if !matches!(selector, Some(Ok(_))) {
            findings.push(finding(
                "template-label-promql-rule",
                "",
                format!("{name} is no label_values() of a selector"),
            ));
        }
        if variable["refresh"] != 2 {
            findings.push(finding("template-on-time-change-reload-rule", "", format!("{name} does not refresh")));
        }
    }
    findings
}

fn lint_panel(panel: &Value, findings: &mut Vec<Finding>) {
    let title = text(&panel["title"]);
    if panel["type"] == "row" {
        return;
    }
    if panel["datasource"]["uid"] != "${datasource}" {
        findings.push(finding("panel-datasource-rule", title, "not on $datasource"));
    }
    if title.is_empty() || text(&panel["description"]).is_empty() {
        findings.push(finding("panel-title-description-rule", title, "no title or no description"));
    }
    let unit = text(&panel["fieldConfig"]["defaults"]["unit"]);
    if !UNITS.contains(&unit) {
        findings.push(finding("panel-units-rule", title, format!("unit `{unit}`")));
    }
    if targets(panel).is_empty() {
        findings.push(finding("panel-no-targets-rule", title, "no query"));
    }
}

fn lint_target(panel: &str, target: &Value, findings: &mut Vec<Finding>) {
    let (expr, source) = (text(&target["expr"]), text(&target["datasource"]["type"]));
    // The linter's two rules about LogQL check that log queries parse. The dashboards have no log queries, so any such
    // query is a finding.
    if source != "prometheus" {
        findings.push(finding("target-logql-rule", panel, format!("a query of `{source}`")));
    }
    if expr.contains("$__auto") {
        findings.push(finding("target-logql-auto-rule", panel, "an interval of LogQL"));
    }
    let query = match Query::read(expr) {
        Ok(query) => query,
        Err(error) => return findings.push(finding("target-promql-rule", panel, error)),
    };
    for selector in &query.selectors {
        let metric = &selector.metric;
        for (label, rule) in [("job", "target-job-rule"), ("instance", "target-instance-rule")] {
            if !selector.matches(label, &format!("${label}")) {
                findings.push(finding(rule, panel, format!("{metric} without {label}=~\"${label}\"")));
            }
        }
        let counts = selector.range.as_ref().filter(|(function, _)| is_rate(function));
        if counts.is_some_and(|(_, range)| *range != RATE_INTERVAL) {
            findings.push(finding("target-rate-interval-rule", panel, format!("{metric} not over $__rate_interval")));
        }
        if metric.ends_with("_total") && counts.is_none() {
            findings.push(finding("target-counter-agg-rule", panel, format!("{metric} outside of rate and increase")));
        }
    }
}

fn is_rate(function: &str) -> bool {
    ["rate", "irate", "increase"].contains(&function)
}

/// Returns true if `.lint` excludes this rule for the finding's panel.
fn is_excluded(dashboard: &Value, finding: &Finding, exclusions: &Value) -> bool {
    let entries = exclusions["exclusions"][finding.rule]["entries"].as_array().into_iter().flatten();
    entries
        .into_iter()
        .any(|entry| entry["dashboard"] == dashboard["title"] && entry["panel"] == finding.panel.as_str())
}

fn exclusions() -> Value {
    serde_norway::from_str(&dashboards::read(".lint")).expect("a file of exclusions")
}

#[test]
fn the_dashboards_keep_the_linters_rules() {
    let exclusions = exclusions();
    for (name, dashboard) in dashboards::all() {
        let findings = lint(&dashboard).into_iter().filter(|finding| !is_excluded(&dashboard, finding, &exclusions));
        let findings: Vec<String> = findings.map(|finding| finding.to_string()).collect();
        assert!(findings.is_empty(), "{name}:\n{}", findings.join("\n"));
    }
}

#[test]
fn every_exclusion_has_a_reason_and_is_needed() {
    let exclusions = exclusions();
    let findings: Vec<(Value, Finding)> =
        dashboards::all().into_iter().flat_map(|(_, d)| lint(&d).into_iter().map(move |f| (d.clone(), f))).collect();
    for (rule, exclusion) in exclusions["exclusions"].as_object().expect("rules") {
        assert!(text(&exclusion["reason"]).len() > 20, "{rule} is excluded without a reason");
        for entry in exclusion["entries"].as_array().expect("entries") {
            let only = serde_json::json!({ "exclusions": { rule: { "entries": [entry] } } });
            assert!(
                findings.iter().any(|(d, finding)| is_excluded(d, finding, &only)),
                "{rule}: {entry} is not needed"
            );
        }
    }
}

#[test]
fn each_rule_bites() {
    let expr = "/panels/0/targets/0/expr";
    let breakages: [(&str, &str, Value); 19] = [
        ("template-datasource-rule", "/templating/list/0/label", "Source".into()),
        ("template-job-rule", "/templating/list/1/allValue", ".*".into()),
        ("template-instance-rule", "/templating/list/2/multi", false.into()),
        ("template-label-promql-rule", "/templating/list/3/definition", "label_values(a{, b)".into()),
        ("template-on-time-change-reload-rule", "/templating/list/3/refresh", 1.into()),
        ("panel-datasource-rule", "/panels/0/datasource/uid", "prometheus".into()),
        ("panel-title-description-rule", "/panels/0/title", "".into()),
        ("panel-title-description-rule", "/panels/0/description", "".into()),
        ("panel-units-rule", "/panels/0/fieldConfig/defaults/unit", "furlongs".into()),
        ("panel-no-targets-rule", "/panels/0/targets", Value::Array(Vec::new())),
        ("target-logql-rule", "/panels/0/targets/0/datasource/type", "loki".into()),
        ("target-logql-auto-rule", expr, "rate({app=\"a\"} [$__auto])".into()),
        ("target-promql-rule", expr, "sum(rate(a_total[5m])".into()),
        ("target-rate-interval-rule", expr, "rate(a_total{job=~\"$job\",instance=~\"$instance\"}[5m])".into()),
        ("target-job-rule", expr, "sluicegate_pending_rows{instance=~\"$instance\"}".into()),
        ("target-job-rule", expr, "sluicegate_pending_rows{job=\"$job\",instance=~\"$instance\"}".into()),
        ("target-instance-rule", expr, "sluicegate_pending_rows{job=~\"$job\"}".into()),
        ("target-counter-agg-rule", expr, "a_total{job=~\"$job\",instance=~\"$instance\"}".into()),
        ("uneditable-dashboard", "/editable", true.into()),
    ];
    for (name, dashboard) in dashboards::all() {
        let before = lint(&dashboard);
        for (rule, place, value) in &breakages {
            let mut broken = dashboard.clone();
            *broken.pointer_mut(place).unwrap_or_else(|| panic!("{name} has {place}")) = value.clone();
            let is_found = lint(&broken).iter().any(|found| found.rule == *rule && !before.contains(found));
            assert!(is_found, "{name}: {place} = {value} passes {rule}");
        }
    }
}
