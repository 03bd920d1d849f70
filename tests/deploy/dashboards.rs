//! Tests of the dashboards: their queries ask only for metrics that the worker exports, and their panels show each of these.
//!
//! Both dashboards use the same colors and state mappings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::Value;

use crate::exported::EXPORTED;
use crate::promql::Query;

/// The panel types that Grafana, its sidecar and its operator all accept unchanged.
const PANEL_TYPES: [&str; 5] = ["row", "stat", "state-timeline", "table", "timeseries"];

/// Reads a file from the folder of the dashboards.
pub fn read(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/charts/sluicegate/dashboards").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns both dashboards by name.
pub fn all() -> Vec<(&'static str, Value)> {
    let names = ["destinations", "internals"];
    let read = |name| serde_json::from_str(&read(&format!("{name}.json"))).unwrap_or_else(|e| panic!("{name}: {e}"));
    names.map(|name| (name, read(name))).into()
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().into_iter().flatten().collect()
}

/// Returns the panels of a dashboard, including those inside collapsed rows.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    list(&dashboard["panels"]).into_iter().flat_map(|panel| [vec![panel], list(&panel["panels"])].concat()).collect()
}

pub fn targets(panel: &Value) -> Vec<&Value> {
    list(&panel["targets"])
}

pub fn variables(dashboard: &Value) -> Vec<&Value> {
    list(&dashboard["templating"]["list"])
}

/// Returns the selector and the label of a variable's `label_values(selector, label)`.
pub fn label_values(variable: &Value) -> Option<(String, String)> {
    let inside = text(&variable["definition"]).strip_prefix("label_values(")?.strip_suffix(')')?;
    let (selector, label) = inside.rsplit_once(", ")?;
    Some((selector.to_owned(), label.to_owned()))
}

/// Returns the title and the query of every panel and variable.
fn queries(dashboard: &Value) -> Vec<(String, Query)> {
    let of_panels = panels(dashboard).into_iter().flat_map(|panel| {
        targets(panel).into_iter().map(|target| (text(&panel["title"]).to_owned(), text(&target["expr"]).to_owned()))
    });
    let of_variables = variables(dashboard).into_iter().filter_map(|variable| {
        let (selector, _) = label_values(variable)?;
        Some((format!("variable {}", text(&variable["name"])), selector))
    });
    let read = |(title, expr): (String, String)| {
        let query = Query::read(&expr).unwrap_or_else(|error| panic!("{title}: {error}\n{expr}"));
        (title, query)
    };
    of_panels.chain(of_variables).map(read).collect()
}

/// Returns the names between `{{` and `}}`.
pub fn placeholders(format: &str) -> BTreeSet<String> {
    let parts = format.split("{{").skip(1).filter_map(|part| part.split_once("}}"));
    parts.map(|(inside, _)| inside.trim().to_owned()).collect()
}

#[test]
fn every_query_asks_for_what_the_worker_exports() {
    let mut problems = Vec::new();
    for (name, dashboard) in all() {
        for (title, query) in queries(&dashboard) {
            problems.extend(EXPORTED.unknown(&query).into_iter().map(|problem| format!("{name}: {title}: {problem}")));
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn every_metric_of_the_worker_is_shown() {
    let dashboards = all();
    let shown: BTreeSet<String> = dashboards
        .iter()
        .flat_map(|(_, dashboard)| queries(dashboard))
        .flat_map(|(_, query)| query.selectors.into_iter().map(|selector| selector.metric))
        .collect();
    let parts = |name: &str| ["_bucket", "_sum", "_count"].map(|part| name.ends_with(part)).contains(&true);
    let missing: Vec<&String> = EXPORTED
        .0
        .keys()
        .filter(|name| name.starts_with("sluicegate_") && !parts(name) && !shown.contains(*name))
        .collect();
    assert!(missing.is_empty(), "on no panel: {missing:?}");
    for histogram in ["delivery_latency_seconds_bucket", "request_duration_seconds_bucket", "request_rows_sum"] {
        assert!(shown.contains(&format!("sluicegate_{histogram}")), "{histogram} is on no panel");
    }
}

#[test]
fn legends_name_labels_that_the_result_has() {
    for (name, dashboard) in all() {
        for panel in panels(&dashboard) {
            for target in targets(panel) {
                let title = text(&panel["title"]);
                let query = Query::read(text(&target["expr"])).expect("a query");
                let missing: Vec<String> = placeholders(text(&target["legendFormat"]))
                    .into_iter()
                    .filter(|label| !query.result_labels(&EXPORTED).contains(label))
                    .collect();
                assert!(missing.is_empty(), "{name}: {title}: the legend names {missing:?}");
                assert!(panel["type"] != "timeseries" || !text(&target["legendFormat"]).is_empty(), "{name}: {title}");
            }
        }
    }
}

#[test]
fn lane_states_are_all_mapped_each_to_its_own_number() {
    let states = &EXPORTED.0["sluicegate_lane_state"]["state"];
    let mut seen = 0;
    for (name, dashboard) in all() {
        for panel in panels(&dashboard) {
            for (mappings, target) in state_mappings(panel) {
                let options = mappings[0]["options"].as_object().expect("a value mapping");
                let mapped: BTreeSet<String> =
                    options.values().map(|option| text(&option["text"]).to_owned()).collect();
                assert_eq!(&mapped, states, "{name}: {}", text(&panel["title"]));
                for (number, option) in options {
                    let term = format!("{number} * sluicegate_lane_state{{");
                    let state = format!("state=\"{}\"}}", text(&option["text"]));
                    let is_there = text(&target["expr"])
                        .split(" or ")
                        .any(|part| part.trim_end_matches(')').ends_with(&state) && part.contains(&term));
                    assert!(is_there, "{name}: no `{term}..{state}`");
                }
                seen += 1;
            }
        }
    }
    assert_eq!(seen, 3, "the state is shown in a table and in two timelines");
}

/// Returns the mappings of a panel's states, or of its State column, each with its query.
fn state_mappings(panel: &Value) -> Vec<(&Value, &Value)> {
    let target = |panel| targets(panel)[0];
    if panel["type"] == "state-timeline" {
        return vec![(&panel["fieldConfig"]["defaults"]["mappings"], target(panel))];
    }
    let columns = list(&panel["fieldConfig"]["overrides"]).into_iter().filter(|o| o["matcher"]["options"] == "State");
    let properties = columns.flat_map(|column| list(&column["properties"]));
    properties.filter(|property| property["id"] == "mappings").map(|p| (&p["value"], target(panel))).collect()
}

#[test]
fn one_destination_has_one_color_on_all_panels() {
    let mut colors: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, dashboard) in all() {
        for entry in panels(&dashboard).into_iter().flat_map(|panel| list(&panel["fieldConfig"]["overrides"])) {
            let matched = text(&entry["matcher"]["options"]);
            for property in list(&entry["properties"]).into_iter().filter(|property| property["id"] == "color") {
                if let Some(color) = property["value"]["fixedColor"].as_str() {
                    colors.entry(matched.to_owned()).or_default().insert(color.to_owned());
                }
            }
        }
    }
    for destination in ["vitally", "vibefollow", "userpilot"] {
        assert!(colors.contains_key(&format!("/^{destination}\\b/")), "{destination} has no color of its own");
    }
    let several: Vec<_> = colors.iter().filter(|(_, colors)| colors.len() > 1).collect();
    assert!(several.is_empty(), "{several:?}");
}

#[test]
fn the_files_are_classic_json_that_every_way_of_delivery_takes() {
    for (name, dashboard) in all() {
        assert_eq!(dashboard["uid"], format!("sluicegate-{name}"));
        assert_eq!(dashboard["title"], format!("Sluicegate: {name}"));
        assert_eq!(dashboard["id"], Value::Null);
        assert!(dashboard["schemaVersion"].as_u64().is_some_and(|version| (39..=42).contains(&version)));
        assert!(dashboard.get("__inputs").is_none() && dashboard.get("__requires").is_none());
        assert_eq!(dashboard["tags"], serde_json::json!(["sluicegate"]));
        let mut ids = BTreeSet::new();
        for panel in panels(&dashboard) {
            assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{name}: two panels {}", panel["id"]);
            assert!(PANEL_TYPES.contains(&text(&panel["type"])), "{name}: {}", panel["type"]);
        }
        let variables: Vec<&str> = variables(&dashboard).into_iter().map(|variable| text(&variable["name"])).collect();
        assert_eq!(variables, ["datasource", "job", "instance", "destination"]);
    }
}

#[test]
fn panels_lie_on_the_grid_without_covering_each_other() {
    for (name, dashboard) in all() {
        let mut taken: BTreeMap<(u64, u64), &str> = BTreeMap::new();
        for panel in panels(&dashboard) {
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a number"));
            assert!(x + w <= 24 && w > 0 && h > 0, "{name}: {}", panel["title"]);
            for cell in (x..x + w).flat_map(|column| (y..y + h).map(move |row| (column, row))) {
                let other = taken.insert(cell, text(&panel["title"]));
                assert!(other.is_none(), "{name}: {} covers {other:?}", panel["title"]);
            }
        }
    }
}
