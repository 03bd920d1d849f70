//! The events of a run: more users at the start than the limit lets through, and newer events of them during the run.

use serde_json::json;
use sluicegate::testbed::random::Random;

/// The key and payload of one record.
pub type Event = (Vec<u8>, Option<Vec<u8>>);

/// A generator of identify events whose trait `version` grows by one per user.
pub struct Backlog {
    versions: Vec<u32>,
    random: Random,
    about: String,
}

/// The number of users with frequent events, so that a newer state follows an older one within seconds.
const HOT: u64 = 50;

impl Backlog {
    /// Creates a generator; `event_bytes` is the rough length of an event.
    pub fn new(users: usize, event_bytes: usize) -> Self {
        // An event has 190 bytes without the padding.
        let about = "x".repeat(event_bytes.saturating_sub(190));
        Backlog { versions: vec![0; users], random: Random::new(848), about }
    }

    /// Returns one event of each user.
    pub fn first(&mut self) -> Vec<Event> {
        (0..self.versions.len()).map(|user| self.event(user)).collect()
    }

    /// Returns newer events, half of them of hot users and half of any users.
    pub fn more(&mut self, events: usize) -> Vec<Event> {
        (0..events)
            .map(|n| {
                let users = if n % 2 == 0 { HOT } else { self.versions.len() as u64 };
                let user = self.random.below(users) as usize;
                self.event(user)
            })
            .collect()
    }

    fn event(&mut self, user: usize) -> Event {
        self.versions[user] += 1;
        let version = self.versions[user];
        let event = json!({
            "type": "identify",
            "userId": format!("user-{user}"),
            "messageId": format!("message-{user}-{version}"),
            "traits": {
                "version": version,
                "email": format!("user-{user}@example.com"),
                "company": { "id": "acme" },
                "about": self.about,
            },
        });
        (format!("user-{user}").into_bytes(), Some(event.to_string().into_bytes()))
    }
}
