//! Tests of the demo's summary: which checks hold, and what it says of those that fail.

use super::*;
use crate::testbed::model::{LogEntry, ReadRules, expect};
use crate::testbed::simulator::Counters;

fn snapshot() -> Snapshot {
    Snapshot {
        users: BTreeMap::from([("ann".to_owned(), json!({ "accountId": "acme", "traits": { "plan": "pro" } }))]),
        user_count: 1,
        max_rows_in_window: 1_200,
        limit_violations: 0,
        regressions: Vec::new(),
        overlaps: Vec::new(),
        users_in_flight: 0,
        counters: Counters::default(),
    }
}

fn expected() -> Expected {
    let event = br#"{"userId":"ann","traits":{"plan":"pro"},"context":{"groupId":"acme"}}"#;
    let payloads = [event.to_vec(), b"{".to_vec()];
    let entries = payloads.into_iter().zip(0..);
    let log: Vec<LogEntry> =
        entries.map(|(payload, offset)| LogEntry { partition: 0, offset, payload: Some(payload) }).collect();
    expect(Kind::Vitally, &ReadRules::default(), &log)
}

fn letter() -> Letter {
    Letter {
        class: "unreadable".to_owned(),
        reason: "not_json".to_owned(),
        text: "not JSON".to_owned(),
        field: None,
        partition: 0,
        offset: 1,
        events: 1,
        value: b"{".to_vec(),
    }
}

/// Returns the places of the checks that fail after this change.
fn failing(change: impl FnOnce(&mut Snapshot, &mut Figures, &mut Vec<Letter>, &mut u64)) -> Vec<usize> {
    let (mut snapshot, mut figures, mut letters, mut uncommitted) = (snapshot(), Figures::default(), vec![letter()], 0);
    change(&mut snapshot, &mut figures, &mut letters, &mut uncommitted);
    let checks = judge(&Evidence {
        kind: Kind::Vitally,
        expected: Some(&expected()),
        snapshot: &snapshot,
        figures: &figures,
        uncommitted,
        letters: &letters,
        killed: false,
        foreign: false,
    });
    checks.iter().enumerate().filter(|(_, check)| !check.passed).map(|(place, _)| place).collect()
}

#[test]
fn each_check_fails_by_its_own_cause_and_no_other() {
    assert_eq!(failing(|_, _, _, _| ()), Vec::<usize>::new());
    assert_eq!(failing(|snapshot, _, _, _| snapshot.users.clear()), [0]);
    assert_eq!(failing(|_, _, letters, _| letters.clear()), [1]);
    assert_eq!(failing(|_, _, letters, _| letters[0].reason = "empty".to_owned()), [1]);
    assert_eq!(failing(|snapshot, _, _, _| snapshot.max_rows_in_window = 1_201), [2]);
    assert_eq!(failing(|snapshot, _, _, _| snapshot.limit_violations = 1), [2]);
    assert_eq!(failing(|_, figures, _, _| figures.ledger_difference = 1), [3]);
    assert_eq!(failing(|snapshot, _, _, _| snapshot.counters.regressions = 1), [4]);
    assert_eq!(failing(|snapshot, _, _, _| snapshot.counters.overlaps = 1), [4]);
    assert_eq!(failing(|_, _, _, uncommitted| *uncommitted = 1), [5]);
}

#[test]
fn a_letter_that_was_written_twice_counts_once() {
    assert_eq!(failing(|_, _, letters, _| letters.push(letters[0].clone())), Vec::<usize>::new());
}

#[test]
fn differences_name_user_and_field_but_no_value() {
    let mut snapshot = snapshot();
    snapshot.users.insert("ann".to_owned(), json!({ "accountId": "acme", "traits": { "plan": "secret" } }));
    let evidence = Evidence {
        kind: Kind::Vitally,
        expected: Some(&expected()),
        snapshot: &snapshot,
        figures: &Figures::default(),
        uncommitted: 0,
        letters: &[letter()],
        killed: false,
        foreign: false,
    };
    let checks = judge(&evidence);
    assert!(checks[0].details[0].contains("user ann: traits.plan"), "{:?}", checks[0]);
    assert!(!format!("{checks:?}").contains("secret"));
}

fn summary(input: Input, stalled: bool, checks: Vec<Check>) -> Summary {
    Summary {
        checks,
        interrupted: false,
        stalled,
        unchecked: false,
        events: 3,
        rows: 0,
        took: Duration::ZERO,
        backlog: Vec::new(),
        input: Some(input),
    }
}

#[test]
fn the_users_own_events_are_never_called_a_bug_and_nothing_never_holds() {
    let input = |objects, taken| Input { objects, taken, report: Vec::new() };
    let note = Check { provider: "vitally", passed: false, is_note: true, text: String::new(), details: Vec::new() };
    for (summary, verdict) in [
        (summary(input(0, 0), false, Vec::new()), "nothing was checked"),
        (summary(input(3, 0), false, Vec::new()), "nothing was delivered"),
        (summary(input(3, 3), true, vec![note.clone()]), "not all was delivered"),
        (summary(input(3, 3), false, vec![note.clone()]), "delivered; what differs"),
        (summary(input(3, 3), false, Vec::new()), "everything holds"),
    ] {
        assert!(summary.verdict().starts_with(verdict), "{}", summary.verdict());
        assert!(summary.passed(), "{verdict}");
    }
    let failed = Check { is_note: false, ..note };
    assert!(summary(input(3, 3), false, vec![failed]).verdict().contains("this is a bug"));
}
