//! The worker in the demo: starts its lanes, reads their figures as an operator would, and kills one of them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::Error;
use crate::app::{self, App};
use crate::config::Config;
use crate::metrics::Metrics;
use crate::ops::Board;
use crate::testbed::simulator::Kind;

/// The longest time for the lanes to write their figures; a turn of a lane's loop takes milliseconds.
const REFRESH: Duration = Duration::from_millis(500);

/// The figures of a lane, as `/status` and `/metrics` report them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures {
    pub lane: String,
    pub state: String,
    pub consumed: u64,
    pub rows_sent: u64,
    pub merged: u64,
    pub dead_letters: u64,
    pub settled: u64,
    pub pending_events: u64,
    pub pending_rows: u64,
    pub window_rows: u64,
    /// The lane's share of the limit; `None` for unlimited.
    pub rows_per_minute: Option<u32>,
    pub drain: Option<Duration>,
    /// The events that were pending when the lane was killed; the lane reads them again.
    pub died: u64,
    /// The events consumed less settled less pending, without its sign, summed over restarts.
    pub ledger_difference: u64,
}

impl Figures {
    /// Adds the totals from before a restart.
    fn add_totals(&mut self, before: &Figures) {
        self.consumed += before.consumed;
        self.rows_sent += before.rows_sent;
        self.merged += before.merged;
        self.dead_letters += before.dead_letters;
        self.settled += before.settled;
        self.died += before.died;
        self.ledger_difference += before.ledger_difference;
    }

    /// Returns the figures of a killed lane, to which its totals are then added.
    fn dead(before: &Figures) -> Figures {
        Figures {
            lane: before.lane.clone(),
            state: KILLED.to_owned(),
            rows_per_minute: before.rows_per_minute,
            ..Figures::default()
        }
    }
}

/// The state that is shown for a killed lane.
pub(super) const KILLED: &str = "killed";

/// A worker that plays one process, as far as one process can show several.
pub(super) struct Worker {
    config: Config,
    running: Option<Running>,
    /// The totals from before the last restart, by lane.
    before: Vec<Figures>,
}

struct Running {
    board: Arc<Board>,
    metrics: Arc<Metrics>,
    address: Option<SocketAddr>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), app::Error>>,
}

impl Worker {
    /// Starts a worker.
    ///
    /// # Errors
    /// The error that keeps the worker from starting.
    pub async fn start(mut config: Config) -> Result<Worker, Error> {
        let running = Running::start(&config).await?;
        // After a restart the worker serves at the same address.
        config.http.listen = running.address.unwrap_or(config.http.listen);
        Ok(Worker { config, running: Some(running), before: Vec::new() })
    }

    /// Returns the address at which the worker serves, or did before it was killed.
    pub fn address(&self) -> SocketAddr {
        self.running.as_ref().and_then(|running| running.address).unwrap_or(self.config.http.listen)
    }

    /// Asks the lanes for their figures.
    pub async fn figures(&self) -> Vec<Figures> {
        let Some(running) = &self.running else {
            return self.before.iter().map(Figures::dead).map(|f| self.with_totals(f)).collect();
        };
        let fresh = running.board.refresh(REFRESH).await;
        let statuses = running.board.lanes();
        let text = running.metrics.encode();
        drop(fresh);
        let lanes = statuses.into_iter().map(|status| {
            let total = |name: &str| total(&text, name, &status.destination);
            Figures {
                consumed: total("events_consumed_total"),
                rows_sent: total("rows_sent_total"),
                merged: total("events_merged_total"),
                died: 0,
                dead_letters: total("dead_letters_total"),
                settled: total("events_settled_total"),
                ledger_difference: total("ledger_difference"),
                lane: status.destination,
                state: status.state,
                pending_events: status.pending_events,
                pending_rows: status.pending_rows,
                window_rows: status.budget.window_rows,
                rows_per_minute: status.budget.rows_per_minute,
                drain: status.drain_eta_seconds.map(Duration::from_secs_f64),
            }
        });
        lanes.map(|figures| self.with_totals(figures)).collect()
    }

    fn with_totals(&self, mut figures: Figures) -> Figures {
        if let Some(before) = self.before.iter().find(|before| before.lane == figures.lane) {
            figures.add_totals(before);
        }
        figures
    }

    /// Ends the worker as `kill -9` would, as far as one process allows: it drains nothing and commits nothing.
    pub async fn kill(&mut self) {
        let mut figures = self.figures().await;
        figures.iter_mut().for_each(|figures| figures.died += figures.pending_events);
        if let Some(running) = self.running.take() {
            running.task.abort();
            // The task is cancelled; until then its port is taken.
            drop(running.task.await);
            self.before = figures;
        }
    }

    /// Starts the killed worker again.
    ///
    /// # Errors
    /// The error that keeps the worker from starting.
    pub async fn start_again(&mut self) -> Result<(), Error> {
        self.running = Some(Running::start(&self.config).await?);
        Ok(())
    }

    /// Returns true if the worker has ended by itself, which it never should.
    pub fn has_ended(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.task.is_finished())
    }

    /// Drains and ends the worker.
    ///
    /// # Errors
    /// The error with which the worker had ended by itself.
    pub async fn stop(&mut self) -> Result<(), Error> {
        let Some(running) = self.running.take() else { return Ok(()) };
        running.stop.send_replace(true);
        match running.task.await {
            Ok(result) => result.map_err(Error::Worker),
            Err(_) => Err(Error::Worker(app::Error::Panicked)),
        }
    }
}

impl Running {
    async fn start(config: &Config) -> Result<Running, Error> {
        let app = match App::start(config).await {
            // A real worker or another demo has taken the usual port.
            Err(app::Error::Listen { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                let mut config = config.clone();
                config.http.listen.set_port(0);
                App::start(&config).await
            }
            result => result,
        };
        let app = app.map_err(Error::Worker)?;
        let (stop, stopped) = watch::channel(false);
        Ok(Running {
            board: app.board(),
            metrics: app.metrics(),
            address: app.address(),
            stop,
            task: tokio::spawn(app.run(stopped)),
        })
    }
}

/// Returns the sum of a metric's series of this destination, without its sign.
fn total(text: &str, name: &str, destination: &str) -> u64 {
    let label = format!("destination=\"{destination}\"");
    let values = text.lines().filter_map(|line| {
        let labels = line.strip_prefix("sluicegate_")?.strip_prefix(name)?.strip_prefix('{')?;
        let (labels, value) = labels.rsplit_once("} ")?;
        labels.split(',').any(|one| one == label).then(|| value.parse::<f64>().ok())?
    });
    values.sum::<f64>().abs() as u64
}

/// Returns the configuration of these lanes, written as a user would write it.
///
/// # Errors
/// A mistake in the text below.
pub(super) fn config(brokers: &str, providers: &str, listen: SocketAddr, lanes: &[Kind]) -> Result<Config, Error> {
    use super::auditor::{GROUP, TOPIC};
    use std::fmt::Write as _;
    // The new group protocol joins the mock cluster in 0.2 s and not in 3 s. Waits and time-outs are short, so that a
    // minute shows what otherwise takes ten. All other settings are the defaults.
    let mut text = format!(
        "kafka:\n  brokers: {brokers}\n  topics: [{TOPIC}]\n  group: {GROUP}\n  properties: {{ group.protocol: consumer }}\n\
         http: {{ listen: \"{listen}\" }}\nshutdown: {{ drain: 5s }}\ndestinations:\n"
    );
    for kind in lanes {
        let name = kind.name();
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "  {name}:\n    type: {name}\n    base_url: \"{providers}\"\n    token: demo-{name}-token\n    \
             request: {{ timeout: 5s }}\n    retry: {{ initial: 500ms, max: 4s }}\n"
        );
    }
    Config::from_yaml(&text).map_err(Error::Config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_total_is_the_sum_over_all_labels_of_one_destination_and_one_metric() {
        let text = "# HELP sluicegate_rows_sent_total Rows.\n\
            sluicegate_rows_sent_total{destination=\"vitally\"} 7\n\
            sluicegate_rows_sent_total{destination=\"userpilot\"} 9\n\
            sluicegate_dead_letters_total{destination=\"vitally\",reason=\"empty\"} 2\n\
            sluicegate_dead_letters_total{destination=\"vitally\",reason=\"invalid\"} 3\n\
            sluicegate_ledger_difference{destination=\"vitally\"} -4\n";
        assert_eq!(total(text, "rows_sent_total", "vitally"), 7);
        assert_eq!(total(text, "dead_letters_total", "vitally"), 5);
        assert_eq!(total(text, "ledger_difference", "vitally"), 4);
        assert_eq!(total(text, "rows_sent", "vitally"), 0);
    }

    #[test]
    fn the_configuration_is_one_that_a_user_could_write() {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = config("127.0.0.1:1", "http://127.0.0.1:2", listen, &Kind::ALL).expect("a valid configuration");
        assert_eq!(config.enabled().map(|(id, _)| id).collect::<Vec<_>>(), ["userpilot", "vibefollow", "vitally"]);
    }
}
