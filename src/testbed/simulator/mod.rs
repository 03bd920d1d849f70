//! The three providers, simulated over real HTTP on one port: their limits, shapes and faults, judged independently.
//!
//! `GET /state` (`?users=false` without the users) shows what each provider holds and has counted; `POST /faults` with
//! `{"provider": "vitally", "faults": {"script": [503, "reset"]}}` replaces the faults of one provider.

mod account;
mod exchange;
mod faults;
mod journal;
mod multipart;
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
pub use store::{Counters, Regression};

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

    /// The vendor's name in settings, in `/state` and in `/faults`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Vitally => "vitally",
            Kind::Vibefollow => "vibefollow",
            Kind::Userpilot => "userpilot",
        }
    }

    /// Where a row holds its user's id and its traits.
    fn fields(self) -> (&'static str, &'static str) {
        match self {
            Kind::Vitally => ("userId", "traits"),
            Kind::Vibefollow => ("external_user_id", "traits"),
            Kind::Userpilot => ("user_id", "metadata"),
        }
    }
}

/// What every provider takes in any 60 s (the rate that the worker promises each of them).
pub const LIMIT: u64 = 1_200;

/// What one provider enforces.
#[derive(Clone, Debug)]
pub struct Limits {
    /// What stands behind `Basic`, `Bearer` or `Token`, compared as it is.
    pub token: String,
    /// Most rows in any sliding window; `None` for no limit.
    pub rows_per_window: Option<u32>,
}

/// How the simulated providers behave before any fault.
#[derive(Clone, Debug)]
pub struct SimulatorSettings {
    pub vitally: Limits,
    pub vibefollow: Limits,
    pub userpilot: Limits,
    /// The length of the sliding window that the limits count in.
    pub window: Duration,
    /// How fast a Userpilot job works; higher in tests that cannot wait.
    pub job_rows_per_minute: u32,
    /// How long a Userpilot job stays queued before it starts.
    pub job_queue_delay: Duration,
    /// For the latencies and the names of jobs.
    pub seed: u64,
    /// Whether every row is kept as it arrives: for [`ProviderHandle::arrived`] and [`ProviderHandle::effects`].
    pub journal: bool,
}

impl Default for SimulatorSettings {
    /// The limits as they are: 1,200 rows in 60 s (design, section 6). The queue delay is a guess.
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

/// What one provider holds and has seen at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Per user: `traits` beside `accountId` (Vitally) or `email` (VibeFollow); `metadata` beside `company_id` (Userpilot).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub users: BTreeMap<String, Value>,
    pub user_count: usize,
    /// The most rows that any sliding window has held so far, refused ones included.
    pub max_rows_in_window: u64,
    /// Requests that came over the limit; 0 if and only if the limit was held.
    pub limit_violations: u64,
    /// The first hundred; all are in `counters.regressions`.
    pub regressions: Vec<Regression>,
    /// Users under way twice at once: the first hundred; all are in `counters.overlaps`.
    pub overlaps: Vec<String>,
    pub users_in_flight: usize,
    pub counters: Counters,
}

/// One simulated provider, in process; a handle that can be cloned.
#[derive(Clone)]
pub struct ProviderHandle {
    site: Arc<Mutex<SimulatedProvider>>,
}

impl ProviderHandle {
    fn lock(&self) -> MutexGuard<'_, SimulatedProvider> {
        // A poisoned lock means that a handler panicked; what it left is still worth reading.
        self.site.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything, users included.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { users: self.users(), ..self.summary() }
    }

    /// Everything but the users: cheap enough to ask for twice a second.
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

    /// What the provider holds per user.
    pub fn users(&self) -> BTreeMap<String, Value> {
        let mut site = self.lock();
        site.settle(Instant::now());
        site.account.store.users()
    }

    /// When each user's last row took effect, or was seen to have: a job's rows are given effect when somebody asks.
    pub fn changed(&self) -> BTreeMap<String, Instant> {
        let mut site = self.lock();
        site.settle(Instant::now());
        site.account.store.changed.clone()
    }

    /// When how many rows arrived, oldest first; the newest million requests.
    pub fn arrivals(&self) -> Vec<(Instant, u32)> {
        self.lock().account.window.arrivals().collect()
    }

    /// Every row that arrived, oldest first; empty without [`SimulatorSettings::journal`].
    pub fn arrived(&self) -> Vec<Arrival> {
        self.lock().account.store.journal.as_ref().map_or_else(Vec::new, Journal::arrivals)
    }

    /// Every row that took effect, oldest first; empty without [`SimulatorSettings::journal`].
    pub fn effects(&self) -> Vec<Effect> {
        let mut site = self.lock();
        site.settle(Instant::now());
        site.account.store.journal.as_ref().map_or_else(Vec::new, Journal::effects)
    }

    /// Replaces the faults of this provider.
    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// The faults as they stand, scripts and counts as far as they are used up.
    pub fn faults(&self) -> Faults {
        self.lock().faults.clone()
    }
}

/// The running server. Dropping it stops it too, without waiting.
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

    /// What a destination's `base_url` has to be, the same for all three.
    pub fn base_url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn provider(&self, kind: Kind) -> &ProviderHandle {
        self.sites.get(kind)
    }

    /// Stops listening, breaks off what hangs, and waits until every connection is closed.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        // The server's only errors are those of the listener, which is gone now.
        self.task.await.ok();
    }
}
