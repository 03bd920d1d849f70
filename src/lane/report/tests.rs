//! Tests of the report: lag, states and texts as operators see them.

use super::*;
use crate::engine::testing::{policy, start};
use crate::engine::{Engine, Gained, SettledList};
use crate::record::{Offset, Record};

const ID: PartitionId = PartitionId { topic: 0, partition: 3 };

fn at(seconds: u64) -> Now {
    Now { at: start_once() + Duration::from_secs(seconds), wall_ms: 1_700_000_000_000 + seconds as i64 * 1000 }
}

fn start_once() -> std::time::Instant {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    *START.get_or_init(start)
}

/// Returns an engine that owns one partition and has read these payloads at second 0.
fn read(payloads: &[&str]) -> Engine {
    let mut engine = Engine::new(policy(), at(0).at);
    let gained =
        Gained { partition: ID, start: Position(0), fence: None, settled: SettledList::default(), added: None };
    engine.assigned(&[gained], 1, at(0));
    for (offset, payload) in (0..).zip(payloads) {
        let record = Record {
            partition: ID,
            offset: Offset(offset),
            timestamp_ms: at(0).wall_ms,
            key: None,
            payload: Some(payload.as_bytes()),
        };
        engine.on_record(&record, at(0).at);
    }
    engine
}

fn ahead(engine: &mut Engine, end: Option<i64>) -> (Snapshot, Ahead) {
    let snapshot = engine.snapshot(at(200));
    let ends = end
        .map(|end| {
            let end = Position(end);
            (ID, (LogEnd { partition: ID, readable: end, written: end }, 7))
        })
        .into_iter()
        .collect();
    let ahead = Ahead::of(&snapshot, &ends);
    (snapshot, ahead)
}

#[test]
fn what_the_log_holds_beyond_the_buffer_is_part_of_the_time_to_drain_as_rows_merged_so_far() {
    // Four events of two users make half a row per event.
    let event = |user: &str| format!(r#"{{"userId":"{user}","traits":{{"a":1}}}}"#);
    let (ann, ben) = (event("ann"), event("ben"));
    let mut engine = read(&[&ann, &ben, &ann, &ben]);
    let (snapshot, all_read) = ahead(&mut engine, Some(4));
    let pending = snapshot.drain_eta().expect("it gets through").as_secs_f64();
    assert_eq!(Drain::of(&snapshot, &all_read), Drain::Takes { seconds: pending, is_bound: false });
    let (snapshot, backlog) = ahead(&mut engine, Some(4 + 60_000));
    assert_eq!((backlog.lag, backlog.unread, backlog.as_of_ms), (Some(60_004), 60_000, Some(7)));
    let Drain::Takes { seconds, is_bound: true } = Drain::of(&snapshot, &backlog) else { panic!("it gets through") };
    let per_second = snapshot.rows_per_minute.expect("limited") / 60.0;
    assert!((seconds - pending - 30_000.0 / per_second).abs() < 1.0, "{seconds}");
}

#[test]
fn lag_is_unknown_until_each_owned_partition_has_an_end_and_while_none_is_owned() {
    let (snapshot, unknown) = ahead(&mut read(&[]), None);
    assert_eq!((unknown.lag, Drain::of(&snapshot, &unknown)), (None, Drain::Unknown));
    let mut nothing = Engine::new(policy(), at(0).at);
    let (snapshot, unknown) = ahead(&mut nothing, Some(9));
    assert_eq!((unknown.lag, Drain::of(&snapshot, &unknown)), (None, Drain::Unknown));
    assert_eq!(ahead(&mut read(&[]), Some(0)).1.lag, Some(0));
}

#[test]
fn a_dead_letter_that_waits_ages() {
    let snapshot = read(&["{broken"]).snapshot(at(200));
    assert_eq!(snapshot.oldest_age, Duration::from_secs(200));
}

#[test]
fn an_error_is_over_when_the_place_that_it_came_from_answers_well() {
    let mut report = Report::default();
    report.failed("kafka: no broker".to_owned());
    report.went_well(Place::Provider);
    assert_eq!(report.why(), Some("kafka: no broker"));
    report.went_well(Place::Kafka);
    assert_eq!(report.why(), None);
    let (_, error) = report.last_error.as_ref().expect("still shown");
    assert!(error.over_at_ms.is_some() && error.what == "kafka: no broker");
}
