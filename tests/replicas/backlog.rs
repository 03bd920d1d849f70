//! The events of a run: more users at the start than the limit lets through, and newer events of them all the while.

use serde_json::json;
use sluicegate::testbed::random::Random;

/// Key and payload of one record.
pub type Event = (Vec<u8>, Option<Vec<u8>>);

/// Makes identify events whose trait `version` grows by one per user.
pub struct Backlog {
    versions: Vec<u32>,
    random: Random,
    about: String,
}

/// Users who talk all the time, so that a newer state follows an older one within seconds.
const HOT: u64 = 50;

impl Backlog {
    /// `event_bytes`: about how long an event is.
    pub fn new(users: usize, event_bytes: usize) -> Self {
        // 190 bytes are what an event has without the padding.
        let about = "x".repeat(event_bytes.saturating_sub(190));
        Backlog { versions: vec![0; users], random: Random::new(848), about }
    }

    /// One event of each user.
    pub fn first(&mut self) -> Vec<Event> {
        (0..self.versions.len()).map(|user| self.event(user)).collect()
    }

    /// Newer events: half of them of hot users, half of anybody.
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
