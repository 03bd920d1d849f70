//! Makes identify events as a busy product would send them; equal seeds make equal events.
//!
//! Each user keeps to one style: the place of the traits, the way of naming the account, the form of `createdAt`. So
//! the state that a provider holds in the end does not depend on how the worker merged the events. Each event of a user
//! has a trait `version` that grows by one, so that a judge can see a state that went back.

mod person;

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::random::Random;
use person::{Person, message_id};

/// One Kafka record to produce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedEvent {
    /// The user's id, so that all events of a user are in one partition.
    pub key: Vec<u8>,
    /// The value of the record; `None` for a tombstone.
    pub payload: Option<Vec<u8>>,
}

/// The settings of the generator. Each share is from 0 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorSettings {
    pub seed: u64,
    /// The number of users, at least one.
    pub users: u64,
    /// The number of events, repeats and bad ones included.
    pub events: u64,
    /// The time of the first event in milliseconds since 1970, and the milliseconds between two events.
    pub start_ms: i64,
    pub step_ms: i64,
    /// The share of the events that go to the first hundredth of the users.
    pub hot: f64,
    /// The share of the events that carry only a few traits.
    pub partial: f64,
    /// The share of the events in which a trait is null.
    pub nulls: f64,
    /// The share of the events that repeat one of the last [`REPEAT_REACH`] exactly.
    pub repeats: f64,
    /// The share of the events that no worker can read or attribute to a user.
    pub bad: f64,
    /// The share of the events that are tombstones, of another type, or anonymous.
    pub other: f64,
    /// The share of the events that have an `integrations` object.
    pub integrations: f64,
    /// The share of the users whose events never name an account.
    pub no_account: f64,
    /// The share of the users whose `userId` is a JSON integer, for some of them beyond 2^53.
    pub numeric_ids: f64,
    /// The share of the users whose e-mail address has no `@`.
    pub bad_emails: f64,
    /// The share of the users with `"poison": true` in every event, which the simulated providers refuse.
    pub poison: f64,
}

impl GeneratorSettings {
    /// Returns settings whose every event is one that each provider takes, and none comes twice. So a sender that does not
    /// merge sends one row per event. No user is busier than others.
    pub fn plain(events: u64, users: u64) -> Self {
        GeneratorSettings {
            events,
            users,
            hot: 0.0,
            repeats: 0.0,
            bad: 0.0,
            other: 0.0,
            integrations: 0.0,
            no_account: 0.0,
            bad_emails: 0.0,
            ..GeneratorSettings::default()
        }
    }
}

/// The reach of a repeat, in events. It is so short that any window of message ids still holds the original.
pub const REPEAT_REACH: usize = 64;

impl Default for GeneratorSettings {
    /// Returns guesses at a healthy product's stream, with enough of each oddity to be seen in a short run.
    fn default() -> Self {
        GeneratorSettings {
            seed: 1,
            users: 1_000,
            events: 10_000,
            // 2026-01-05T08:00:00Z, a Monday morning.
            start_ms: 1_767_600_000_000,
            step_ms: 20,
            hot: 0.2,
            partial: 0.4,
            nulls: 0.03,
            repeats: 0.02,
            bad: 0.01,
            other: 0.01,
            integrations: 0.03,
            no_account: 0.01,
            numeric_ids: 0.1,
            bad_emails: 0.01,
            poison: 0.0,
        }
    }
}

/// The iterator over the events, in log order.
pub struct Generator {
    settings: GeneratorSettings,
    random: Random,
    versions: Vec<u32>,
    recent: VecDeque<GeneratedEvent>,
    made: u64,
}

impl Generator {
    pub fn new(settings: GeneratorSettings) -> Self {
        let users = settings.users.max(1);
        let settings = GeneratorSettings { users, ..settings };
        Generator {
            random: Random::new(settings.seed),
            versions: vec![0; users as usize],
            recent: VecDeque::new(),
            made: 0,
            settings,
        }
    }

    fn make(&mut self) -> GeneratedEvent {
        let now_ms = self.settings.start_ms + self.settings.step_ms * self.made as i64;
        if !self.recent.is_empty() && self.random.chance(self.settings.repeats) {
            let back = self.random.below(self.recent.len() as u64) as usize;
            return self.recent[back].clone();
        }
        let number = self.choose_user();
        let mut person = Person::new(&self.settings, number);
        if self.random.chance(self.settings.bad) {
            return bad(&mut self.random, &person);
        }
        if self.random.chance(self.settings.other) {
            return other(&mut self.random, &person);
        }
        let version = &mut self.versions[number as usize];
        *version += 1;
        let is_refused = person.is_refused_somewhere();
        let mut event = person.event(&mut self.random, &self.settings, *version, now_ms);
        let plain = !self.random.chance(self.settings.integrations);
        if !plain {
            event["integrations"] = integrations(&mut self.random);
        }
        let event = GeneratedEvent { key: person.key, payload: Some(event.to_string().into_bytes()) };
        // Only plain events repeat, since the repeat of an event that opts out may count as a repeat or as an opt-out.
        // Only events of users whom no provider refuses repeat, since the repeat of a dead letter does not count as a
        // repeat.
        if plain && !is_refused {
            if self.recent.len() == REPEAT_REACH {
                self.recent.pop_front();
            }
            self.recent.push_back(event.clone());
        }
        event
    }

    fn choose_user(&mut self) -> u64 {
        let users = self.settings.users;
        let hot = self.random.chance(self.settings.hot);
        self.random.below(if hot { users.div_ceil(100) } else { users })
    }
}

impl Iterator for Generator {
    type Item = GeneratedEvent;

    fn next(&mut self) -> Option<GeneratedEvent> {
        (self.made < self.settings.events).then(|| {
            let event = self.make();
            self.made += 1;
            event
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.settings.events - self.made) as usize;
        (left, Some(left))
    }
}

/// Returns an opt-out or opt-in under the names and spellings that senders for Segment and RudderStack use.
fn integrations(random: &mut Random) -> Value {
    let choices = [
        json!({ "Vitally": false }),
        json!({ "VITALLY": false, "All": true }),
        json!({ "VibeFollow": false }),
        json!({ "vibefollow": { "note": "an object means on" } }),
        json!({ "All": false, "Userpilot Cloud (Actions)": true }),
        json!({ "userpilot": false }),
        json!({ "Userpilot Mobile": false }),
        json!({ "All": false }),
        json!({ "All": false, "vitally": {} }),
        json!({ "Vitally": "neither on nor off", "All": true }),
        json!({ "Salesforce": false }),
    ];
    random.pick(&choices).clone()
}

/// Makes a record that becomes a dead letter at every destination.
fn bad(random: &mut Random, person: &Person) -> GeneratedEvent {
    let id = &person.id;
    let payload = match random.below(8) {
        0 => format!(r#"{{"type":"identify","userId":{id},"traits":{{"plan":"#).into_bytes(),
        1 => b"{\"type\":\"identify\",\"userId\":\"\xff\xfe\"}".to_vec(),
        2 => Vec::new(),
        3 => json!({ "type": "identify", "traits": { "plan": "pro" } }).to_string().into_bytes(),
        4 => json!({ "type": "identify", "userId": { "id": id } }).to_string().into_bytes(),
        5 => json!({ "type": "identify", "userId": "   ", "traits": {} }).to_string().into_bytes(),
        6 => json!({ "type": "identify", "userId": id, "traits": "plan=pro" }).to_string().into_bytes(),
        _ => format!(r#"{{"userId":{id},"traits":{{"deep":{}{}}}}}"#, "[".repeat(200), "]".repeat(200)).into_bytes(),
    };
    GeneratedEvent { key: person.key.clone(), payload: Some(payload) }
}

/// Makes a record that every destination skips.
fn other(random: &mut Random, person: &Person) -> GeneratedEvent {
    let event = match random.below(3) {
        0 => None,
        1 => Some(json!({ "type": "track", "userId": person.id, "event": "Opened", "messageId": message_id(random) })),
        _ => Some(json!({ "type": "identify", "anonymousId": message_id(random), "traits": { "plan": "free" } })),
    };
    GeneratedEvent { key: person.key.clone(), payload: event.map(|event| event.to_string().into_bytes()) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn events(settings: GeneratorSettings) -> Vec<GeneratedEvent> {
        Generator::new(settings).collect()
    }

    fn parsed(event: &GeneratedEvent) -> Option<Value> {
        serde_json::from_slice(event.payload.as_deref()?).ok()
    }

    #[test]
    fn the_same_seed_makes_the_same_events_and_another_seed_others() {
        let settings = GeneratorSettings { events: 500, ..GeneratorSettings::default() };
        assert_eq!(events(settings.clone()), events(settings.clone()));
        assert_ne!(events(settings.clone()), events(GeneratorSettings { seed: 2, ..settings }));
    }

    #[test]
    fn an_event_is_about_six_hundred_bytes() {
        let all = events(GeneratorSettings { bad: 0.0, other: 0.0, ..GeneratorSettings::default() });
        let bytes: usize = all.iter().filter_map(|event| event.payload.as_ref()).map(Vec::len).sum();
        assert!((500..900).contains(&(bytes / all.len())), "{}", bytes / all.len());
    }

    #[test]
    fn versions_of_a_user_grow_by_one_and_the_older_place_loses() {
        let mut last: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        let settings = GeneratorSettings { repeats: 0.0, bad: 0.0, other: 0.0, ..GeneratorSettings::default() };
        for event in events(settings) {
            let value = parsed(&event).expect("a readable event");
            let version = |traits: &Value| traits["version"].as_u64();
            let version = version(&value["traits"]).or(version(&value["context"]["traits"])).expect("a version");
            let seen = last.entry(event.key).or_default();
            assert_eq!(version, *seen + 1);
            *seen = version;
        }
    }

    #[test]
    fn every_oddity_occurs_in_a_default_run() {
        let all = events(GeneratorSettings::default());
        let count = |test: &dyn Fn(&GeneratedEvent) -> bool| all.iter().filter(|event| test(event)).count();
        assert!(count(&|event| event.payload.is_none()) > 10);
        assert!(count(&|event| event.payload.is_some() && parsed(event).is_none()) > 20);
        let share = |test: &dyn Fn(&Value) -> bool| count(&|event| parsed(event).is_some_and(|value| test(&value)));
        assert!(share(&|event| event["type"] == "track") > 10);
        assert!(share(&|event| event["userId"].as_u64().is_some_and(|id| id > 1 << 53)) > 10);
        assert!(share(&|event| event["integrations"].is_object()) > 100);
        assert!(share(&|event| event["traits"]["phone"].is_null() && event["traits"].get("phone").is_some()) > 10);
        let mut ids: BTreeMap<String, u32> = BTreeMap::new();
        for event in all.iter().filter_map(parsed) {
            *ids.entry(event["messageId"].to_string()).or_default() += 1;
        }
        assert!(ids.values().filter(|copies| **copies > 1).count() > 100);
    }

    #[test]
    fn a_hundredth_of_the_users_gets_the_hot_share() {
        let all = events(GeneratorSettings { hot: 0.5, ..GeneratorSettings::default() });
        let mut per_key: BTreeMap<&[u8], usize> = BTreeMap::new();
        all.iter().for_each(|event| *per_key.entry(&event.key).or_default() += 1);
        let mut counts: Vec<usize> = per_key.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let hottest: usize = counts.iter().take(10).sum();
        assert!(hottest > all.len() * 45 / 100, "{hottest}");
    }
}
