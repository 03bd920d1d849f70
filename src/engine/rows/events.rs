//! The raw events that a pending row keeps: as few as give its state.

use crate::event::{Coverage, Identify, Profile};
use crate::mapping::Mapping;

/// Events are merged when this many with different coverages have come together. That parses all of them, so an event is
/// parsed 2.3 times on average, and a pending user holds at most four events' bytes.
const MERGE_AT: usize = 4;

/// Merging waits until the newer events reach this part of the oldest one. The oldest may hold thousands of traits, and
/// parsing it at every third event would take quadratic time. A user then holds at most one and a half times the state, and
/// one event.
const MERGE_AT_PART: usize = 2;

/// Oldest first; no two of the log with the same coverage, since of those the newer one says all that counts, whatever came
/// between.
#[derive(Debug)]
pub struct Events {
    first: Event,
    more: Vec<Event>,
}

#[derive(Debug)]
struct Event {
    coverage: Coverage,
    payload: Box<[u8]>,
}

impl Events {
    pub fn new(event: &Identify<'_>, payload: &[u8]) -> Self {
        Events { first: Event { coverage: event.coverage, payload: payload.into() }, more: Vec::new() }
    }

    pub fn bytes(&self) -> usize {
        let more: usize = self.more.iter().map(|event| event.payload.len()).sum();
        self.first.payload.len() + more
    }

    /// The oldest one's payload: as it was read, if it is the only one that ever came.
    pub fn first(&self) -> &[u8] {
        &self.first.payload
    }

    /// Puts a newer event on top.
    pub fn push(&mut self, event: &Identify<'_>, payload: &[u8], mapping: &Mapping) {
        match self.covered(event.coverage) {
            Some(older) if older.payload.len() == payload.len() => older.payload.copy_from_slice(payload),
            Some(older) => older.payload = payload.into(),
            None => self.more.push(Event { coverage: event.coverage, payload: payload.into() }),
        }
        self.merge_some(mapping);
    }

    /// Puts newer events on top.
    pub fn append(&mut self, newer: Events, mapping: &Mapping) {
        for event in std::iter::once(newer.first).chain(newer.more) {
            match self.covered(event.coverage) {
                Some(older) => *older = event,
                None => self.more.push(event),
            }
        }
        self.merge_some(mapping);
    }

    /// The changes that all events make together.
    pub fn profile<'a>(&'a self, mapping: &Mapping) -> Profile<'a> {
        let events = std::iter::once(&self.first).chain(&self.more);
        let payloads = events.map(|event| (&*event.payload, event.coverage == Coverage::MERGED));
        mapping.changes(payloads).expect("every kept event was decoded at intake")
    }

    /// The event of this coverage, moved to the newest one's place.
    fn covered(&mut self, coverage: Coverage) -> Option<&mut Event> {
        if coverage == Coverage::MERGED {
            return None;
        }
        if let Some(at) = self.more.iter().position(|event| event.coverage == coverage) {
            self.more[at..].rotate_left(1);
        } else if self.first.coverage == coverage {
            if let Some(second) = self.more.first_mut() {
                std::mem::swap(&mut self.first, second);
                self.more.rotate_left(1);
            }
        } else {
            return None;
        }
        Some(self.more.last_mut().unwrap_or(&mut self.first))
    }

    fn merge_some(&mut self, mapping: &Mapping) {
        let oldest = self.first.payload.len();
        if 1 + self.more.len() >= MERGE_AT && self.bytes() - oldest >= oldest / MERGE_AT_PART {
            let payload = self.profile(mapping).to_event().into();
            self.first = Event { coverage: Coverage::MERGED, payload };
            // A hot user's list must not keep the capacity of its longest moment.
            self.more = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::policy;
    use crate::event::{Decoded, decode};

    fn identify<'a>(payload: &'a str, mapping: &Mapping) -> Identify<'a> {
        match decode(Some(payload.as_bytes()), &mapping.rules) {
            Ok(Decoded::Identify(event)) => event,
            other => panic!("not an event: {other:?}"),
        }
    }

    /// The traits, by name, of events with these traits, one after the other; and the bytes that they are kept in.
    fn state(traits: &[&str]) -> (Vec<String>, usize) {
        let mapping = policy().mapping;
        let payloads: Vec<String> =
            traits.iter().map(|traits| format!(r#"{{"userId":"u","traits":{{{traits}}}}}"#)).collect();
        let mut events = Events::new(&identify(&payloads[0], &mapping), payloads[0].as_bytes());
        for payload in &payloads[1..] {
            events.push(&identify(payload, &mapping), payload.as_bytes(), &mapping);
        }
        let mut traits: Vec<String> =
            events.profile(&mapping).traits.iter().map(|(name, value)| format!("{name}{}", value.get())).collect();
        traits.sort();
        (traits, events.bytes())
    }

    #[test]
    fn an_event_takes_the_place_of_the_one_that_it_covers_whatever_came_between() {
        let (one, bytes) = state(&[r#""a":0"#]);
        assert_eq!(one, ["a0"]);
        assert_eq!(state(&[r#""a":0"#, r#""a":1"#]), (vec!["a1".to_owned()], bytes));
        let (two, bytes) = state(&[r#""a":0,"b":0"#, r#""b":1"#]);
        assert_eq!(two, ["a0", "b1"]);
        // The first one goes to the end, and the other's value is older now.
        let repeated = state(&[r#""a":0,"b":0"#, r#""b":1"#, r#""a":2,"b":2"#]);
        assert_eq!(repeated, (vec!["a2".to_owned(), "b2".to_owned()], bytes));
        let in_turn = [r#""a":0,"b":0"#, r#""b":1"#, r#""a":2,"b":2"#, r#""b":3"#, r#""c":4"#, r#""b":5"#];
        assert_eq!(state(&in_turn).0, ["a2", "b5", "c4"]);
    }

    #[test]
    fn a_user_who_never_stops_talking_holds_four_events_at_most() {
        let talk: Vec<String> = (0..1000).map(|n| format!(r#""t{}":{}"#, n * n % 7, n % 10)).collect();
        let talk: Vec<&str> = talk.iter().map(String::as_str).collect();
        for n in 1..talk.len() {
            let (traits, bytes) = state(&talk[n.saturating_sub(50)..=n]);
            // The squares modulo 7 are 0, 1, 2 and 4: the merged state has four traits, and three events come on top.
            assert!(traits.len() <= 4 && bytes <= 4 * 60 + 20, "{n}: {bytes} bytes");
        }
    }

    #[test]
    fn a_user_with_ever_new_traits_holds_half_as_much_again_as_the_state() {
        let talk: Vec<String> = (0..1000).map(|n| format!(r#""t{n}":{n}"#)).collect();
        let talk: Vec<&str> = talk.iter().map(String::as_str).collect();
        for n in [10, 100, 300, 999] {
            let (traits, bytes) = state(&talk[..=n]);
            let all: usize = talk[..=n].iter().map(|entry| entry.len() + 1).sum();
            assert_eq!(traits.len(), n + 1);
            assert!(bytes <= (all + 60) * 3 / 2 + 2 * 60, "{n}: {bytes} bytes for {all}");
        }
    }
}
