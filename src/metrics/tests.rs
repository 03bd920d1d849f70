//! Tests of the exported names, their labels, and the values that they show.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;

/// Every name that dashboards, alerts and the chart may use, with its type. `kafka_lag` and `kafka_unreadable` appear with
/// the first partition whose end is known.
const NAMES: &str = "
    counter sluicegate_events_consumed_total
    counter sluicegate_events_settled_total
    counter sluicegate_events_skipped_total
    counter sluicegate_events_merged_total
    gauge sluicegate_pending_events
    gauge sluicegate_pending_rows
    gauge sluicegate_pending_bytes
    gauge sluicegate_pending_bytes_limit
    gauge sluicegate_oldest_pending_age_seconds
    gauge sluicegate_ledger_difference
    counter sluicegate_rows_sent_total
    counter sluicegate_rows_settled_total
    gauge sluicegate_rate_limit_rows_per_minute
    gauge sluicegate_rate_limit_window_rows
    counter sluicegate_rate_limit_wait_seconds_total
    counter sluicegate_requests_total
    histogram sluicegate_request_duration_seconds
    histogram sluicegate_request_rows
    counter sluicegate_traits_dropped_total
    counter sluicegate_retries_total
    gauge sluicegate_retry_after_seconds
    counter sluicegate_jobs_total
    counter sluicegate_dead_letters_total
    counter sluicegate_dead_letter_failures_total
    histogram sluicegate_delivery_latency_seconds
    gauge sluicegate_drain_eta_seconds
    gauge sluicegate_lane_state
    gauge sluicegate_kafka_lag
    gauge sluicegate_kafka_unreadable
    gauge sluicegate_last_commit_timestamp_seconds
    counter sluicegate_commit_failures_total
    gauge sluicegate_partitions_assigned
    gauge sluicegate_partitions_paused
    gauge sluicegate_partitions_replaying
    gauge sluicegate_partitions_stalled
    counter sluicegate_rebalances_total
    counter sluicegate_offset_gaps_total
    counter sluicegate_miskeyed_events_total
    gauge sluicegate_build_info
    gauge sluicegate_config_info
    counter process_cpu_seconds_total
    gauge process_resident_memory_bytes
    gauge process_open_fds
    gauge process_start_time_seconds
";

fn lags(n: i32) -> Vec<(String, u64)> {
    (0..n).map(|n| (n.to_string(), 0)).collect()
}

/// Returns the series with their values, by name and labels as exported.
fn series(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' ')).collect()
}

#[test]
fn every_name_is_exported_with_its_type_and_a_help_text_and_no_other() {
    let metrics = Metrics::new();
    metrics.config_info("abc");
    let mut lane = metrics.lane("vitally");
    lane.kafka_lag.set(&lags(1));
    lane.kafka_unreadable.set(&lags(1));
    let text = metrics.encode();
    for (kind, name) in NAMES.lines().filter_map(|line| line.trim().split_once(' ')) {
        if name.starts_with("process_") && cfg!(not(target_os = "linux")) {
            continue;
        }
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{kind} {name}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
    }
    for line in text.lines().filter(|line| line.starts_with("# TYPE sluicegate_")) {
        let (name, _) = line["# TYPE ".len()..].split_once(' ').expect("a type");
        assert!(NAMES.contains(&format!(" {name}\n")), "{name} is not a fixed name");
    }
}

#[test]
fn every_series_of_a_lane_stands_at_0_before_anything_happens() {
    let metrics = Metrics::new();
    let _lane = metrics.lane("vitally");
    let text = metrics.encode();
    let series = series(&text);
    for (name, value) in series.iter().filter(|(name, _)| name.contains("destination=")) {
        let expected = if name.contains(r#"state="starting""#) { "1" } else { "0" };
        assert_eq!(*value, expected, "{name}");
    }
    let labels = [
        ("events_settled_total", "outcome", &EVENT_OUTCOMES[..]),
        ("events_skipped_total", "reason", &["type", "anonymous", "tombstone", "duplicate", "opted_out"]),
        ("rows_settled_total", "outcome", &ROW_OUTCOMES),
        ("requests_total", "outcome", &REQUEST_OUTCOMES),
        ("traits_dropped_total", "reason", &["no_date", "no_address", "wrong_type", "too_long", "too_many"]),
        ("retries_total", "reason", &["server", "timeout", "protocol", "throttled", "split", "key_reused"]),
        ("jobs_total", "outcome", &JOB_OUTCOMES),
        ("dead_letters_total", "reason", &["not_json", "no_user_id", "no_account", "bad_user_id", EXHAUSTED]),
        ("lane_state", "state", &LANE_STATES),
        ("rebalances_total", "kind", &REBALANCE_KINDS),
    ];
    for (name, label, values) in labels {
        for value in values {
            let name = format!(r#"sluicegate_{name}{{destination="vitally",{label}="{value}"}}"#);
            assert!(series.contains_key(name.as_str()), "{name}");
        }
    }
}

#[test]
fn a_pod_with_three_lanes_of_32_partitions_exports_fewer_than_650_series() {
    let metrics = Metrics::new();
    metrics.config_info("abc");
    for destination in ["vitally", "vibefollow", "userpilot"] {
        let mut lane = metrics.lane(destination);
        lane.kafka_lag.set(&lags(32));
        lane.kafka_unreadable.set(&lags(32));
    }
    let n_series = metrics.encode().lines().filter(|line| !line.starts_with('#')).count();
    assert!((550..650).contains(&n_series), "{n_series}");
}

#[test]
fn totals_follow_those_of_the_lane_and_never_go_down() {
    let metrics = Metrics::new();
    let lane = metrics.lane("vitally");
    for total in [7, 5, 9] {
        lane.events_consumed.set(total);
        lane.requests.set("ok", total);
        lane.rate_limit_wait.set(Duration::from_secs(total));
    }
    lane.commit_failures.add(2);
    lane.rebalances.add("lost", 3);
    let text = metrics.encode();
    let series = series(&text);
    assert_eq!(series[r#"sluicegate_events_consumed_total{destination="vitally"}"#], "9");
    assert_eq!(series[r#"sluicegate_requests_total{destination="vitally",outcome="ok"}"#], "9");
    assert_eq!(series[r#"sluicegate_rate_limit_wait_seconds_total{destination="vitally"}"#], "9");
    assert_eq!(series[r#"sluicegate_commit_failures_total{destination="vitally"}"#], "2");
    assert_eq!(series[r#"sluicegate_rebalances_total{destination="vitally",kind="lost"}"#], "3");
}

#[test]
fn lanes_of_two_destinations_stand_beside_each_other() {
    let metrics = Metrics::new();
    metrics.lane("vitally").pending_rows.set(1);
    metrics.lane("userpilot").pending_rows.set(2);
    let text = metrics.encode();
    assert_eq!(text.matches("# TYPE sluicegate_pending_rows gauge").count(), 1);
    assert_eq!(series(&text)[r#"sluicegate_pending_rows{destination="vitally"}"#], "1");
    assert_eq!(series(&text)[r#"sluicegate_pending_rows{destination="userpilot"}"#], "2");
}

#[test]
fn a_lane_is_in_exactly_one_state() {
    let metrics = Metrics::new();
    let lane = metrics.lane("vitally");
    for state in LANE_STATES {
        lane.lane_state.set(state);
        let text = metrics.encode();
        let current: Vec<&str> =
            text.lines().filter(|line| line.starts_with("sluicegate_lane_state") && line.ends_with(" 1")).collect();
        assert_eq!(current, [format!(r#"sluicegate_lane_state{{destination="vitally",state="{state}"}} 1"#)]);
    }
}

#[test]
fn a_partition_that_was_given_up_shows_no_lag() {
    let metrics = Metrics::new();
    let mut lane = metrics.lane("vitally");
    lane.kafka_lag.set(&[("0".to_owned(), 4), ("1".to_owned(), 5)]);
    lane.kafka_lag.set(&[("1".to_owned(), 6)]);
    let text = metrics.encode();
    let lag: Vec<&str> = text.lines().filter(|line| line.starts_with("sluicegate_kafka_lag")).collect();
    assert_eq!(lag, [r#"sluicegate_kafka_lag{destination="vitally",partition="1"} 6"#]);
}

#[test]
fn a_partition_is_named_with_its_topic_only_where_there_are_several() {
    let partition = PartitionId { topic: 1, partition: 7 };
    let topics = ["identify".to_owned(), "users".to_owned()];
    assert_eq!(partition_label(&topics, partition), "users-7");
    assert_eq!(partition_label(&topics[..1], PartitionId { topic: 0, partition: 7 }), "7");
}

#[test]
fn a_changed_configuration_replaces_the_hash() {
    let metrics = Metrics::new();
    metrics.config_info("abc");
    metrics.config_info("def");
    let text = metrics.encode();
    assert!(text.contains("sluicegate_config_info{hash=\"def\"} 1") && !text.contains("abc"));
}
