//! Builds one configuration from the components' settings, and reports all of its problems at once.
//!
//! The blocks and their defaults are in `lane.rs` and `destination.rs`, in each provider's `Config`, and in the `settings.rs` of
//! `kafka`, `event` and `ops`. A test holds `config/sluicegate.yaml` to them. `Policy::example` of the engine repeats those of a
//! lane for tests and benches.

mod destination;
pub mod lane;
mod load;
mod problem;
mod read;
mod schema;
mod validate;
mod vendors;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::settings::EventSettings;
use crate::kafka::settings::KafkaSettings;
use crate::log::LogSettings;
use crate::ops::settings::HttpSettings;
use crate::units::HumanDuration;

pub use destination::{Destination, DestinationSettings};
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
    /// Reads the files in order and then the environment. A later value replaces an earlier one.
    ///
    /// `environment` holds the variables of the process; those that do not start with `SLUICEGATE__` are ignored. If `only`
    /// holds ids, all other destinations are turned off, so that this process needs no tokens for them.
    ///
    /// # Errors
    /// All problems at once. No text of them holds a secret.
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
    /// All problems at once.
    pub fn from_yaml(text: &str) -> Result<Config, Problems> {
        Config::from_layers(vec![("configuration".to_owned(), text.to_owned())], [], &[])
    }

    /// Returns the address at which a process with these settings answers operators (`http.listen`). All other problems of the
    /// settings are ignored, because a health check must not depend on a token that only the worker has.
    ///
    /// # Errors
    /// Each file, variable or address that prevents reading `http.listen`.
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
        // A value that could not be read has its default here. A second problem about that default would mislead the operator.
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

    /// Returns the properties for librdkafka. Reads the password from `kafka.password_file` if that is set.
    ///
    /// # Errors
    /// The problem of the password file, without the password.
    pub fn kafka_properties(&self) -> Result<BTreeMap<String, String>, Problem> {
        self.kafka.client_properties().map_err(|remedy| {
            let file = self.kafka.password_file.as_ref().map(|file| file.display().to_string());
            Problem::new("kafka.password_file", file, remedy)
        })
    }

    /// Reads Kafka's password, and the token and the certificates of each enabled destination, as `run` does.
    ///
    /// # Errors
    /// Each file that cannot be read or has the wrong content. Destinations that share an account are an error too if together
    /// they ask for more rows a minute than it has.
    pub fn check_files(&self) -> Result<(), Problems> {
        let faults = |(id, destination): (&str, &Destination)| {
            [destination.token_source(id).err(), destination.tls(id).err()].into_iter().flatten()
        };
        let mut unreadable: Vec<Problem> = self.kafka_properties().err().into_iter().collect();
        unreadable.extend(self.enabled().flat_map(faults));
        unreadable.extend(vendors::shared_accounts(self));
        if unreadable.is_empty() { Ok(()) } else { Err(Problems(unreadable)) }
    }

    /// Returns the settings that are valid but probably a mistake. They do not stop the process.
    pub fn warnings(&self) -> Vec<Problem> {
        vendors::warnings(self)
    }

    /// Returns the effective settings as YAML, with secrets masked.
    pub fn to_yaml(&self) -> String {
        serde_norway::to_string(self).expect("settings hold only text keys and plain values")
    }

    /// Returns a name of the effective settings without their secrets. Equal settings have equal hashes, also in other
    /// processes. Settings in which the processes of one installation differ do not count (`--destinations`,
    /// `group.instance.id`).
    pub fn hash(&self) -> &str {
        &self.hash
    }

    fn name_of_settings(mut self) -> String {
        self.kafka.properties.remove("group.instance.id");
        let text = self.to_yaml();
        let mut hash = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string();
        // 48 bits are enough to distinguish the configurations of one installation.
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

/// The settings of the shutdown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownSettings {
    /// The longest time after SIGTERM in which the lanes finish their requests, dead letters and commits.
    pub drain: HumanDuration,
}

impl Default for ShutdownSettings {
    fn default() -> Self {
        // Kubernetes kills a pod after 30 seconds by default, so a drain of 25 leaves 5 for the last commit.
        ShutdownSettings { drain: HumanDuration::from_secs(25) }
    }
}

/// The file that documents every setting. Tests compare it with the code.
#[cfg(test)]
fn documented_file() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sluicegate.yaml")
}

#[cfg(test)]
mod tests;
