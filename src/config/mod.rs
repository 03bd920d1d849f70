//! Composes the components' settings into one configuration, and says everything that is wrong with it at once.

mod load;
mod problem;
mod read;
mod schema;
mod validate;
mod vendors;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::de::{self, Deserializer, Unexpected};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::event::{self, Rules};
use crate::kafka::settings::{KafkaSettings, MASK};
use crate::lane::settings::{Batch, Buffer, DeadLetter, Limit, Request, Retry};
use crate::providers::headers::is_token;
use crate::providers::{self, ProviderConfig};
use crate::sender::tls::{Tls, TlsSettings};
use crate::token::TokenSource;
use crate::units::{ByteCount, HumanDuration};

pub use problem::{Problem, Problems};
pub use schema::json_schema;

/// The whole configuration, valid by construction of [`Config::load`], with the providers' defaults filled in.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
#[schemars(default, deny_unknown_fields)]
pub struct Config {
    pub kafka: KafkaSettings,
    pub events: EventSettings,
    /// By id; the id is the lane's name.
    #[schemars(schema_with = "schema::destinations")]
    pub destinations: BTreeMap<String, Destination>,
    pub http: HttpSettings,
    pub shutdown: ShutdownSettings,
    pub log: LogSettings,
    /// See [`Config::hash`].
    #[serde(skip)]
    #[schemars(skip)]
    hash: String,
}

impl Config {
    /// Reads the files in order, then the environment over them; later wins.
    ///
    /// `environment` is what the process was given; variables that do not start with `SLUICEGATE__` are ignored. With
    /// ids in `only`, all other destinations are turned off, so that their tokens need not be here.
    ///
    /// # Errors
    /// Everything that is wrong, at once; no text of it holds a secret.
    pub fn load(
        files: &[PathBuf],
        environment: impl IntoIterator<Item = (String, String)>,
        only: &[String],
    ) -> Result<Config, Problems> {
        let layers = load::read_files(files)?;
        Config::from_layers(layers, environment, only)
    }

    /// Reads one YAML text as if it were the only file, without an environment.
    ///
    /// # Errors
    /// Everything that is wrong, at once.
    pub fn from_yaml(text: &str) -> Result<Config, Problems> {
        Config::from_layers(vec![("configuration".to_owned(), text.to_owned())], [], &[])
    }

    /// Where the process with these settings answers operators, whatever else is wrong with them: a health check must
    /// not depend on a token that only the worker is given.
    ///
    /// # Errors
    /// What cannot be read on the way to `http.listen`.
    pub fn listen(
        files: &[PathBuf],
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<SocketAddr, Problems> {
        let tree = load::merged(load::read_files(files)?, environment)?;
        match tree.get("http").and_then(|http| http.get("listen")) {
            None => Ok(HttpSettings::default().listen),
            Some(value) => {
                HttpSettings::deserialize(serde_json::json!({ "listen": value })).map(|http| http.listen).map_err(
                    |_| Problems(vec![Problem::new("http.listen", None, "write address:port, such as 0.0.0.0:9464")]),
                )
            }
        }
    }

    fn from_layers(
        layers: Vec<(String, String)>,
        environment: impl IntoIterator<Item = (String, String)>,
        only: &[String],
    ) -> Result<Config, Problems> {
        let merged = load::merged(layers, environment)?;
        let mut problems = Vec::new();
        let mut config = read::config(merged, &mut problems);
        let mut common = config.clone();
        config.keep_only(only, &mut problems);
        let found = validate::problems(&config);
        // A value that could not be read stands at its default, which must not be complained about as well.
        let follow_ups = |problem: &Problem| !problems.iter().any(|first| first.path == problem.path);
        let mut found: Vec<Problem> = found.into_iter().filter(follow_ups).collect();
        problems.append(&mut found);
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        for config in [&mut config, &mut common] {
            config.destinations.iter_mut().for_each(|(id, destination)| destination.fill(id));
        }
        config.hash = common.name_of_settings();
        Ok(config)
    }

    /// The destinations that are turned on.
    pub fn enabled(&self) -> impl Iterator<Item = (&str, &Destination)> {
        self.destinations
            .iter()
            .filter(|(_, destination)| destination.settings.enabled)
            .map(|(id, destination)| (id.as_str(), destination))
    }

    /// What librdkafka is given, with the password from `kafka.password_file`, which is read.
    ///
    /// # Errors
    /// What is wrong with the file, without the password.
    pub fn kafka_properties(&self) -> Result<BTreeMap<String, String>, Problem> {
        self.kafka.client_properties().map_err(|remedy| {
            let file = self.kafka.password_file.as_ref().map(|file| file.display().to_string());
            Problem::new("kafka.password_file", file, remedy)
        })
    }

    /// Reads Kafka's password, and the token and the certificates of each enabled destination, as `run` will.
    ///
    /// # Errors
    /// Each file that cannot be read or does not hold what it should, and destinations that share an account and ask more of
    /// it together than it has.
    pub fn check_files(&self) -> Result<(), Problems> {
        let faults = |(id, destination): (&str, &Destination)| {
            [destination.token_source(id).err(), destination.tls(id).err()].into_iter().flatten()
        };
        let mut unreadable: Vec<Problem> = self.kafka_properties().err().into_iter().collect();
        unreadable.extend(self.enabled().flat_map(faults));
        unreadable.extend(vendors::shared_accounts(self));
        if unreadable.is_empty() { Ok(()) } else { Err(Problems(unreadable)) }
    }

    /// What is valid and hardly meant so; nothing stops for it.
    pub fn warnings(&self) -> Vec<Problem> {
        vendors::warnings(self)
    }

    /// The effective settings as YAML, secrets masked.
    pub fn to_yaml(&self) -> String {
        serde_norway::to_string(self).expect("settings hold only text keys and plain values")
    }

    /// Names the effective settings without their secrets: equal settings have equal hashes, also in other processes. What
    /// tells the processes of one installation apart (`--destinations`, `group.instance.id`) does not count.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    fn name_of_settings(mut self) -> String {
        self.kafka.properties.remove("group.instance.id");
        let text = self.to_yaml();
        let mut hash = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string();
        // 48 bits tell the configurations of one installation apart.
        hash.truncate(12);
        hash
    }

    fn keep_only(&mut self, only: &[String], problems: &mut Vec<Problem>) {
        for id in only {
            match self.destinations.get(id) {
                Some(destination) if destination.settings.enabled => {}
                Some(_) => problems.push(Problem::new(
                    format!("destinations.{id}.enabled"),
                    Some("false".to_owned()),
                    "set it to true, or leave the destination out of --destinations",
                )),
                None => {
                    let ids: Vec<&str> = self.destinations.keys().map(String::as_str).collect();
                    problems.push(Problem::new(
                        "--destinations",
                        Some(id.clone()),
                        format!("no such destination: configured are {}", ids.join(", ")),
                    ));
                }
            }
        }
        if !only.is_empty() {
            for (id, destination) in &mut self.destinations {
                destination.settings.enabled &= only.contains(id);
            }
        }
    }
}

/// How events are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EventSettings {
    /// Longest payload; a longer one is a dead letter.
    pub max_bytes: ByteCount,
    pub anonymous_id: AnonymousId,
    /// The trait that names the account where neither `context.groupId` nor `traits.company.id` does.
    pub account_trait: Option<String>,
    /// How many `messageId`s are remembered per partition, fewer where those of all partitions would take more
    /// than an eighth of the lane's buffer; 0 turns it off.
    pub message_id_window: usize,
    /// User ids that stand for nobody, such as `undefined`: an event with one is a dead letter. Compared without white space, quotes and
    /// ASCII case; in the environment a list separated by commas; an empty list turns it off.
    #[serde(deserialize_with = "ids")]
    pub refuse_user_ids: Vec<String>,
}

/// What a bug writes in place of an id, and what many sites write for whoever is not logged in. A row for one of these would melt
/// different people into one. All that PostHog refuses to identify (`isDistinctIdIllegal`, with our name for a distinct id beside its
/// own), of Mixpanel's list of invalid distinct ids what is nobody's initials or nickname, and how Objective-C writes a null.
const NOBODY: [&str; 27] = [
    "undefined",
    "null",
    "nil",
    "none",
    "nan",
    "(null)",
    "<null>",
    "<nil>",
    "[object object]",
    "[]",
    "{}",
    "true",
    "false",
    "0",
    "-1",
    "00000000-0000-0000-0000-000000000000",
    "n/a",
    "unknown",
    "anonymous",
    "guest",
    "not_authenticated",
    "id",
    "userid",
    "user_id",
    "distinctid",
    "distinct_id",
    "email",
];

/// Reads a list, or the environment's text with commas. YAML takes `null`, `true` and `0` without quotes for other things than text.
fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    const EXPECTED: &str = "a list of user ids, such as [undefined, guest]";
    let wrong = |what| de::Error::invalid_type(what, &EXPECTED);
    let id = |id| match id {
        Value::String(id) => Ok(id),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(id.to_string()),
        Value::Array(_) | Value::Object(_) => Err(wrong(Unexpected::Other("an entry that is no text"))),
    };
    match Value::deserialize(deserializer)? {
        Value::String(text) => Ok(text.split(',').map(str::to_owned).collect()),
        Value::Array(ids) => ids.into_iter().map(id).collect(),
        _ => Err(wrong(Unexpected::Other("no list"))),
    }
}

impl Default for EventSettings {
    fn default() -> Self {
        EventSettings {
            max_bytes: ByteCount::mib(1),
            anonymous_id: AnonymousId::Skip,
            account_trait: None,
            message_id_window: 100_000,
            refuse_user_ids: NOBODY.map(str::to_owned).into(),
        }
    }
}

impl EventSettings {
    pub fn rules(&self) -> Rules {
        Rules {
            max_bytes: self.max_bytes.0,
            use_anonymous_id: self.anonymous_id == AnonymousId::Use,
            account_trait: self.account_trait.clone(),
            // A comma alone is how the environment says that the list is empty.
            refuse_user_ids: self
                .refuse_user_ids
                .iter()
                .map(|id| event::bare_id(id).to_owned())
                .filter(|id| !id.is_empty())
                .collect(),
        }
    }
}

/// What becomes of an event that has only an `anonymousId`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnonymousId {
    Skip,
    /// It stands for the user's id.
    Use,
}

/// One target: a provider's own settings beside those that every destination has. In YAML they are one flat block.
#[derive(Clone, Debug, Serialize)]
pub struct Destination {
    #[serde(flatten)]
    pub provider: ProviderConfig,
    #[serde(flatten)]
    pub settings: DestinationSettings,
}

impl Destination {
    /// Opens the token from where it is configured; a file is read.
    ///
    /// # Errors
    /// Where to look, without the token.
    pub fn token_source(&self, id: &str) -> Result<TokenSource, Problem> {
        let settings = &self.settings;
        TokenSource::new(settings.token.clone(), settings.token_file.clone()).map_err(|error| {
            let file = settings.token_file.as_ref().map(|file| file.display().to_string());
            Problem::new(format!("destinations.{id}.token_file"), file, error.to_string())
        })
    }

    /// Reads the certificates that its connections need.
    ///
    /// # Errors
    /// The file that is unfit, without what stands in it.
    pub fn tls(&self, id: &str) -> Result<Tls, Problem> {
        let settings = &self.settings.tls;
        settings.read().map_err(|error| {
            let file = settings.files().into_iter().find(|(setting, _)| *setting == error.setting);
            let file = file.and_then(|(_, file)| file).map(|file| file.display().to_string());
            Problem::new(format!("destinations.{id}.tls.{}", error.setting), file, error.remedy)
        })
    }

    /// Puts the provider's defaults where nothing is set.
    fn fill(&mut self, id: &str) {
        let shape = providers::build(&self.provider, id).shape();
        let settings = &mut self.settings;
        let limit = settings.limit.rows_per_minute(&shape);
        settings.limit.rows_per_minute = Some(limit);
        settings.batch.max_rows = Some(settings.batch.max_rows(&shape, limit));
        settings.batch.max_bytes = Some(settings.batch.max_bytes(&shape));
        settings.request.max_in_flight = Some(settings.request.max_in_flight(&shape));
    }
}

/// What every destination has, whatever its provider.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DestinationSettings {
    pub enabled: bool,
    /// The provider's API token; better given by the environment or as `token_file`.
    #[serde(deserialize_with = "secret", serialize_with = "masked")]
    #[schemars(with = "Option<String>")]
    pub token: Option<SecretString>,
    /// A file that holds the token; read again when it changes.
    pub token_file: Option<PathBuf>,
    pub tls: TlsSettings,
    pub limit: Limit,
    pub batch: Batch,
    pub request: Request,
    pub retry: Retry,
    pub buffer: Buffer,
    pub dead_letter: DeadLetter,
}

impl Default for DestinationSettings {
    fn default() -> Self {
        DestinationSettings {
            enabled: true,
            token: None,
            token_file: None,
            tls: TlsSettings::default(),
            limit: Limit::default(),
            batch: Batch::default(),
            request: Request::default(),
            retry: Retry::default(),
            buffer: Buffer::default(),
            dead_letter: DeadLetter::default(),
        }
    }
}

/// Where operators look: metrics, health, status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// `address:port` of `/metrics`, `/livez`, `/readyz` and `/status`.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
}

impl Default for HttpSettings {
    fn default() -> Self {
        // 9464 is what OpenTelemetry's Prometheus exporters listen on.
        HttpSettings { listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9464)) }
    }
}

/// How the process ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownSettings {
    /// How long SIGTERM waits for what is in flight.
    pub drain: HumanDuration,
}

impl Default for ShutdownSettings {
    fn default() -> Self {
        // Kubernetes kills after 30 seconds unless told otherwise; 5 are left for the last commit.
        ShutdownSettings { drain: HumanDuration::from_secs(25) }
    }
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    pub format: LogFormat,
    /// A level, or a filter such as `info,sluicegate=debug`.
    pub level: String,
}

impl Default for LogSettings {
    fn default() -> Self {
        LogSettings { format: LogFormat::Auto, level: "info".to_owned() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, else JSON.
    Auto,
    Text,
    Json,
}

/// What is wrong with a token, without showing it; `None` where it can be sent in a header.
fn token_fault(token: &str) -> Option<&'static str> {
    if token.trim().is_empty() {
        return Some("holds no token: put the provider's API token there");
    }
    if token == MASK {
        return Some("is the mask that config print shows: put the provider's API token there");
    }
    if let Some(fault) = vendors::placeholder(token) {
        return Some(fault);
    }
    if !is_token(token) {
        return Some(
            "holds a character that an HTTP header does not take: give the bare token, in one line, without blanks and \
             without a word such as Basic or Bearer before it",
        );
    }
    None
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(SecretString::from))
}

fn masked<S: Serializer>(token: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    token.as_ref().map(|_| MASK).serialize(serializer)
}

/// The file that documents every setting, for the tests that keep it true.
#[cfg(test)]
fn documented_file() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sluicegate.yaml")
}

#[cfg(test)]
mod tests;
