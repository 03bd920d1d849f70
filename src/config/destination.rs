//! A block of `destinations`: the settings of a provider next to those that every destination has.

use std::path::PathBuf;

use schemars::JsonSchema;
use secrecy::SecretString;
use serde::de::Deserializer;
use serde::{Deserialize, Serialize, Serializer};

use super::lane::{Batch, Buffer, DeadLetter, Limit, Request, Retry};
use super::problem::Problem;
use crate::kafka::settings::MASK;
use crate::providers::{self, ProviderConfig};
use crate::sender::tls::{Tls, TlsSettings};
use crate::sender::token::TokenSource;

/// One destination: the provider's own settings, and the settings that every destination has. In YAML they are one flat block.
#[derive(Clone, Debug, Serialize)]
pub struct Destination {
    #[serde(flatten)]
    pub provider: ProviderConfig,
    #[serde(flatten)]
    pub settings: DestinationSettings,
}

impl Destination {
    /// Returns the source of the configured token. Reads the file if the token is in one.
    ///
    /// # Errors
    /// A problem that names the file, without the token.
    pub fn token_source(&self, id: &str) -> Result<TokenSource, Problem> {
        let settings = &self.settings;
        TokenSource::new(settings.token.clone(), settings.token_file.clone()).map_err(|error| {
            let file = settings.token_file.as_ref().map(|file| file.display().to_string());
            Problem::new(format!("destinations.{id}.token_file"), file, error.to_string())
        })
    }

    /// Reads the certificates that the destination's connections need.
    ///
    /// # Errors
    /// The file that cannot be used, without its content.
    pub fn tls(&self, id: &str) -> Result<Tls, Problem> {
        let settings = &self.settings.tls;
        settings.read().map_err(|error| {
            let file = settings.files().into_iter().find(|(setting, _)| *setting == error.setting);
            let file = file.and_then(|(_, file)| file).map(|file| file.display().to_string());
            Problem::new(format!("destinations.{id}.tls.{}", error.setting), file, error.remedy)
        })
    }

    /// Sets the provider's default for each setting that is not set.
    pub(super) fn fill(&mut self, id: &str) {
        let shape = providers::build(&self.provider, id).shape();
        let settings = &mut self.settings;
        let limit = settings.limit.rows_per_minute(&shape);
        settings.limit.rows_per_minute = Some(limit);
        settings.batch.max_rows = Some(settings.batch.max_rows(&shape, limit));
        settings.batch.max_bytes = Some(settings.batch.max_bytes(&shape));
        settings.request.max_in_flight = Some(settings.request.max_in_flight(&shape));
    }
}

/// The settings that every destination has, whatever its provider.
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

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(SecretString::from))
}

fn masked<S: Serializer>(token: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
    token.as_ref().map(|_| MASK).serialize(serializer)
}
