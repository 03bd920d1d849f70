//! The errors that keep a demo from being shown.

use rdkafka::error::KafkaError;

use crate::app;
use crate::config;
use crate::kafka;

/// An error that keeps a demo from being shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} (--input): {source}")]
    Input { path: String, source: std::io::Error },
    #[error("line {number} of the input has {bytes} bytes; the embedded broker takes 2 MiB, leave it out")]
    Line { number: u64, bytes: usize },
    #[error("{0} events fill the embedded broker: give fewer (--events), or more users (--users) to spread them")]
    Backlog(usize),
    #[error("{path} (--csv): {source}")]
    Csv { path: String, source: std::io::Error },
    #[error("the embedded broker: {0}; see that loopback ports and threads can be had")]
    Broker(#[from] kafka::Error),
    #[error("the embedded broker does not answer: {0}")]
    Audit(#[from] KafkaError),
    #[error("an event cannot be written: {0}")]
    Produce(String),
    #[error("the simulated providers: {0}; see that a loopback port can be had")]
    Simulator(std::io::Error),
    #[error("the demo's own configuration is wrong; this is a bug: {0}")]
    Config(config::Problems),
    #[error(transparent)]
    Worker(#[from] app::Error),
}
