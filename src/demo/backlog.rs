//! A backlog in the demo: the time at which each user became current, compared with a sender that does not merge.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::text::{clock, grouped};
use crate::testbed::generator::GeneratorSettings;
use crate::testbed::model::{LogEntry, ReadRules, takers};
use crate::testbed::simulator::LIMIT;
use crate::testbed::simulator::{Kind, ProviderHandle};

/// The events and users by default: ten events a user, and at the limit five minutes of rows.
const EVENTS: u64 = 60_000;
const USERS: u64 = 6_000;

/// The time that one row takes at the limit.
const PER_ROW: Duration = Duration::from_millis(60_000 / LIMIT);

/// Returns the events of a backlog. No user is busier than others, since the plain replay that judges the end takes long for
/// busy users.
pub(super) fn generated(seed: u64, events: Option<u64>, users: Option<u64>) -> GeneratorSettings {
    GeneratorSettings { seed, ..GeneratorSettings::plain(events.unwrap_or(EVENTS), users.unwrap_or(USERS)) }
}

/// Returns the time that the rows of these users take at the limit.
pub(super) fn ideal(users: u64) -> Duration {
    Duration::from_millis(users.saturating_mul(60_000 / LIMIT))
}

/// The times at which one user was current, counted from the start of the lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moments {
    /// The measured time at which the user's last row took effect at the provider.
    pub current: Duration,
    /// The computed time at which a sender that does not merge sends the user's last event. It sends one row per event,
    /// in the order of writing and at the limit.
    pub unmerged: Duration,
}

/// The times at which the users of one provider became current, and the rows that this took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Catchup {
    pub provider: &'static str,
    /// Rows that the provider counted against its limit, resends included.
    pub rows: u64,
    pub users: Vec<Moments>,
}

impl Catchup {
    /// Returns the times at which one provider's users became current since the lanes started; `log` is in the order of
    /// writing.
    pub(super) fn of(kind: Kind, log: &[LogEntry], provider: &ProviderHandle, start: Instant) -> Catchup {
        let rows = provider.arrivals().iter().map(|(_, rows)| u64::from(*rows)).sum();
        Catchup::new(kind, log, provider.changed(), rows, start)
    }

    fn new(kind: Kind, log: &[LogEntry], changed: BTreeMap<String, Instant>, rows: u64, start: Instant) -> Catchup {
        let takers = takers(kind, &ReadRules::default(), log);
        let mut unmerged = BTreeMap::new();
        let mut sent = Duration::ZERO;
        for entry in log {
            if let Some(user) = takers.get(&(entry.partition, entry.offset)) {
                sent += PER_ROW;
                unmerged.insert(user.as_str(), sent);
            }
        }
        // A user who is missing at the provider, or whom no event names, fails the check of the provider's state.
        let both = changed.into_iter().filter_map(|(user, changed)| {
            let current = changed.saturating_duration_since(start);
            unmerged.get(user.as_str()).map(|unmerged| Moments { current, unmerged: *unmerged })
        });
        Catchup { provider: kind.name(), rows, users: both.collect() }
    }

    fn last(&self, of: impl Fn(&Moments) -> Duration) -> Duration {
        self.users.iter().map(of).max().unwrap_or_default()
    }

    pub(super) fn line(&self) -> String {
        format!(
            "{:<10} {} users current after {}, with {} rows.",
            self.provider,
            grouped(self.users.len() as u64),
            clock(self.last(|user| user.current)),
            grouped(self.rows),
        )
    }
}

/// Returns a sentence with the time that a sender without merging needs.
pub(super) fn without_merging(catchups: &[Catchup], events: u64) -> String {
    let last = catchups.iter().map(|catchup| catchup.last(|user| user.unmerged)).max().unwrap_or_default();
    format!(
        "Computed: a sender without merging needs {} for {} rows, one for each event, at the same limit.",
        clock(last),
        grouped(events)
    )
}

/// Writes one line for each user and provider, in seconds.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write_csv(path: &Path, catchups: &[Catchup]) -> io::Result<()> {
    let mut text = "provider,current_s,unmerged_s\n".to_owned();
    for catchup in catchups {
        for user in &catchup.users {
            let (current, unmerged) = (user.current.as_secs_f64(), user.unmerged.as_secs_f64());
            text.push_str(&format!("{},{current:.3},{unmerged:.3}\n", catchup.provider));
        }
    }
    std::fs::write(path, text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testbed::generator::Generator;

    fn log(payloads: impl IntoIterator<Item = Option<Vec<u8>>>) -> Vec<LogEntry> {
        let entries = payloads.into_iter().zip(0..);
        entries.map(|(payload, offset)| LogEntry { partition: 0, offset, payload }).collect()
    }

    #[test]
    fn every_event_of_a_backlog_is_a_row_at_every_provider_for_a_sender_without_merging() {
        let settings = generated(1, Some(2_000), Some(200));
        let log = log(Generator::new(settings).map(|event| event.payload));
        for kind in Kind::ALL {
            assert_eq!(takers(kind, &ReadRules::default(), &log).len(), 2_000);
        }
    }

    #[test]
    fn a_user_is_current_with_the_last_row_and_without_merging_with_the_last_event() {
        let event = |user: &str| {
            Some(json!({ "userId": user, "traits": {}, "context": { "groupId": "acme" } }).to_string().into_bytes())
        };
        let log = log([event("ann"), event("ben"), Some(b"{".to_vec()), event("ann")]);
        let start = Instant::now();
        let changed = [("ann", 3), ("ben", 2)];
        let changed = changed.map(|(user, seconds)| (user.to_owned(), start + Duration::from_secs(seconds)));
        let catchup = Catchup::new(Kind::Vitally, &log, BTreeMap::from(changed), 3, start);
        let moments = |seconds, unmerged| Moments {
            current: Duration::from_secs(seconds),
            unmerged: Duration::from_millis(unmerged),
        };
        assert_eq!(catchup.users, [moments(3, 150), moments(2, 100)]);
        assert_eq!(catchup.line(), "vitally    2 users current after 0:03, with 3 rows.");
    }
}
