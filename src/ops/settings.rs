//! The `http` block of the configuration.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
