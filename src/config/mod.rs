//! Composes the components' settings into one configuration, and says everything that is wrong with it at once.

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

    /// Returns the address where the process with these settings answers operators, whatever else is wrong with them. A health
    /// check must not depend on a token that only the worker is given.
    ///
    /// # Errors
    /// The settings that cannot be read on the way to `http.listen`.
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

    /// Returns librdkafka's properties, with the password from `kafka.password_file`, which is read.
    ///
    /// # Errors
    /// The fault of the file, without the password.
    pub fn kafka_properties(&self) -> Result<BTreeMap<String, String>, Problem> {
        self.kafka.client_properties().map_err(|remedy| {
            let file = self.kafka.password_file.as_ref().map(|file| file.display().to_string());
            Problem::new("kafka.password_file", file, remedy)
        })
    }

    /// Reads Kafka's password, and the token and the certificates of each enabled destination, as `run` will.
    ///
    /// # Errors
    /// Each file that cannot be read or has unfit content, and destinations that share an account and ask more of it together
    /// than it has.
    pub fn check_files(&self) -> Result<(), Problems> {
        let faults = |(id, destination): (&str, &Destination)| {
            [destination.token_source(id).err(), destination.tls(id).err()].into_iter().flatten()
        };
        let mut unreadable: Vec<Problem> = self.kafka_properties().err().into_iter().collect();
        unreadable.extend(self.enabled().flat_map(faults));
        unreadable.extend(vendors::shared_accounts(self));
        if unreadable.is_empty() { Ok(()) } else { Err(Problems(unreadable)) }
    }

    /// Returns the settings that are valid and probably not intended; nothing stops for them.
    pub fn warnings(&self) -> Vec<Problem> {
        vendors::warnings(self)
    }

    /// The effective settings as YAML, secrets masked.
    pub fn to_yaml(&self) -> String {
        serde_norway::to_string(self).expect("settings hold only text keys and plain values")
    }

    /// Names the effective settings without their secrets: equal settings have equal hashes, also in other processes. Settings
    /// that differ between the processes of one installation (`--destinations`, `group.instance.id`) do not count.
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

/// The end of the process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownSettings {
    /// The time that SIGTERM waits for rows in flight.
    pub drain: HumanDuration,
}

impl Default for ShutdownSettings {
    fn default() -> Self {
        // Kubernetes kills after 30 seconds by default; 5 are left for the last commit.
        ShutdownSettings { drain: HumanDuration::from_secs(25) }
    }
}

/// The file that documents every setting, for the tests that keep it true.
#[cfg(test)]
fn documented_file() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sluicegate.yaml")
}

#[cfg(test)]
mod tests;
