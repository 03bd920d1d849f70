//! The faults of a provider, one at a time: no event is lost, no user is set back, and the lane names the fault.
//!
//! | fault | tests |
//! |---|---|
//! | 429 with seconds or a date, or with an absurd, negative or unreadable wait | `throttle::*`, `gateway::a_429_page_*`, `gateway::a_date_to_wait_for_that_is_a_lifetime_away_*`, `gateway::a_503_that_names_a_time_*` |
//! | 500, 502, 503, 504, once and for long | `gateway::a_500_*`, `a_502_*`, `a_503_once_*`, `a_504_*`; among successes: `gateway::errors_among_*`, `outage::a_provider_that_flaps_*` |
//! | 401, 403, 404, 405, redirects | `account::*`, `gateway::a_page_that_means_the_account_*`, `outage::a_redirect_*` |
//! | a bad row in a batch | `account::a_few_bad_rows_*`, `account::six_*`, `account::twelve_*`, `rows::a_row_that_makes_*`, `dead_letters::*` |
//! | success in another form, page of an edge, unreadable success, request that the provider never looked at | `judging::*` |
//! | 413 | `rows::a_request_that_is_too_large_*`, `rows::a_row_that_is_too_large_alone_*` |
//! | a job that fails, is lost, or is another client's | `jobs::*`, `dead_letters::a_failing_userpilot_job_*` |
//! | reply lost after the request was applied | `replies::*`, `outage::a_reply_that_is_lost_*`, `outage::a_lost_reply_*` |
//! | connection closed or reset, before or with a request | `network::requests_that_are_reset_*`, `connections_that_are_closed_*`, `connections_that_end_*` |
//! | connection that dies silently | `network::kept_connections_that_are_dead_*`, over HTTP/2 `tls::over_http2_*` |
//! | black hole, deaf host, slow loris | `network::a_black_hole_*`, `a_provider_that_reads_nothing_*`, `a_reply_that_trickles_*`, `interim_replies_*`, `tls::a_handshake_that_never_ends_*` |
//! | reply without an end | `network::a_body_*`, `a_chunked_body_*`, `a_head_*`, `replies_without_an_end_*` |
//! | host gone, address refused or swallowed, name unknown or moved | `network::a_host_that_is_gone_*`, `attempts_to_connect_*`, `names::*`, `sender::tests::names::*` |
//! | certificate expired, from an unknown authority, or for another host; no root certificates | `tls::*` |
//! | one destination down, the others healthy | `neighbors::*`, `lanes::one_lane_down_*`, `lanes::under_overload_*` |

mod account;
mod gateway;
mod guard;
mod jobs;
mod judging;
mod names;
mod neighbors;
mod network;
mod outage;
mod replies;
mod rows;
mod throttle;
mod tls;

use serde_json::json;
use sluicegate::testbed::simulator::{Faults, Kind, SimulatorSettings, Step};

use crate::proxy::{Fault, Proxy};
use crate::support::{Worker, World, until};

/// The keys of a block that make a test short: no linger, quick retries, and a limit that is not the subject.
const QUICK: &str = "batch: { linger: 0s }, request: { timeout: 5s }, retry: { initial: 50ms, max: 500ms }, \
                     limit: { rows_per_minute: 60000 }";

/// The same keys with one request at a time, so that no two requests arrive together.
const ONE_BY_ONE: &str = "batch: { linger: 0s }, request: { timeout: 5s, max_in_flight: 1 }, \
                          retry: { initial: 50ms, max: 500ms }, limit: { rows_per_minute: 60000 }";

/// Returns the settings of providers without limits, whose jobs end at once.
pub fn roomy() -> SimulatorSettings {
    let mut settings = SimulatorSettings { job_rows_per_minute: 60_000, ..SimulatorSettings::default() };
    for limits in [&mut settings.vitally, &mut settings.vibefollow, &mut settings.userpilot] {
        limits.rows_per_window = None;
    }
    settings
}

/// Returns an event of this user that every provider accepts. `more` holds further traits.
pub fn event(user: &str, version: u64, more: serde_json::Value) -> (Vec<u8>, Option<Vec<u8>>) {
    let mut traits = json!({ "version": version, "plan": "pro" });
    if let (Some(traits), serde_json::Value::Object(more)) = (traits.as_object_mut(), more) {
        traits.extend(more);
    }
    let event = json!({
        "type": "identify", "userId": user, "messageId": format!("{user}-{version}"),
        "timestamp": "2026-01-02T03:04:05.000Z", "context": { "groupId": "acme" }, "traits": traits,
    });
    (user.as_bytes().to_vec(), Some(event.to_string().into_bytes()))
}

/// Generates one event for each of `users` users.
pub fn round(users: u64, version: u64) -> impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)> {
    (0..users).map(move |user| event(&format!("user-{user}"), version, json!({})))
}

pub fn set(world: &World, kind: Kind, faults: Faults) {
    world.simulator.provider(kind).set_faults(faults);
}

pub fn outage(step: Step) -> Faults {
    Faults { outage: Some(step), ..Faults::default() }
}

pub fn script(steps: impl IntoIterator<Item = Step>) -> Faults {
    Faults { script: steps.into_iter().collect(), ..Faults::default() }
}

/// Waits until this lane has committed the whole log. Then asserts that its provider holds the log's state, that no
/// user was set back, and that there is no dead letter.
pub async fn all_delivered(world: &World, worker: &Worker, kind: Kind) {
    let id = kind.name();
    world.wait_committed(id).await;
    let letters = world.dead_letters(id);
    let headers: Vec<_> = letters.iter().map(|letter| &letter.headers).collect();
    assert!(headers.is_empty(), "{id}: {headers:?}");
    assert_eq!(world.wrong_state(kind), Vec::<String>::new(), "{id}");
    let summary = world.simulator.provider(kind).summary();
    assert_eq!((summary.counters.regressions, summary.counters.keys_reused, summary.counters.malformed), (0, 0, 0));
    assert_eq!(summary.counters.redirects_followed, 0, "{id}");
    assert_eq!(lane_metric(worker, "sluicegate_dead_letters_total", id).await, 0.0, "{id}");
    assert_eq!(lane_metric(worker, "sluicegate_ledger_difference", id).await, 0.0, "{id}");
    assert_eq!(lane_metric(worker, "sluicegate_pending_events", id).await, 0.0, "{id}");
}

/// Asserts that no user had two rows in flight at a time.
pub fn no_overlaps(world: &World, kind: Kind) {
    assert_eq!(world.simulator.provider(kind).summary().overlaps, Vec::<String>::new(), "{kind:?}");
}

pub async fn lane_metric(worker: &Worker, name: &str, id: &str) -> f64 {
    worker.metric(name, &[&format!("destination=\"{id}\"")]).await
}

pub async fn retries(worker: &Worker, id: &str, reason: &str) -> f64 {
    let labels = [format!("destination=\"{id}\""), format!("reason=\"{reason}\"")];
    worker.metric("sluicegate_retries_total", &[&labels[0], &labels[1]]).await
}

pub async fn wait_state(worker: &Worker, id: &str, state: &str) {
    until(&format!("{id} is {state}"), async || worker.state(id).await == state).await;
}

/// A world with a proxy in front of each of its three providers, in the order of `Kind::ALL`.
struct Behind {
    world: World,
    proxies: [Proxy; 3],
}

impl Behind {
    async fn start(partitions: i32) -> Behind {
        let world = World::start(partitions, roomy()).await;
        let to = world.simulator.addr();
        Behind { world, proxies: [Proxy::start(to).await, Proxy::start(to).await, Proxy::start(to).await] }
    }

    fn proxy(&self, kind: Kind) -> &Proxy {
        &self.proxies[Kind::ALL.iter().position(|one| *one == kind).expect("one of three")]
    }

    /// Returns a block whose requests go through the provider's proxy. If no mode is named, Userpilot takes rows one by
    /// one, because its jobs would make each test wait for their polls.
    fn block(&self, kind: Kind, more: &str) -> String {
        let single = format!("mode: single, {more}");
        let is_plain = kind == Kind::Userpilot && !more.contains("mode:");
        let direct = self.world.block(kind.name(), kind, if is_plain { &single } else { more });
        direct.replace(&self.world.simulator.base_url(), &self.proxy(kind).url())
    }

    fn blocks(&self, more: &str) -> String {
        Kind::ALL.map(|kind| self.block(kind, more)).concat()
    }

    fn set(&self, fault: &Fault) {
        self.proxies.iter().for_each(|proxy| proxy.set(fault.clone()));
    }

    /// Writes one event for each of `users` users, and waits until each provider holds these users.
    async fn warm(&mut self, users: u64) {
        self.world.produce_all(round(users, 1)).await;
        for kind in Kind::ALL {
            let provider = self.world.simulator.provider(kind);
            until("the first rows arrive", async || provider.summary().user_count as u64 == users).await;
        }
    }

    /// Waits until the lanes are idle and writes a fresh event. Then asserts that everything has arrived as the log
    /// says, the fresh event included.
    async fn all_well(&mut self, worker: &Worker) {
        for kind in Kind::ALL {
            until("the lane is well", async || worker.state(kind.name()).await == "idle").await;
        }
        let fresh = format!("fresh-{}", self.world.log.len());
        self.world.produce_all([event(&fresh, 1, json!({}))]).await;
        for kind in Kind::ALL {
            all_delivered(&self.world, worker, kind).await;
            assert!(self.world.simulator.provider(kind).users().contains_key(&fresh), "{kind:?}: no fresh event");
            no_overlaps(&self.world, kind);
        }
    }
}

/// Returns the lane's last error in `/status`, or an empty text if there was none.
async fn last_error(worker: &Worker, id: &str) -> String {
    let (_, text) = worker.get("/status").await;
    let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let lanes = status["lanes"].as_array().expect("lanes");
    let lane = lanes.iter().find(|lane| lane["destination"] == id).expect("the lane");
    lane["last_error"]["what"].as_str().unwrap_or_default().to_owned()
}
