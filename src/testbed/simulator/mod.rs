//! The three providers, simulated over real HTTP on one port: limits, shapes and faults that share no code with the worker.
//!
//! `GET /state` shows what each provider holds and has counted; `GET /state?users=false` leaves out the users.
//! `POST /faults` replaces the faults of one provider, for example with this body:
//!
//! ```json
//! {"provider": "vitally", "faults": {"script": [503, "reset"]}}
//! ```

mod account;
mod exchange;
mod faults;
mod journal;
mod multipart;
mod offline;
mod server;
mod site;
mod store;
#[cfg(test)]
mod test_provider;
mod userpilot;
mod vibefollow;
mod vitally;
mod window;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub use faults::{Faults, Latency, Mishap, Step};
pub use journal::{Arrival, Effect};
pub use offline::OfflineProvider;
pub use store::{Counters, Regression};
pub(in crate::testbed) use vibefollow::is_address;

use journal::Journal;
use site::SimulatedProvider;

/// The three vendors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Vitally,
    Vibefollow,
    Userpilot,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Vitally, Kind::Vibefollow, Kind::Userpilot];

    /// Returns the vendor's name in settings, in `/state` and in `/faults`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Vitally => "vitally",
            Kind::Vibefollow => "vibefollow",
            Kind::Userpilot => "userpilot",
        }
    }

    /// Returns the names of the fields that hold a row's user id and traits.
    fn fields(self) -> (&'static str, &'static str) {
        match self {
            Kind::Vitally => ("userId", "traits"),
            Kind::Vibefollow => ("external_user_id", "traits"),
            Kind::Userpilot => ("user_id", "metadata"),
        }
    }
}

/// The most rows that every provider takes in any 60 s, which is the rate that the worker promises to each of them.
pub const LIMIT: u64 = 1_200;

/// The token and the limit that one provider enforces.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The text after `Basic`, `Bearer` or `Token`, compared unchanged.
    pub token: String,
    /// The most rows in any sliding window; `None` for no limit.
    pub rows_per_window: Option<u32>,
}

/// The behavior of the simulated providers before any fault.
#[derive(Clone, Debug)]
pub struct SimulatorSettings {
    pub vitally: Limits,
    pub vibefollow: Limits,
    pub userpilot: Limits,
    /// The length of the sliding window that the limits count in.
    pub window: Duration,
    /// The speed of a Userpilot job; higher in tests that cannot wait.
    pub job_rows_per_minute: u32,
    /// The time that a Userpilot job stays queued before it starts.
    pub job_queue_delay: Duration,
    /// The seed of the latencies and of the jobs' names.
    pub seed: u64,
    /// True if every row is kept as it arrives, for [`ProviderHandle::arrived`] and [`ProviderHandle::effects`].
    pub journal: bool,
}

impl Default for SimulatorSettings {
    /// Returns the limit that the worker promises to keep at each provider, 1,200 rows in 60 s. The queue delay is a
    /// guess.
    fn default() -> Self {
        let limits = |kind: Kind| Limits { token: format!("demo-{}-token", kind.name()), rows_per_window: Some(1_200) };
        SimulatorSettings {
            vitally: limits(Kind::Vitally),
            vibefollow: limits(Kind::Vibefollow),
            userpilot: limits(Kind::Userpilot),
            window: Duration::from_secs(60),
            job_rows_per_minute: 1_200,
            job_queue_delay: Duration::from_millis(200),
            seed: 1,
            journal: false,
        }
    }
}

impl SimulatorSettings {
    pub fn limits(&self, kind: Kind) -> &Limits {
        match kind {
            Kind::Vitally => &self.vitally,
            Kind::Vibefollow => &self.vibefollow,
            Kind::Userpilot => &self.userpilot,
        }
    }
}

/// The users and the counts of one provider at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// The fields by user: `traits` next to `accountId` (Vitally) or `email` (VibeFollow), or `metadata` next to
    /// `company_id` (Userpilot).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub users: BTreeMap<String, Value>,
    pub user_count: usize,
    /// The most rows that any sliding window has held so far, refused ones included.
    pub max_rows_in_window: u64,
    /// The number of requests that came over the limit; 0 if and only if the limit was kept.
    pub limit_violations: u64,
    /// The first hundred regressions; `counters.regressions` counts all.
    pub regressions: Vec<Regression>,
    /// The first hundred users who were under way twice at once; `counters.overlaps` counts all.
    pub overlaps: Vec<String>,
    pub users_in_flight: usize,
    pub counters: Counters,
}

/// A handle to one simulated provider in this process, which can be cloned.
#[derive(Clone)]
pub struct ProviderHandle {
    site: Arc<Mutex<SimulatedProvider>>,
}

impl ProviderHandle {
    fn lock(&self) -> MutexGuard<'_, SimulatedProvider> {
        // A poisoned lock means that a handler panicked; the state that it left is still worth reading.
        self.site.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns everything, users included.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { users: self.users(), ..self.summary() }
    }

    /// Returns everything but the users, which is cheap enough to ask for twice a second.
    pub fn summary(&self) -> Snapshot {
        let mut site = self.lock();
        site.settle(Instant::now());
        let account = &site.account;
        Snapshot {
            users: BTreeMap::new(),
            user_count: account.store.user_count(),
            max_rows_in_window: account.window.max_rows(),
            limit_violations: account.window.violations(),
            regressions: account.store.regressions.clone(),
            overlaps: account.store.overlaps.clone(),
            users_in_flight: account.store.in_flight(),
            counters: account.store.counters.clone(),
        }
    }

    /// Returns the users that the provider holds.
    pub fn users(&self) -> BTreeMap<String, Value> {
        let mut site = self.lock();
        site.settle(Instant::now());
        site.account.store.users()
    }

    /// Returns the time at which each user's last row took effect, or was seen to have. The rows of a job take effect
    /// when the provider is next asked.
    pub fn changed(&self) -> BTreeMap<String, Instant> {
        let mut site = self.lock();
        site.settle(Instant::now());
        site.account.store.changed.clone()
    }

    /// Returns the time and the number of rows of each request, oldest first; only the newest million requests.
    pub fn arrivals(&self) -> Vec<(Instant, u32)> {
        self.lock().account.window.arrivals().collect()
    }

    /// Returns every row that arrived, oldest first; none without [`SimulatorSettings::journal`].
    pub fn arrived(&self) -> Vec<Arrival> {
        self.lock().account.store.journal.as_ref().map_or_else(Vec::new, Journal::arrivals)
    }

    /// Returns every row that took effect, oldest first; none without [`SimulatorSettings::journal`].
    pub fn effects(&self) -> Vec<Effect> {
        let mut site = self.lock();
        site.settle(Instant::now());
        site.account.store.journal.as_ref().map_or_else(Vec::new, Journal::effects)
    }

    /// Replaces the faults of this provider.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Returns the current faults, without the steps and counts that are used up.
    pub fn faults(&self) -> Faults {
        self.lock().faults.clone()
    }
}

/// The running server. Dropping it also stops the server, without waiting.
pub struct Simulator {
    addr: SocketAddr,
    sites: SimulatedProviders,
    stop: watch::Sender<bool>,
    task: JoinHandle<io::Result<()>>,
}

/// One handle per vendor.
#[derive(Clone)]
struct SimulatedProviders {
    vitally: ProviderHandle,
    vibefollow: ProviderHandle,
    userpilot: ProviderHandle,
}

impl SimulatedProviders {
    fn get(&self, kind: Kind) -> &ProviderHandle {
        match kind {
            Kind::Vitally => &self.vitally,
            Kind::Vibefollow => &self.vibefollow,
            Kind::Userpilot => &self.userpilot,
        }
    }
}

impl Simulator {
    /// Listens on `addr` (port 0 for a free one) and serves on the current tokio runtime.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn start(settings: SimulatorSettings, addr: SocketAddr) -> io::Result<Simulator> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let handle = |kind| ProviderHandle { site: Arc::new(Mutex::new(SimulatedProvider::new(kind, &settings))) };
        let sites = SimulatedProviders {
            vitally: handle(Kind::Vitally),
            vibefollow: handle(Kind::Vibefollow),
            userpilot: handle(Kind::Userpilot),
        };
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(server::serve(listener, sites.clone(), stopped));
        Ok(Simulator { addr, sites, stop, task })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Returns the `base_url` of a destination, which is the same for all three.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn provider(&self, kind: Kind) -> &ProviderHandle {
        self.sites.get(kind)
    }

    /// Stops listening, cuts the connections that hang, and waits until every connection is closed.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        // The server's only errors are those of the listener, which is gone now.
        self.task.await.ok();
    }
}
