//! A proxy between worker and provider that breaks requests, replies and connections as a test asks.
//!
//! It understands HTTP/1.1 messages with a length, so that a fault meets a whole request. `Proxy::raw` passes bytes on
//! without understanding them, for TLS.

mod connection;
mod fault;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use fault::{Cut, Dress, End, Endless, Fault};

/// A request as the worker sent it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The fault that the request met.
    pub fault: Fault,
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    /// Returns the value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// The counts of the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: u64,
    /// The connections that neither side has ended.
    pub open: u64,
    pub requests: u64,
    /// The requests in progress now.
    pub under_way: u64,
    /// The most requests in progress at once since `forget_peak`.
    pub peak: u64,
    pub bytes_from_worker: u64,
    pub bytes_to_worker: u64,
    /// The most bytes that the proxy wrote of one reply before the worker hung up.
    pub longest_reply: u64,
}

#[derive(Default)]
struct Plan {
    script: VecDeque<Fault>,
    standing: Option<Fault>,
    counts: Counts,
    seen: Vec<Seen>,
}

struct Shared {
    upstream: SocketAddr,
    is_raw: bool,
    plan: Mutex<Plan>,
    /// The number of freezes. A connection that began before the last freeze is dead.
    freezes: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_fault(&self) -> Fault {
        let mut plan = self.lock();
        plan.script.pop_front().or_else(|| plan.standing.clone()).unwrap_or(Fault::None)
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock().counts);
    }
}

/// A proxy of one test. Dropping it ends all its connections.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    door: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy that passes HTTP/1.1 requests on to `upstream`.
    pub async fn start(upstream: SocketAddr) -> Proxy {
        Proxy::at(SocketAddr::from(([127, 0, 0, 1], 0)), upstream, false).await.expect("a free port")
    }

    /// Starts a proxy that passes bytes on to `upstream`.
    pub async fn raw(upstream: SocketAddr) -> Proxy {
        Proxy::at(SocketAddr::from(([127, 0, 0, 1], 0)), upstream, true).await.expect("a free port")
    }

    /// Starts a proxy on this address.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn at(address: SocketAddr, upstream: SocketAddr, is_raw: bool) -> io::Result<Proxy> {
        let listener = TcpListener::bind(address).await?;
        let shared = Arc::new(Shared { upstream, is_raw, plan: Mutex::default(), freezes: watch::Sender::new(0) });
        let address = listener.local_addr()?;
        let door = Some(tokio::spawn(accept(listener, Arc::clone(&shared))));
        Ok(Proxy { shared, address, door })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes every request from now on meet this fault.
    pub fn set(&self, fault: Fault) {
        let mut plan = self.shared.lock();
        plan.script.clear();
        plan.standing = Some(fault);
    }

    /// Makes the next requests meet these faults, one each. After them the fault of `set` applies again.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.lock().script.extend(faults);
    }

    pub fn script_left(&self) -> usize {
        self.shared.lock().script.len()
    }

    /// Makes every current connection dead, and neither side notices. New connections work.
    pub fn freeze(&self) {
        self.shared.freezes.send_modify(|freezes| *freezes += 1);
    }

    /// Takes the host away: connections break, and new ones are refused.
    pub async fn close(&mut self) {
        if let Some(door) = self.door.take() {
            door.abort();
            // The task ends as cancelled. It matters only that it has ended and that the port is free.
            let _ = door.await;
        }
        self.shared.count(|counts| counts.open = 0);
    }

    /// Brings the host back on the same address.
    pub async fn open(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port is still free");
        self.door = Some(tokio::spawn(accept(listener, Arc::clone(&self.shared))));
    }

    pub fn counts(&self) -> Counts {
        self.shared.lock().counts
    }

    /// Restarts the count of the most requests at once.
    pub fn forget_peak(&self) {
        self.shared.count(|counts| counts.peak = counts.under_way);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(door) = &self.door {
            door.abort();
        }
    }
}

/// Accepts connections and owns them, so that they end with this task.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        shared.count(|counts| {
            counts.connections += 1;
            counts.open += 1;
        });
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            connection::hold(client, &shared).await;
            shared.count(|counts| counts.open = counts.open.saturating_sub(1));
        });
        while connections.try_join_next().is_some() {}
    }
}
