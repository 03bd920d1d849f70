//! The faults of a simulated provider as data, set in the process, over `POST /faults`, or by `demo --fault`.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::testbed::random::Random;

/// The faults of one provider; the default is none. They add up: a latency also delays the answers of an outage.
///
/// Traits in the data cause four more faults, which need no setting.
///
/// - A row with the trait `"poison": true` is refused as the vendor refuses a bad row.
/// - A request that holds a row with `"toxic": true` is answered with 500.
/// - A Userpilot job that holds a row with `"spoiled": true` is accepted and then fails.
/// - A Userpilot job that holds a row with `"dropped": true` completes without that row.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    pub latency: Option<Latency>,
    /// The steps of the next requests that send rows, one step per request. Later requests are normal again.
    pub script: VecDeque<Step>,
    /// The steps of the next polls of a job, one step per poll. Later polls are normal again.
    pub poll_script: VecDeque<Step>,
    /// The step of every request of any kind, until it is cleared; the scripts come first.
    pub outage: Option<Step>,
    /// True if every token is wrong, so that every request is a 401.
    pub wrong_token: bool,
    /// True if the account blocks the message type `user`, so that every user message is a 400. Vitally only.
    pub blocked: bool,
    /// The longest body in bytes. A longer one is a 413, as at a gateway in front of the API.
    pub max_bytes: Option<usize>,
    /// The number of the next jobs that end as `failed`, with nothing applied. Userpilot only.
    pub fail_jobs: u32,
    /// The number of the next polls of a job that are answered with 404. Userpilot only.
    pub lose_polls: u32,
}

/// The time that an answer takes, drawn evenly from the range. A random part of it passes before the rows are counted
/// and applied, the rest before the answer leaves. So the delay is split as on a real way there and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    pub min_ms: u64,
    pub max_ms: u64,
}

/// The outcome of one request, in JSON for example one of these:
///
/// ```json
/// 503
/// "reset"
/// {"status": 429, "retry_after": "2"}
/// {"status": 429, "code": "backfill_queue_full"}
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Step {
    /// An answer with this status in the vendor's envelope, and nothing applied; 2xx is a normal answer.
    Status(u16),
    Named(Mishap),
    /// An answer with this status and this code in the vendor's envelope, and nothing applied. It comes before
    /// `Answer`, which would also match.
    Coded {
        status: u16,
        code: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<String>,
    },
    Answer {
        status: u16,
        /// The text of the header, sent unchanged: seconds, a date, or junk.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after: Option<String>,
        /// True if the rows take effect all the same.
        #[serde(default)]
        applied: bool,
    },
}

/// The faults that are not a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mishap {
    /// No fault, but a normal answer.
    Ok,
    /// A reset of the connection, with nothing applied.
    Reset,
    /// No answer ever, with nothing applied.
    Hang,
    /// The status 200 with a login page, and nothing applied.
    Html,
    /// The status 302 to `/login`, and nothing applied.
    Redirect,
    /// The status 200 with 16 MiB of blanks, and nothing applied.
    Huge,
    /// A reset of the connection after the rows took effect.
    ApplyThenReset,
    /// No answer ever after the rows took effect.
    ApplyThenHang,
}

/// The course of one request, decided at its receipt.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plan {
    /// The number of the request, from 1; 0 for a path or method that the provider does not have.
    pub request: u64,
    pub step: Step,
    pub before: Duration,
    pub after: Duration,
}

impl Faults {
    /// Takes the next step of a script, or else of the outage, and draws the latency.
    pub(super) fn plan(&mut self, poll: bool, random: &mut Random) -> Plan {
        let script = if poll { &mut self.poll_script } else { &mut self.script };
        let step = script.pop_front().or_else(|| self.outage.clone()).unwrap_or(Step::Named(Mishap::Ok));
        let (mut before, mut after) = (0, 0);
        if let Some(latency) = self.latency {
            let total = random.between(latency.min_ms, latency.max_ms);
            before = random.between(0, total);
            after = total - before;
        }
        Plan { request: 0, step, before: Duration::from_millis(before), after: Duration::from_millis(after) }
    }
}

impl Step {
    /// Returns true if the rows take effect.
    pub(super) fn applies(&self) -> bool {
        match self {
            Step::Status(status) => (200..300).contains(status),
            Step::Coded { .. } => false,
            Step::Answer { status, applied, .. } => *applied || (200..300).contains(status),
            Step::Named(mishap) => matches!(mishap, Mishap::Ok | Mishap::ApplyThenReset | Mishap::ApplyThenHang),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_reads_as_statuses_names_and_answers() {
        let faults: Faults =
            serde_json::from_str(r#"{"script": [503, "reset", 200, {"status": 429, "retry_after": "2"}]}"#)
                .expect("a valid script");
        let answer = Step::Answer { status: 429, retry_after: Some("2".into()), applied: false };
        assert_eq!(faults.script, [Step::Status(503), Step::Named(Mishap::Reset), Step::Status(200), answer]);
        let coded: Step = serde_json::from_str(r#"{"status": 429, "code": "full"}"#).expect("a valid step");
        assert_eq!(coded, Step::Coded { status: 429, code: "full".into(), retry_after: None });
        assert!(serde_json::from_str::<Faults>(r#"{"outrage": 503}"#).is_err());
    }

    #[test]
    fn a_script_comes_before_the_outage_and_polls_have_their_own() {
        let mut faults =
            Faults { script: [Step::Status(200)].into(), outage: Some(Step::Named(Mishap::Hang)), ..Faults::default() };
        let mut random = Random::new(1);
        assert_eq!(faults.plan(true, &mut random).step, Step::Named(Mishap::Hang));
        assert_eq!(faults.plan(false, &mut random).step, Step::Status(200));
        assert_eq!(faults.plan(false, &mut random).step, Step::Named(Mishap::Hang));
    }

    #[test]
    fn a_latency_is_split_between_the_way_there_and_the_way_back() {
        let mut faults = Faults { latency: Some(Latency { min_ms: 100, max_ms: 200 }), ..Faults::default() };
        let mut random = Random::new(1);
        for _ in 0..100 {
            let plan = faults.plan(false, &mut random);
            let total = plan.before + plan.after;
            assert!(total >= Duration::from_millis(100) && total <= Duration::from_millis(200), "{total:?}");
        }
    }
}
