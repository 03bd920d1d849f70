//! One user of the generated product: the properties that never change, and the events about that user.

use serde_json::{Map, Value, json};

use super::GeneratorSettings;
use crate::testbed::random::Random;

const FIRST_NAMES: [&str; 10] = ["Ada", "Björn", "Chidi", "Dana", "Élise", "Farid", "Grace", "Hiro", "Ines", "Jonas"];
const LAST_NAMES: [&str; 10] =
    ["Okafor", "Lindqvist", "Moreau", "Tanaka", "Silva", "Novak", "O'Brien", "Haddad", "Weber", "Kim"];
const COMPANIES: [&str; 8] =
    ["Acme Inc.", "Globex", "Initech", "Umbrella & Sons", "Hooli", "Stark GmbH", "Wayne SA", "Tyrell"];
const PLANS: [&str; 4] = ["free", "trial", "pro", "enterprise"];
const TITLES: [&str; 4] = ["Engineer", "Product Manager", "Head of Sales", "Support Lead"];
const CITIES: [&str; 5] = ["Berlin", "São Paulo", "Nairobi", "Osaka", "Toronto"];
const TAGS: [&str; 5] = ["beta", "admin", "newsletter", "sso", "api"];
/// Traits that only some events carry; no other trait and no derived field depends on them.
const OPTIONAL: [&str; 3] = ["phone", "coupon", "trialEndsAt"];

/// The place of the traits in a user's events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Top,
    Context,
    /// Both places; the traits in `context` are older and must lose.
    Both,
}

/// The properties of a user that never change, derived from the seed and the user's number.
pub(super) struct Person {
    number: u64,
    pub id: Value,
    pub key: Vec<u8>,
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
    pub fn new(settings: &GeneratorSettings, number: u64) -> Person {
        let mut random = Random::new(settings.seed.wrapping_mul(0x0100_0000_01b3) ^ number);
        let numeric = random.chance(settings.numeric_ids);
        // Every other integer id is above 2^53 and has digits that a double would lose.
        let digits = if number.is_multiple_of(2) { 100_000 + number } else { 9_007_199_254_740_993 + number };
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

    /// Returns true if some provider refuses rows of this user.
    pub fn is_refused_somewhere(&self) -> bool {
        self.poison || !self.has_account
    }

    /// Returns the traits of one event. Events of one user mix the styles of different producers: a whole name, both
    /// parts or only one, and either spelling of the join date.
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
        // Without a group id, every event has to name the account here.
        let partial = event.chance(settings.partial);
        if self.has_account && (!partial || !self.group_id) {
            put("company", self.company.clone());
        }
        if !partial {
            match event.below(if self.whole_name { 6 } else { 3 }) {
                0 => _ = put("firstName", json!(self.first)),
                1 | 2 => {
                    put("firstName", json!(self.first));
                    put("lastName", json!(self.last));
                }
                _ => _ = put("name", json!(format!("{} {}", self.first, self.last))),
            }
            let joined = *event.pick(&["createdAt", "createdAt", "created_at"]);
            put(joined, self.created.clone());
            let position = *event.pick(&["title", "title", "role"]);
            put(position, json!(TITLES[(self.number % TITLES.len() as u64) as usize]));
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
            let name = *event.pick(&OPTIONAL);
            put(name, json!(format!("+49 30 {}", event.between(100_000, 999_999))));
        }
        if event.chance(settings.nulls) {
            let name = *event.pick(&OPTIONAL);
            put(name, Value::Null);
        }
        if self.poison {
            put("poison", json!(true));
        }
        traits
    }

    /// Returns the whole event in Segment's shape.
    pub fn event(&mut self, event: &mut Random, settings: &GeneratorSettings, version: u32, now_ms: i64) -> Value {
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

pub(super) fn message_id(event: &mut Random) -> String {
    uuid::Uuid::from_u64_pair(event.next_u64(), event.next_u64()).to_string()
}

fn iso(ms: i64) -> String {
    // This fails only for a start far outside of history, and the error's text then shows it.
    jiff::Timestamp::from_millisecond(ms).map_or_else(|error| error.to_string(), |time| format!("{time:.3}"))
}
