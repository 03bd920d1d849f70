//! The HTTP server of the simulated providers: it reads a request, lets the faults and the provider decide, and answers.

use std::io;
use std::time::{Duration, Instant};

use axum::body::{Body, to_bytes};
use axum::extract::{self, ConnectInfo, State};
use axum::response::Response;
use axum::{Router, serve as serve_http};
use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::exchange::{Reply, Request, RequestRows};
use super::faults::{Faults, Mishap, Plan, Step};
use super::wire::{Cut, Door};
use super::{Kind, ProviderHandle, SimulatedProviders};

/// The longest body in bytes. It is above Userpilot's 50 MB, so that the vendor's rule answers.
const MAX_BODY: usize = 64 * 1024 * 1024;

/// The size of [`Mishap::Huge`]: more than any client should read (a guess).
const HUGE: usize = 16 * 1024 * 1024;

#[derive(Clone)]
struct Shared {
    sites: SimulatedProviders,
    stopped: watch::Receiver<bool>,
}

impl Shared {
    /// Waits for this time, or returns false if the server stops meanwhile.
    async fn pause(&self, time: Duration) -> bool {
        let mut stopped = self.stopped.clone();
        tokio::select! {
            () = tokio::time::sleep(time) => true,
            // An error means that the simulator was dropped, which is a stop as well.
            _ = stopped.wait_for(|stopped| *stopped) => false,
        }
    }

    async fn stop(&self) {
        self.stopped.clone().wait_for(|stopped| *stopped).await.ok();
    }
}

/// Serves until `stopped` turns true or its sender is dropped.
pub(super) async fn serve(
    listener: TcpListener,
    sites: SimulatedProviders,
    stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    let shared = Shared { sites, stopped };
    let waiting = shared.clone();
    let app = Router::new().fallback(handle).with_state(shared);
    let service = app.into_make_service_with_connect_info::<Cut>();
    serve_http(Door(listener), service).with_graceful_shutdown(async move { waiting.stop().await }).await
}

async fn handle(
    State(shared): State<Shared>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    request: extract::Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_BODY).await else {
        return json_response(413, None, &json!({ "error": "body too large" }));
    };
    let path = parts.uri.path().to_owned();
    match (&parts.method, path.as_str()) {
        (&Method::GET, "/state") => return state(&shared.sites, parts.uri.query() != Some("users=false")),
        (&Method::POST, "/faults") => return set_faults(&shared.sites, &body),
        _ => {}
    }
    let Some(kind) = kind_of(&path) else {
        return stray(&shared.sites, &path);
    };
    let request = Request { method: parts.method, path, headers: parts.headers, body };
    serve_call(&shared, kind, request, &cut).await
}

fn kind_of(path: &str) -> Option<Kind> {
    match path.split('/').nth(1)? {
        "analytics" => Some(Kind::Vitally),
        "api" => Some(Kind::Vibefollow),
        "v1" => Some(Kind::Userpilot),
        _ => None,
    }
}

/// The users of a request, in flight until this is dropped. When the client hangs up, this is dropped with the handler.
struct InFlight<'a> {
    site: &'a ProviderHandle,
    users: &'a [String],
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.site.lock().account.store.leave(self.users);
    }
}

async fn serve_call(shared: &Shared, kind: Kind, request: Request, cut: &Cut) -> Response {
    let site = shared.sites.get(kind);
    let rows = RequestRows::read(kind, &request);
    let plan = site.lock().receive(&rows);
    let _in_flight = InFlight { site, users: &rows.users };
    if !shared.pause(plan.before).await {
        return broken(site, plan.request, cut);
    }
    let reply = {
        let mut site = site.lock();
        // The time is taken under the lock, so that arrivals are counted in the order of their times.
        let now = Instant::now();
        site.note_arrival(plan.request, &rows, now);
        site.answer(&request, &rows, &plan.step, now)
    };
    if !shared.pause(plan.after).await {
        return broken(site, plan.request, cut);
    }
    finish(shared, site, &plan, reply, cut).await
}

async fn finish(shared: &Shared, site: &ProviderHandle, plan: &Plan, reply: Reply, cut: &Cut) -> Response {
    let mishap = match &plan.step {
        // A refusal of the token or over the limit comes before any mishap.
        Step::Named(mishap) if reply.status < 300 => *mishap,
        _ => Mishap::Ok,
    };
    let response = match mishap {
        Mishap::Ok => json_response(reply.status, reply.retry_after.as_deref(), &reply.body),
        Mishap::Reset | Mishap::ApplyThenReset => return broken(site, plan.request, cut),
        Mishap::Hang | Mishap::ApplyThenHang => {
            site.lock().note_answer(plan.request, 0);
            shared.stop().await;
            cut.now();
            return Response::new(Body::empty());
        }
        Mishap::Html => page(StatusCode::OK, Body::from("<!doctype html><title>Log in</title><form></form>")),
        Mishap::Redirect => {
            let mut response = page(StatusCode::FOUND, Body::empty());
            response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/login"));
            response
        }
        Mishap::Huge => page(StatusCode::OK, Body::from(vec![b' '; HUGE])),
    };
    site.lock().note_answer(plan.request, response.status().as_u16());
    response
}

fn broken(site: &ProviderHandle, request: u64, cut: &Cut) -> Response {
    site.lock().note_answer(request, 0);
    cut.now();
    Response::new(Body::empty())
}

fn page(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response
}

fn json_response(status: u16, retry_after: Option<&str>, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    // A fault's status comes from a user's script. One that HTTP does not know becomes a 500.
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(value) = retry_after.and_then(|text| HeaderValue::from_str(text).ok()) {
        response.headers_mut().insert(header::RETRY_AFTER, value);
    }
    response
}

/// Answers a path of no vendor and counts it at every provider. A client that follows a redirect ends at `/login`.
fn stray(sites: &SimulatedProviders, path: &str) -> Response {
    for kind in Kind::ALL {
        let counters = &mut sites.get(kind).lock().account.store.counters;
        let counter = if path == "/login" { &mut counters.redirects_followed } else { &mut counters.unknown_paths };
        *counter += 1;
    }
    json_response(404, None, &json!({ "error": "no such path" }))
}

fn state(sites: &SimulatedProviders, with_users: bool) -> Response {
    let show = |kind: Kind| {
        let site = sites.get(kind);
        let snapshot = if with_users { site.snapshot() } else { site.summary() };
        (kind.name().to_owned(), serde_json::to_value(snapshot).unwrap_or_default())
    };
    json_response(200, None, &Value::Object(Kind::ALL.into_iter().map(show).collect::<Map<_, _>>()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetFaults {
    provider: Kind,
    #[serde(default)]
    faults: Faults,
}

fn set_faults(sites: &SimulatedProviders, body: &[u8]) -> Response {
    match serde_json::from_slice::<SetFaults>(body) {
        Ok(set) => {
            sites.get(set.provider).set_faults(set.faults);
            json_response(200, None, &json!({ "ok": true }))
        }
        Err(error) => json_response(400, None, &json!({ "error": format!("not a fault setting: {error}") })),
    }
}

#[cfg(test)]
mod tests {
    use crate::testbed::simulator::{Kind, Mishap, Simulator, SimulatorSettings, Step};
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::Faults;

    async fn simulator() -> Simulator {
        let addr = SocketAddr::from(([127, 0, 0, 1], 0));
        Simulator::start(SimulatorSettings::default(), addr).await.expect("a free port")
    }

    fn client(timeout: Duration) -> reqwest::Client {
        let builder = reqwest::Client::builder().timeout(timeout).redirect(reqwest::redirect::Policy::none());
        builder.no_proxy().build().expect("a client")
    }

    async fn post(simulator: &Simulator, timeout: Duration) -> Result<reqwest::Response, reqwest::Error> {
        let body = r#"{"userId":"a","accountId":"x","traits":{"plan":"pro"},"messageId":"1"}"#;
        client(timeout)
            .post(format!("{}/analytics/v1/user", simulator.base_url()))
            .header("authorization", "Basic demo-vitally-token")
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_row_sent_over_http_is_held_and_shown_in_state() {
        let simulator = simulator().await;
        assert_eq!(post(&simulator, PATIENCE).await.expect("an answer").status(), 200);
        let state = client(PATIENCE).get(format!("{}/state", simulator.base_url())).send().await.expect("an answer");
        let state: serde_json::Value = serde_json::from_slice(&state.bytes().await.expect("a body")).expect("JSON");
        assert_eq!(state["vitally"]["users"]["a"]["traits"]["plan"], "pro");
        assert_eq!(state["vitally"]["max_rows_in_window"], 1);
        assert_eq!(state["vitally"]["counters"]["statuses"]["200"], 1);
        simulator.shutdown().await;
    }

    #[tokio::test]
    async fn a_script_set_over_http_is_played_request_by_request() {
        let simulator = simulator().await;
        let script =
            r#"{"provider":"vitally","faults":{"script":[503,{"status":429,"retry_after":"junk"},"html","redirect"]}}"#;
        let faults = format!("{}/faults", simulator.base_url());
        assert_eq!(client(PATIENCE).post(&faults).body(script).send().await.expect("an answer").status(), 200);
        let mut seen = Vec::new();
        for _ in 0..5 {
            let reply = post(&simulator, PATIENCE).await.expect("an answer");
            let header =
                |name: &str| reply.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
            seen.push((reply.status().as_u16(), header("retry-after"), header("location")));
        }
        let expected = [
            (503, None, None),
            (429, Some("junk".to_owned()), None),
            (200, None, None),
            (302, None, Some("/login".to_owned())),
            (200, None, None),
        ];
        assert_eq!(seen, expected);
        assert_eq!(simulator.provider(Kind::Vitally).summary().counters.rows_applied, 1);
        assert_eq!(client(PATIENCE).post(&faults).body("{}").send().await.expect("an answer").status(), 400);
    }

    #[tokio::test]
    async fn a_reset_loses_the_row_and_apply_then_reset_only_its_answer() {
        let simulator = simulator().await;
        let vitally = simulator.provider(Kind::Vitally);
        let script = [Step::Named(Mishap::Reset), Step::Named(Mishap::ApplyThenReset)].into();
        vitally.set_faults(Faults { script, ..Faults::default() });
        assert!(post(&simulator, PATIENCE).await.is_err());
        assert_eq!(vitally.users().len(), 0);
        assert!(post(&simulator, PATIENCE).await.is_err());
        assert_eq!(vitally.users().len(), 1);
        assert_eq!(vitally.summary().counters.statuses[&0], 2);
    }

    #[tokio::test]
    async fn a_client_that_gives_up_on_a_hanging_answer_frees_its_user() {
        let simulator = simulator().await;
        let vitally = simulator.provider(Kind::Vitally);
        let outage = Some(Step::Named(Mishap::ApplyThenHang));
        vitally.set_faults(Faults { outage, ..Faults::default() });
        let error = post(&simulator, Duration::from_millis(50)).await.expect_err("no answer");
        assert!(error.is_timeout(), "{error:?}");
        assert_eq!(vitally.users().len(), 1);
        while vitally.summary().users_in_flight > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_shutdown_does_not_wait_for_a_hanging_answer() {
        let simulator = simulator().await;
        simulator
            .provider(Kind::Vitally)
            .set_faults(Faults { outage: Some(Step::Named(Mishap::Hang)), ..Faults::default() });
        let vitally = simulator.provider(Kind::Vitally).clone();
        let url = simulator.base_url();
        let hanging = tokio::spawn(async move {
            let request = client(PATIENCE).post(format!("{url}/analytics/v1/user"));
            request.header("authorization", "Basic demo-vitally-token").body("{}").send().await
        });
        while vitally.summary().counters.requests == 0 {
            tokio::task::yield_now().await;
        }
        simulator.shutdown().await;
        assert!(hanging.await.expect("no panic").is_err());
    }

    #[tokio::test]
    async fn two_requests_with_one_user_at_once_are_noted() {
        let simulator = simulator().await;
        let vitally = simulator.provider(Kind::Vitally);
        let latency = Some(crate::testbed::simulator::Latency { min_ms: 100, max_ms: 100 });
        vitally.set_faults(Faults { latency, ..Faults::default() });
        let (one, two) = tokio::join!(post(&simulator, PATIENCE), post(&simulator, PATIENCE));
        assert!(one.is_ok() && two.is_ok());
        assert_eq!(vitally.summary().overlaps, ["a"]);
    }
}
