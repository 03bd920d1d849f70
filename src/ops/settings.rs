//! The `http` block of the configuration.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The address at which operators find metrics, health and status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct HttpSettings {
    /// The `address:port` of `/metrics`, `/livez`, `/readyz` and `/status`.
    #[schemars(with = "String")]
    pub listen: SocketAddr,
}

impl Default for HttpSettings {
    fn default() -> Self {
        // OpenTelemetry's Prometheus exporters listen on 9464.
        HttpSettings { listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 9464)) }
    }
}
