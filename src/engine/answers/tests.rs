//! Tests of answers: what each verdict means for a row, its letter and the lane.

use super::*;
use crate::engine::testing::{ByHand, PARTITION, gained, policy};
use crate::engine::{BatchPolicy, Policy};

#[test]
fn a_job_without_a_reported_end_is_given_up_after_five_minutes_and_goes_again() {
    let mut lane = ByHand::new(policy());
    lane.gain(&[gained(PARTITION)]);
    lane.read(0, r#"{"userId":"u"}"#);
    lane.pass(Duration::from_secs(2));
    let (submitted, _) = lane.out.remove(0);
    let sent_at = lane.now.at;
    let pending = || Answer::Pending { job: JobId("j".into()), poll_after: Duration::from_secs(1) };
    lane.engine.on_answer(submitted, pending(), Some(200), sent_at);
    while lane.now.at < sent_at + Duration::from_secs(400) {
        lane.pass(Duration::from_millis(100));
        match lane.out.pop() {
            Some((batch, _)) if batch == submitted => {
                lane.engine.on_answer(batch, pending(), Some(200), lane.now.at);
            }
            Some((_, users)) => {
                let after = lane.now.at - sent_at;
                assert!(after >= Duration::from_secs(300) && after < Duration::from_secs(310), "{after:?}");
                assert_eq!(users, ["u"]);
                return;
            }
            None => {}
        }
    }
    panic!("the row never went again");
}

/// The cause of the letter of a row that the vendor refuses once, in these words, and whose later requests get no answer.
/// `newer`: an event of its user that comes right after the refusal.
fn refused_once(refusal: &Rejection, newer: Option<&str>) -> DeadLetterCause {
    let batch = BatchPolicy { max_rows: 1, linger: Duration::ZERO, ..policy().batch };
    let mut lane = ByHand::new(Policy { batch, ..policy() });
    lane.gain(&[gained(PARTITION)]);
    lane.read(0, r#"{"userId":"bad"}"#);
    let mut tries = 0;
    for offset in 1..1_000 {
        lane.read(offset * 2, &format!(r#"{{"userId":"good-{offset}"}}"#));
        lane.pass(Duration::from_millis(100));
        for user in lane.out.iter().flat_map(|(_, users)| users.clone()).collect::<Vec<_>>() {
            let is_bad = user == "bad";
            tries += u32::from(is_bad);
            let verdict = match (user.as_str(), tries) {
                ("bad", 1) => Verdict::Suspect(refusal.clone()),
                ("bad", _) => Verdict::Unavailable(Outage::Timeout),
                _ => Verdict::Delivered,
            };
            lane.answer(&user, verdict);
            if let (1, true, Some(newer)) = (tries, is_bad, newer) {
                lane.read(offset * 2 + 1, newer);
            }
        }
        if let Some(letter) = lane.letters.first() {
            assert!(tries > 1);
            return letter.cause.clone();
        }
    }
    panic!("no letter after {tries} requests");
}

#[test]
fn a_letter_says_what_the_vendor_said_of_the_row_though_its_last_request_got_no_answer() {
    let refusal = Rejection {
        reason: RejectReason::Invalid,
        field: Some("email".to_owned()),
        status: Some(400),
        message: String::new(),
    };
    assert_eq!(refused_once(&refusal, None), DeadLetterCause::Rejected(refusal.clone()));
    let corrected = refused_once(&refusal, Some(r#"{"userId":"bad","traits":{"email":"a@b.example"}}"#));
    assert_eq!(
        corrected,
        DeadLetterCause::Exhausted { failure: "timeout", status: None },
        "the vendor has said nothing of this content"
    );
}

/// Probes of one row each that fail with `verdict` during `seconds` seconds, each with the seconds since the one before.
fn probes(lane: &mut ByHand, verdict: &Verdict, seconds: u64) -> Vec<f64> {
    let (mut gaps, mut last) = (Vec::new(), lane.now.at);
    let end = last + Duration::from_secs(seconds);
    while lane.now.at < end {
        lane.pass(Duration::from_millis(100));
        while let Some((_, users)) = lane.out.first() {
            gaps.push((lane.now.at - last).as_secs_f64());
            last = lane.now.at;
            let user = users[0].clone();
            lane.answer(&user, verdict.clone());
        }
    }
    gaps
}

#[test]
fn the_wait_before_a_probe_is_a_quarter_of_the_faults_age() {
    let mut lane = ByHand::new(policy());
    lane.gain(&[gained(PARTITION)]);
    lane.read(0, r#"{"userId":"u"}"#);
    let gaps = probes(&mut lane, &Verdict::Unavailable(Outage::Server), 100);
    // 1 s at first, then a quarter of the age, times one half to one.
    assert!((8..=24).contains(&gaps.len()), "{gaps:?}");
    assert!(gaps.last().is_some_and(|gap| *gap > 7.0), "{gaps:?}");
}

#[test]
fn a_new_token_is_tried_at_once() {
    let mut lane = ByHand::new(policy());
    lane.gain(&[gained(PARTITION)]);
    lane.read(0, r#"{"userId":"u"}"#);
    probes(&mut lane, &Verdict::AccountFault(AccountFault::Unauthorized), 100);
    assert!(lane.out.is_empty());
    lane.engine.probe_now(lane.now.at);
    lane.pass(Duration::from_millis(200));
    assert_eq!(lane.out.len(), 1);
}

#[test]
fn a_hold_lets_rows_that_were_chosen_take_more_events() {
    let mut lane = ByHand::new(Policy {
        rows_per_minute: Some(60),
        batch: BatchPolicy { max_rows: 1, linger: Duration::ZERO, ..policy().batch },
        ..policy()
    });
    lane.gain(&[gained(PARTITION)]);
    lane.read(0, r#"{"userId":"a"}"#);
    lane.read(1, r#"{"userId":"b"}"#);
    lane.pass(Duration::from_millis(900));
    let sealed = |lane: &ByHand| lane.engine.rows.iter().filter(|(_, row)| row.stage == Stage::Sealed).count();
    assert_eq!((lane.out.len(), sealed(&lane)), (1, 1), "the next one is chosen before its second comes");
    lane.answer("a", Verdict::AccountFault(AccountFault::Unauthorized));
    assert_eq!(sealed(&lane), 0);
    lane.read(2, r#"{"userId":"b","traits":{"plan":"pro"}}"#);
    assert_eq!(lane.engine.tally.counters.events_merged, 1);
}

#[test]
fn jobs_and_the_requests_of_a_row_are_counted() {
    let mut lane = ByHand::new(policy());
    lane.gain(&[gained(PARTITION)]);
    lane.read(0, r#"{"userId":"u"}"#);
    for (end, job_ends) in [(Verdict::Unavailable(Outage::JobLost), "lost"), (Verdict::Delivered, "completed")] {
        lane.pass(Duration::from_secs(120));
        let (batch, _) = lane.out.remove(0);
        let pending = Answer::Pending { job: JobId("j".into()), poll_after: Duration::from_secs(1) };
        lane.engine.on_answer(batch, pending, Some(200), lane.now.at);
        lane.pass(Duration::from_secs(2));
        let (polled, _) = lane.out.remove(0);
        assert_eq!(polled, batch);
        lane.engine.on_answer(polled, Answer::All(end), Some(200), lane.now.at);
        lane.turn();
        assert_eq!(lane.engine.tally.counters.jobs.get(job_ends), Some(&1));
    }
    assert_eq!(lane.engine.tally.counters.jobs.get("submitted"), Some(&2));
    lane.read(1, r#"{"userId":"refused"}"#);
    lane.pass(Duration::from_secs(2));
    lane.answer("refused", Verdict::Throttled { retry_after: None });
    lane.pass(Duration::from_secs(120));
    lane.answer("refused", Verdict::Rejected(Rejection::local(RejectReason::Invalid, None, "no")));
    assert_eq!(lane.letters[0].attempts, 2);
    assert_eq!(lane.engine.tally.counters.rows_sent, 4);
}

#[test]
fn rows_that_a_request_of_several_makes_suspect_go_again_at_once_and_in_halves() {
    let mut lane = ByHand::new(policy());
    lane.gain(&[gained(PARTITION)]);
    (0..4).for_each(|n| lane.take_in(n, None, &format!(r#"{{"userId":"user-{n}"}}"#)));
    lane.pass(Duration::from_secs(2));
    let (batch, users) = lane.out.remove(0);
    assert_eq!(users.len(), 4);
    let suspect = Verdict::Suspect(Rejection::local(RejectReason::Invalid, None, "one of them"));
    lane.engine.on_answer(batch, Answer::All(suspect), Some(400), lane.now.at);
    lane.pass(Duration::from_millis(500));
    assert_eq!(lane.out.iter().map(|(_, users)| users.len()).collect::<Vec<_>>()[..1], [2]);
}
