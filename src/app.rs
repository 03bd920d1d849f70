//! Builds one lane per destination and runs them all, until a signal comes or a lane panics.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::Config;
use crate::lane::{self, Lane};
use crate::metrics::Metrics;
use crate::ops::{self, Board, Ops};

/// The reason why the worker ends, other than a signal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address} (http.listen): {source}; choose a free port")]
    Listen { address: std::net::SocketAddr, source: io::Error },
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    #[error(transparent)]
    Lane(#[from] lane::Error),
    /// A lane panicked. Kafka has what the lane held, but nothing is known about its state. The other lanes drain, and a new
    /// process starts afresh.
    #[error("a lane panicked; this is a bug, restart the worker")]
    Panicked,
}

/// Runs the worker until SIGTERM or SIGINT and through its drain. A second signal ends the process at once.
///
/// # Errors
/// Returns the reason why the worker cannot start, or a panic.
pub async fn run(config: &Config) -> Result<(), Error> {
    // This comes before anything is started, because a signal during the start must not kill the process unheard.
    let mut signals = Signals::new().map_err(Error::Signals)?;
    let app = App::start(config).await?;
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        signals.next().await;
        let _ = stop.send(true);
        signals.next().await;
        tracing::warn!("second signal: ending at once, what is in flight will be sent again");
        // A thread of its own writes the log.
        tokio::time::sleep(LAST_LINE).await;
        std::process::exit(SECOND_SIGNAL);
    });
    app.run(stopped).await
}

/// The time that an end at once waits for its line to be written. A guess: a hundred times what that takes.
const LAST_LINE: Duration = Duration::from_millis(20);

/// The exit code after a drain that was cut short. It is the code of unavailability, because nothing is lost and nothing is
/// wrong.
pub(crate) const SECOND_SIGNAL: i32 = 69;

/// The signals that ask a process to stop, SIGTERM and SIGINT, from the moment this is made.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns at the next signal.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A worker that has joined its groups and listens, and has not begun to send.
pub struct App {
    lanes: Vec<Lane>,
    listener: TcpListener,
    ops: Ops,
}

impl App {
    /// Starts the lanes of all enabled destinations and binds `http.listen`.
    ///
    /// # Errors
    /// Returns an error if the port is in use, or a lane cannot start.
    pub async fn start(config: &Config) -> Result<App, Error> {
        let address = config.http.listen;
        let listener = TcpListener::bind(address).await.map_err(|source| Error::Listen { address, source })?;
        // If the setting says port 0, this is the port that the system chose.
        let bound = listener.local_addr().unwrap_or(address);
        tracing::info!(address = %bound, "serving /metrics, /livez, /readyz and /status");
        let metrics = Metrics::new();
        metrics.config_info(config.hash());
        let mut board = Board::default();
        let mut lanes = Vec::new();
        for (id, destination) in config.enabled() {
            lanes.push(Lane::start(config, id, destination, &metrics, &mut board)?);
        }
        Ok(App { lanes, listener, ops: Ops { metrics: Arc::new(metrics), board: Arc::new(board) } })
    }

    /// Returns the address at which metrics and status are served.
    pub fn address(&self) -> Option<std::net::SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Returns what the lanes report, for a view in the same process.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.ops.board)
    }

    /// Returns what `/metrics` serves, for a view in the same process. It is fresh after the board was asked to refresh.
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.ops.metrics)
    }

    /// Runs until `shutdown` turns true and all lanes have drained, or until a lane panics. Then the others drain, too.
    ///
    /// # Errors
    /// Returns an error if a lane panicked.
    pub async fn run(self, shutdown: watch::Receiver<bool>) -> Result<(), Error> {
        let (stop, stopped) = watch::channel(false);
        let mut lanes = JoinSet::new();
        for lane in self.lanes {
            lanes.spawn(lane.run(stopped.clone()));
        }
        let (closed, is_closed) = tokio::sync::oneshot::channel::<()>();
        let server = tokio::spawn(ops::serve(self.listener, self.ops, async {
            let _ = is_closed.await;
        }));
        let mut shutdown = shutdown;
        let mut result = Ok(());
        let mut stopping = false;
        loop {
            tokio::select! {
                ended = lanes.join_next() => {
                    match ended {
                        None => break,
                        Some(Ok(())) => {}
                        Some(Err(_)) => {
                            tracing::error!("{}", Error::Panicked);
                            result = Err(Error::Panicked);
                            let _ = stop.send(true);
                        }
                    }
                }
                _ = shutdown.wait_for(|stop| *stop), if !stopping => {
                    stopping = true;
                    let _ = stop.send(true);
                }
            }
        }
        // The server stops after the lanes, so that the last scrape can still see that everything was settled.
        let _ = closed.send(());
        let _ = server.await;
        result
    }
}
