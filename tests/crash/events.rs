//! Generates the events of one seed.
//!
//! Event number 7 of a user sets the trait `n7`, so a test can see which events a row contains.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sluicegate::testbed::random::Random;

/// The key and payload of a record.
pub type Made = (Vec<u8>, Option<Vec<u8>>);

/// The number of users and events, and the shares of odd ones.
#[derive(Clone, Debug)]
pub struct Traffic {
    pub users: u64,
    pub events: usize,
    /// The number of users of whom the simulated providers refuse some events, and of users of whom every request
    /// fails.
    pub poison: u64,
    pub toxic: u64,
    /// The number of users whose events never name an account, which Vitally needs.
    pub homeless: u64,
    /// The percentages of repeats, of events that no worker can read or that are skipped, and of events for some
    /// destinations only.
    pub repeats: u64,
    pub odd: u64,
    pub opted_out: u64,
}

/// A generator of the users' events.
pub struct Maker {
    seed: u64,
    random: Random,
    /// The number of events made and the last event, by user. Only the last event is ever repeated. So it makes no
    /// difference if the worker notices the repeat, which it need not after a crash.
    users: BTreeMap<u64, (u64, Made)>,
}

impl Maker {
    pub fn new(seed: u64) -> Maker {
        Maker { seed, random: Random::new(seed ^ 0x6576_656e_7473), users: BTreeMap::new() }
    }

    pub fn make(&mut self, traffic: &Traffic) -> Vec<Made> {
        (0..traffic.events).map(|_| self.one(traffic)).collect()
    }

    fn one(&mut self, traffic: &Traffic) -> Made {
        // A tenth of the users has a third of the events, so that newer states follow older ones all the time.
        let hot = self.random.chance(0.33);
        let user = self.random.below(if hot { traffic.users.div_ceil(10) } else { traffic.users });
        let percent = |random: &mut Random, share| random.below(100) < share;
        if percent(&mut self.random, traffic.repeats)
            && let Some((_, last)) = self.users.get(&user)
        {
            return last.clone();
        }
        if percent(&mut self.random, traffic.odd) {
            let key = name(user).into_bytes();
            let payload: Option<&[u8]> = match self.random.below(6) {
                0 => None,
                1 => Some(b""),
                2 => Some(br#"{"userId":"#),
                3 => Some(br#"{"type":"track","userId":"somebody"}"#),
                4 => Some(br#"{"anonymousId":"nobody","traits":{"n1":true}}"#),
                _ => Some(br#"{"traits":{"n1":true}}"#),
            };
            return (key, payload.map(<[u8]>::to_vec));
        }
        let mut traits = json!({ "plan": format!("p{}", self.random.below(5)) });
        if self.random.chance(0.1) {
            traits["phone"] = if self.random.chance(0.5) { Value::Null } else { json!("1") };
        }
        // The users with such traits are the last ones, so that they are not hot.
        let place = traffic.users - 1 - user;
        if place < traffic.poison {
            traits["poison"] = json!(self.random.chance(0.5));
        } else if place < traffic.poison + traffic.toxic {
            traits["toxic"] = json!(true);
        }
        let homeless =
            place >= traffic.poison + traffic.toxic && place < traffic.poison + traffic.toxic + traffic.homeless;
        let integrations = percent(&mut self.random, traffic.opted_out).then(|| {
            let destination = *self.random.pick(&["Vitally", "VibeFollow", "userpilot", "All"]);
            json!({ destination: false })
        });
        self.event(user, traits, !homeless, integrations)
    }

    /// Makes an event of a user without any oddity.
    pub fn plain(&mut self, user: u64) -> Made {
        self.event(user, json!({}), true, None)
    }

    fn event(&mut self, user: u64, mut traits: Value, account: bool, integrations: Option<Value>) -> Made {
        let number = self.users.get(&user).map_or(0, |(number, _)| *number) + 1;
        traits["version"] = json!(number);
        traits[format!("n{number}")] = json!(true);
        if account {
            traits["company"] = json!({ "id": format!("c{}", user % 3) });
        }
        let mut event = json!({
            "type": "identify", "userId": name(user), "messageId": format!("{}-{user}-{number}", self.seed),
            "traits": traits,
        });
        if let Some(integrations) = integrations {
            event["integrations"] = integrations;
        }
        let made = (name(user).into_bytes(), Some(event.to_string().into_bytes()));
        self.users.insert(user, (number, made.clone()));
        made
    }
}

fn name(user: u64) -> String {
    format!("user-{user}")
}

/// Returns the numbers of a user's events that a row of these traits merges, in order.
pub fn numbers(traits: &Value) -> Vec<u64> {
    let names = traits.as_object().into_iter().flatten().map(|(name, _)| name);
    let mut numbers: Vec<u64> = names.filter_map(|name| name.strip_prefix('n')?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}
