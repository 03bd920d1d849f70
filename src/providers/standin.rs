//! Stand-in for the provider adapters: configuration types only.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub field: &'static str,
    pub value: String,
    pub remedy: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ProviderConfig {
    Vitally(vitally::Config),
    Vibefollow(vibefollow::Config),
    Userpilot(userpilot::Config),
}

impl ProviderConfig {
    pub const TYPES: [&str; 3] = ["vitally", "vibefollow", "userpilot"];

    pub fn type_name(&self) -> &'static str {
        match self {
            ProviderConfig::Vitally(_) => "vitally",
            ProviderConfig::Vibefollow(_) => "vibefollow",
            ProviderConfig::Userpilot(_) => "userpilot",
        }
    }

    pub fn problems(&self) -> Vec<Problem> {
        match self {
            ProviderConfig::Vitally(config) => config.problems(),
            ProviderConfig::Vibefollow(_) | ProviderConfig::Userpilot(_) => Vec::new(),
        }
    }
}

pub fn build(config: &ProviderConfig, _destination: &str) -> Box<dyn Provider> {
    Box::new(StandIn(match config {
        ProviderConfig::Vitally(_) => (100, 1_000_000, 4),
        ProviderConfig::Vibefollow(c) if c.mode == vibefollow::Mode::Single => (1, 1_000_000, 4),
        ProviderConfig::Vibefollow(_) => (1000, 1_000_000, 4),
        ProviderConfig::Userpilot(_) => (1000, 50_000_000, 1),
    }))
}

struct StandIn((usize, usize, usize));

impl Provider for StandIn {
    fn shape(&self) -> Shape {
        let (max_rows, max_bytes, in_flight) = self.0;
        Shape {
            max_rows,
            max_bytes,
            overhead_bytes: 2,
            overhead_bytes_per_row: 1,
            single_below: 0,
            default_rows: max_rows,
            default_in_flight: in_flight,
            default_rows_per_minute: 1200,
            max_in_flight: in_flight * 2,
        }
    }
    fn integration_names(&self) -> &'static [&'static str] {
        &[]
    }
    fn row(&self, _: &Row<'_>) -> Result<EncodedRow, Rejection> {
        unreachable!()
    }
    fn request(&self, _: &[EncodedRow], _: &SecretString) -> http::Request<Bytes> {
        unreachable!()
    }
    fn poll(&self, _: &JobId, _: &SecretString) -> Option<http::Request<Bytes>> {
        None
    }
    fn classify(&self, _: Asked<'_>, _: &Reply) -> Answer {
        unreachable!()
    }
}

pub mod vitally {
    use super::*;

    #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        pub base_url: Option<String>,
        pub mode: Mode,
        pub organization_trait: Option<String>,
    }

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Mode {
        #[default]
        Batch,
        Single,
    }

    impl Config {
        pub fn problems(&self) -> Vec<Problem> {
            if self.base_url.is_some() {
                return Vec::new();
            }
            vec![Problem {
                field: "base_url",
                value: String::new(),
                remedy: "set https://<subdomain>.api.vitally.io".to_owned(),
            }]
        }
    }
}

pub mod vibefollow {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        pub base_url: String,
        pub mode: Mode,
        pub send_nulls: bool,
    }

    impl Default for Config {
        fn default() -> Self {
            Config { base_url: "https://api.vibefollow.com".to_owned(), mode: Mode::Single, send_nulls: false }
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Mode {
        Single,
        Bulk,
    }
}

pub mod userpilot {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    pub struct Config {
        pub base_url: String,
        pub mode: Mode,
        pub stringify: bool,
        pub single_company_id: bool,
    }

    impl Default for Config {
        fn default() -> Self {
            Config {
                base_url: "https://analytex.userpilot.io".to_owned(),
                mode: Mode::BulkJson,
                stringify: false,
                single_company_id: false,
            }
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Mode {
        BulkJson,
        BulkNdjson,
        Single,
        Auto,
    }
}
