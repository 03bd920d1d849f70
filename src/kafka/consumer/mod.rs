//! The consumer thread of a lane, which keeps polling whatever the loop does.

pub mod messages;
pub mod record_batch;
pub mod settings;

mod broker_query;
mod callbacks;
mod commit;
mod contact;
mod fetched;
mod log_change;
mod mark;
mod pause;
mod place;
mod rebalance;
mod record_queue;
mod stall;
mod starting_point;
mod thread;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::client::{Error, refused};
use super::settings::session_timeout;
use callbacks::Callbacks;
use messages::{Command, SourceEvent};
use settings::{ConsumerSettings, consumer_config};
use thread::Reader;

/// The handle of a running consumer thread. Dropping it closes the consumer.
pub struct Consumer {
    commands: Sender<Command>,
    /// A channel that disconnects when the thread ends.
    ended: Receiver<()>,
}

impl Consumer {
    /// Makes the consumer, joins the group and starts the thread. `events` delivers messages in order, and the last one is
    /// `Closed`.
    pub fn start(
        settings: ConsumerSettings,
        events: tokio::sync::mpsc::Sender<SourceEvent>,
    ) -> Result<Consumer, Error> {
        let config = consumer_config(&settings);
        let (commands, received) = channel();
        let context = Callbacks::new(&settings, session_timeout(&settings.properties), received, events);
        let consumer: BaseConsumer<Callbacks> =
            config.create_with_context(context).map_err(|error| refused(&error, &config))?;
        let topics: Vec<&str> = settings.topics.iter().map(String::as_str).collect();
        consumer.subscribe(&topics).map_err(|error| refused(&error, &config))?;
        let (alive, ended) = channel::<()>();
        let name = format!("consumer-{}", settings.client_id);
        let started = Reader::new(consumer).and_then(|reader| {
            std::thread::Builder::new().name(name.clone()).spawn(move || {
                reader.run();
                drop(alive);
            })
        });
        started.map_err(|source| Error::Thread { name, source })?;
        Ok(Consumer { commands, ended })
    }

    /// Sends a command to the thread. Does nothing if the thread has ended.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
    }

    /// Closes the consumer and waits until the thread ends. Returns false if that takes longer than `deadline`. Blocks the
    /// caller.
    pub fn join(self, deadline: Duration) -> bool {
        self.send(Command::Close);
        self.ended.recv_timeout(deadline) == Err(RecvTimeoutError::Disconnected)
    }
}
