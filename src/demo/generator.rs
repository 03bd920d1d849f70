//! Makes identify events as a busy product would send them, the same for the same seed.
//!
//! Each user keeps to one style (where the traits stand, how the account is named, how `createdAt` is written), so
//! that what a provider holds in the end does not depend on how events were merged on the way. Each event of a user
//! carries a growing trait `version`, by which a state that goes back is found out.

use std::collections::VecDeque;

use serde_json::{Map, Value, json};

use super::random::Random;

/// One Kafka record to produce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeneratedEvent {
    /// The user's id: all events of a user land in one partition.
    pub key: Vec<u8>,
    /// `None` for a tombstone.
    pub payload: Option<Vec<u8>>,
}

/// What to generate. Shares are from 0 to 1: of the events, or of the users where it says so.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratorSettings {
    pub seed: u64,
    /// How many users there are; at least one.
    pub users: u64,
    /// How many events come, repeats and bad ones included.
    pub events: u64,
    /// The time of the first event, milliseconds since 1970, and how far apart the events are.
    pub start_ms: i64,
    pub step_ms: i64,
    /// Of the events, those that go to the first hundredth of the users.
    pub hot: f64,
    /// Of the events, those that carry only a few traits.
    pub partial: f64,
    /// Of the events, those in which a trait is null.
    pub nulls: f64,
    /// Of the events, exact repeats of one of the last [`REPEAT_REACH`].
    pub repeats: f64,
    /// Of the events, those that nobody can read or attribute.
    pub bad: f64,
    /// Of the events, tombstones, other types and anonymous ones.
    pub other: f64,
    /// Of the events, those with an `integrations` object.
    pub integrations: f64,
    /// Of the users, those whose events never name an account.
    pub no_account: f64,
    /// Of the users, those whose `userId` is a JSON integer, some beyond 2^53.
    pub numeric_ids: f64,
    /// Of the users, those whose e-mail address has no `@`.
    pub bad_emails: f64,
    /// Of the users, those with `"poison": true` in every event, which the simulated providers refuse.
    pub poison: f64,
}

/// How far back a repeat reaches, in events: near enough that any window of message ids still knows it.
pub const REPEAT_REACH: usize = 64;

impl Default for GeneratorSettings {
    /// The shares are guesses at a healthy product's stream, with enough of each oddity to be seen in a short run.
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

/// The events, in log order.
pub struct Generator {
    settings: GeneratorSettings,
    random: Random,
    versions: Vec<u32>,
    recent: VecDeque<GeneratedEvent>,
    made: u64,
}

const FIRST_NAMES: [&str; 10] = ["Ada", "Björn", "Chidi", "Dana", "Élise", "Farid", "Grace", "Hiro", "Ines", "Jonas"];
const LAST_NAMES: [&str; 10] =
    ["Okafor", "Lindqvist", "Moreau", "Tanaka", "Silva", "Novak", "O'Brien", "Haddad", "Weber", "Kim"];
const COMPANIES: [&str; 8] =
    ["Acme Inc.", "Globex", "Initech", "Umbrella & Sons", "Hooli", "Stark GmbH", "Wayne SA", "Tyrell"];
const PLANS: [&str; 4] = ["free", "trial", "pro", "enterprise"];
const TITLES: [&str; 4] = ["Engineer", "Product Manager", "Head of Sales", "Support Lead"];
const CITIES: [&str; 5] = ["Berlin", "São Paulo", "Nairobi", "Osaka", "Toronto"];
const TAGS: [&str; 5] = ["beta", "admin", "newsletter", "sso", "api"];
/// Traits that come and go; no other trait and no derived field depends on them.
const OPTIONAL: [&str; 3] = ["phone", "coupon", "trialEndsAt"];

/// Where a user's events carry the traits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    Context,
    /// In both; what stands in `context` is older and must lose.
    Both,
}

/// Everything about a user that never changes, derived from the seed and the user's number.
struct Person {
    number: u64,
    id: Value,
    key: Vec<u8>,
    first: &'static str,
    last: &'static str,
    whole_name: bool,
    email: String,
    company: Value,
    has_account: bool,
    group_id: bool,
    place: Place,
    created: Value,
    poison: bool,
    random: Random,
}

impl Person {
    fn new(settings: &GeneratorSettings, number: u64) -> Person {
        let mut random = Random::new(settings.seed.wrapping_mul(0x0100_0000_01b3) ^ number);
        let numeric = random.chance(settings.numeric_ids);
        // Above 2^53 for every other one: digits that a double would lose.
        let digits = if number % 2 == 0 { 100_000 + number } else { 9_007_199_254_740_993 + number };
        let id = if numeric { json!(digits) } else { json!(format!("user_{number:06}")) };
        let key = id.as_str().map_or_else(|| id.to_string(), str::to_owned).into_bytes();
        let (first, last) = (*random.pick(&FIRST_NAMES), *random.pick(&LAST_NAMES));
        let company_number = random.below(settings.users / 5 + 1);
        let company_name = COMPANIES[(company_number % COMPANIES.len() as u64) as usize];
        let company_id =
            if random.chance(0.8) { json!(format!("acc_{company_number}")) } else { json!(4_000 + company_number) };
        let created_ms = settings.start_ms - 86_400_000 - (random.below(86_400 * 700) as i64) * 1_000;
        let created = match random.below(3) {
            0 => json!(iso(created_ms)),
            1 => json!(created_ms / 1_000),
            _ => json!(created_ms),
        };
        let at = if random.chance(settings.bad_emails) { " at " } else { "@" };
        Person {
            number,
            id,
            key,
            first,
            last,
            whole_name: random.chance(0.6),
            email: format!("user{number}{at}example{}.com", company_number),
            company: json!({
                "id": company_id, "name": format!("{company_name} {company_number}"),
                "employees": 5 + random.below(2_000),
            }),
            has_account: !random.chance(settings.no_account),
            group_id: random.chance(0.7),
            place: *random.pick(&[Place::Top, Place::Context, Place::Both]),
            created,
            poison: random.chance(settings.poison),
            random,
        }
    }

    /// The traits of one event. Those that something is derived from (name, company) come whole or not at all.
    fn traits(
        &self,
        event: &mut Random,
        settings: &GeneratorSettings,
        version: u32,
        now_ms: i64,
    ) -> Map<String, Value> {
        let mut traits = Map::new();
        let mut put = |name: &str, value: Value| traits.insert(name.to_owned(), value);
        put("version", json!(version));
        put("email", json!(self.email));
        put("lastSeenAt", json!(iso(now_ms)));
        // Without a group the account has to come from here, in every event.
        let partial = event.chance(settings.partial);
        if self.has_account && (!partial || !self.group_id) {
            put("company", self.company.clone());
        }
        if !partial {
            if self.whole_name {
                put("name", json!(format!("{} {}", self.first, self.last)));
            } else {
                put("firstName", json!(self.first));
                put("lastName", json!(self.last));
            }
            put("createdAt", self.created.clone());
            put("title", json!(TITLES[(self.number % TITLES.len() as u64) as usize]));
            put("address", json!({ "city": event.pick(&CITIES), "country": "DE", "postalCode": "10115" }));
        }
        if !partial || event.chance(0.5) {
            put("plan", json!(event.pick(&PLANS)));
        }
        if event.chance(0.5) {
            put("seats", json!(event.between(1, 500)));
            put("score", json!(event.between(0, 1_000) as f64 / 8.0));
        }
        if event.chance(0.3) {
            put("tags", json!([event.pick(&TAGS), event.pick(&TAGS)]));
            put("modules", json!([{ "id": event.below(9), "on": event.chance(0.5) }]));
            put("marketing", json!(event.chance(0.5)));
        }
        if event.chance(0.3) {
            put(*event.pick(&OPTIONAL), json!(format!("+49 30 {}", event.between(100_000, 999_999))));
        }
        if event.chance(settings.nulls) {
            put(*event.pick(&OPTIONAL), Value::Null);
        }
        if self.poison {
            put("poison", json!(true));
        }
        traits
    }

    /// The whole event in Segment's shape.
    fn event(&mut self, event: &mut Random, settings: &GeneratorSettings, version: u32, now_ms: i64) -> Value {
        let traits = self.traits(event, settings, version, now_ms);
        let mut context = json!({
            "ip": format!("203.0.113.{}", self.random.below(255)),
            "library": { "name": "analytics-node", "version": "2.1.3" },
            "locale": "en-US",
            "userAgent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        });
        if self.has_account && self.group_id {
            context["groupId"] = self.company["id"].clone();
        }
        let mut whole = json!({
            "type": "identify", "userId": self.id, "messageId": message_id(event), "channel": "server",
            "timestamp": iso(now_ms), "originalTimestamp": iso(now_ms - 120), "sentAt": iso(now_ms - 40),
        });
        match self.place {
            Place::Top => whole["traits"] = Value::Object(traits),
            Place::Context => context["traits"] = Value::Object(traits),
            Place::Both => {
                context["traits"] = json!({ "version": version.saturating_sub(1), "email": "old@example.com" });
                whole["traits"] = Value::Object(traits);
            }
        }
        whole["context"] = context;
        whole
    }
}

fn message_id(event: &mut Random) -> String {
    uuid::Uuid::from_u64_pair(event.next_u64(), event.next_u64()).to_string()
}

fn iso(ms: i64) -> String {
    // Only a start far outside of history fails, and its text then says so.
    jiff::Timestamp::from_millisecond(ms).map_or_else(|error| error.to_string(), |time| format!("{time:.3}"))
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
        let mut event = person.event(&mut self.random, &self.settings, *version, now_ms);
        let plain = !self.random.chance(self.settings.integrations);
        if !plain {
            event["integrations"] = integrations(&mut self.random);
        }
        let event = GeneratedEvent { key: person.key, payload: Some(event.to_string().into_bytes()) };
        // Only plain events repeat: whether the repeat of one that opts out counts as a repeat or as an opt-out is open.
        if plain {
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

/// Opt-outs and opt-ins under the names and spellings that senders use (providers.md, section 4).
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

/// A record that becomes a dead letter at every destination.
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

/// A record that is skipped at every destination.
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
