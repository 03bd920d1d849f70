//! A worker inside the test's process, and its metrics.

use std::net::SocketAddr;

use sluicegate::app::App;
use sluicegate::config::Config;
use sluicegate::testbed::simulator::Kind;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A worker in this process.
pub struct Worker {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), sluicegate::app::Error>>,
    pub address: SocketAddr,
}

impl Worker {
    pub async fn start(config: &Config) -> Worker {
        let app = App::start(config).await.unwrap_or_else(|error| panic!("{error}"));
        let address = app.address().expect("a bound address");
        let (stop, stopped) = watch::channel(false);
        Worker { stop, task: tokio::spawn(app.run(stopped)), address }
    }

    /// Drains the worker and ends it.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        self.task.await.expect("no panic").unwrap_or_else(|error| panic!("{error}"));
    }

    /// Ends the worker as `kill -9` would, as far as one process allows: it drains nothing, commits nothing and leaves
    /// no group.
    pub fn abort(self) {
        self.task.abort();
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.address);
        let reply = reqwest::get(url).await.expect("the ops endpoint answers");
        (reply.status().as_u16(), reply.text().await.expect("text"))
    }

    /// Returns the sum of all series of this metric whose labels contain all of `labels` (as `name="value"`).
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let (_, text) = self.get("/metrics").await;
        metric(&text, name, labels)
    }

    /// Returns the state that `/status` shows for this lane.
    pub async fn state(&self, id: &str) -> String {
        let (_, text) = self.get("/status").await;
        let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        let lanes = status["lanes"].as_array().expect("lanes");
        let lane = lanes.iter().find(|lane| lane["destination"] == id).expect("the lane");
        lane["state"].as_str().expect("a state").to_owned()
    }
}

pub fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Scrapes a worker without pause, and checks the ledger of each lane in each scrape.
pub struct LedgerWatch {
    stop: watch::Sender<bool>,
    task: JoinHandle<u64>,
}

impl LedgerWatch {
    pub fn start(worker: &Worker) -> LedgerWatch {
        let (stop, stopped) = watch::channel(false);
        let url = format!("http://{}/metrics", worker.address);
        let task = tokio::spawn(async move {
            let client = reqwest::Client::new();
            let mut scrapes = 0;
            while !*stopped.borrow() {
                let reply = client.get(&url).send().await.expect("the ops endpoint answers");
                let text = reply.text().await.expect("text");
                for kind in Kind::ALL {
                    let lane = format!("destination=\"{}\"", kind.name());
                    let value = |name: &str| metric(&text, name, &[&lane]);
                    let ends = value("sluicegate_events_settled_total") + value("sluicegate_pending_events");
                    assert_eq!(value("sluicegate_events_consumed_total"), ends, "{kind:?}, scrape {scrapes}");
                    assert_eq!(value("sluicegate_ledger_difference"), 0.0, "{kind:?}, scrape {scrapes}");
                }
                scrapes += 1;
                tokio::task::yield_now().await;
            }
            scrapes
        });
        LedgerWatch { stop, task }
    }

    /// Ends the watch and returns the number of its scrapes.
    ///
    /// # Panics
    /// If the ledger did not add up in one of them.
    pub async fn end(self) -> u64 {
        self.stop.send_replace(true);
        self.task.await.expect("the books added up in every scrape")
    }
}
