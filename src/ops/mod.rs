//! Answers an operator's requests to the running worker over HTTP: `/metrics`, `/livez`, `/readyz`, `/status`.

mod board;
mod connections;
pub mod settings;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

pub use board::{Ask, Board, Budget, LaneStatus, LastError, Reporter};

use crate::metrics::Metrics;
use connections::Bounded;

/// The time that a scrape waits for a lane to bring its numbers up to date. A turn of a lane's loop takes milliseconds, and
/// Prometheus gives up after 10 s by default.
const REFRESH_DEADLINE: Duration = Duration::from_millis(200);

/// The time without a turn of the loop after which a lane is stuck. The loop turns at least every 5 s, and a revoke or a
/// synchronous commit does not delay it.
const STUCK_AFTER: Duration = Duration::from_secs(30);

/// The time that requests in flight at the end may still take. The server answers them from memory.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The content type of Prometheus' text format, <https://prometheus.io/docs/instrumenting/exposition_formats/#basic-info>.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The data that the endpoint answers from. It knows no lanes, only their reports.
pub struct Ops {
    pub metrics: Arc<Metrics>,
    pub board: Arc<Board>,
}

/// Serves until `shutdown` completes. That should be after the lanes have drained, because the last minutes of a lane are worth
/// watching. Requests in flight then have a second to end.
///
/// # Errors
/// Returns the listener's error.
pub async fn serve(
    listener: TcpListener,
    ops: Ops,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let (stopping, stopped) = oneshot::channel();
    let shutdown = async move {
        shutdown.await;
        // The other end is gone only if the server is gone.
        let _ = stopping.send(());
    };
    let server = axum::serve(Bounded::new(listener), router(ops)).with_graceful_shutdown(shutdown);
    let overdue = async {
        match stopped.await {
            Ok(()) => tokio::time::sleep(LAST_ANSWERS).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        result = server => result,
        () = overdue => Ok(()),
    }
}

fn router(ops: Ops) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/status", get(status))
        .fallback(|| async { (StatusCode::NOT_FOUND, "not found; there are /metrics, /livez, /readyz and /status\n") })
        .method_not_allowed_fallback(|| async { (StatusCode::METHOD_NOT_ALLOWED, "method not allowed; use GET\n") })
        .with_state(Arc::new(ops))
}

async fn metrics(State(ops): State<Arc<Ops>>) -> Response {
    // The lock is held while encoding, because the next scrape must not let the lanes write meanwhile.
    let _fresh = ops.board.refresh(REFRESH_DEADLINE).await;
    ([(header::CONTENT_TYPE, TEXT_FORMAT)], ops.metrics.encode()).into_response()
}

async fn livez(State(ops): State<Arc<Ops>>) -> Response {
    health("stuck", ops.board.stuck(STUCK_AFTER, now_ms()))
}

async fn readyz(State(ops): State<Arc<Ops>>) -> Response {
    health("joining", ops.board.not_joined())
}

/// The answer of `/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    /// The time of the process's clock in milliseconds since 1970. The lanes' times are of the same clock.
    pub now_ms: i64,
    pub lanes: Vec<LaneStatus>,
}

async fn status(State(ops): State<Arc<Ops>>) -> Response {
    let fresh = ops.board.refresh(REFRESH_DEADLINE).await;
    let lanes = ops.board.lanes();
    drop(fresh);
    json(StatusCode::OK, &Status { version: env!("CARGO_PKG_VERSION").to_owned(), now_ms: now_ms(), lanes })
}

/// Returns 200 if no lane is at fault, otherwise 503 with the names of the lanes that are.
fn health(fault: &'static str, lanes: Vec<String>) -> Response {
    #[derive(Serialize)]
    struct Health {
        status: &'static str,
        lanes: Vec<String>,
    }
    let (code, status) =
        if lanes.is_empty() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, fault) };
    json(code, &Health { status, lanes })
}

fn json(code: StatusCode, body: &impl Serialize) -> Response {
    let body = serde_json::to_string(body).expect("plain structs serialize");
    (code, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Served {
        url: String,
        stop: oneshot::Sender<()>,
        server: tokio::task::JoinHandle<io::Result<()>>,
        client: reqwest::Client,
    }

    async fn served(metrics: Arc<Metrics>, board: Board) -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let (stop, stopped) = oneshot::channel();
        let ops = Ops { metrics, board: Arc::new(board) };
        let server = tokio::spawn(serve(listener, ops, async move {
            let _ = stopped.await;
        }));
        Served { url, stop, server, client: reqwest::Client::new() }
    }

    impl Served {
        async fn get(&self, path: &str) -> (u16, String, String) {
            let reply = self.client.get(format!("{}{path}", self.url)).send().await.expect("an answer");
            let status = reply.status().as_u16();
            let content_type = reply.headers()["content-type"].to_str().expect("text").to_owned();
            (status, content_type, reply.text().await.expect("a body"))
        }
    }

    fn lane(destination: &str) -> LaneStatus {
        LaneStatus {
            destination: destination.to_owned(),
            group: format!("g.{destination}"),
            loop_turn_ms: now_ms(),
            ..LaneStatus::default()
        }
    }

    #[tokio::test]
    async fn metrics_come_as_text_and_a_scrape_has_the_lane_write_first() {
        let metrics = Arc::new(Metrics::new());
        let mut board = Board::default();
        let mut reporter = board.lane(lane("vitally"));
        let numbers = metrics.lane("vitally");
        let served = served(Arc::clone(&metrics), board).await;
        let lane = async {
            let ask = reporter.asked().await;
            numbers.events_consumed.set(3);
            ask.answered();
        };
        let ((status, content_type, body), ()) = tokio::join!(served.get("/metrics"), lane);
        assert_eq!((status, content_type.as_str()), (200, TEXT_FORMAT));
        assert!(body.contains("sluicegate_events_consumed_total{destination=\"vitally\"} 3\n"), "{body}");
    }

    #[tokio::test]
    async fn a_lane_that_does_not_answer_holds_no_scrape_up() {
        let metrics = Arc::new(Metrics::new());
        let mut board = Board::default();
        let _reporter = board.lane(lane("vitally"));
        let _numbers = metrics.lane("vitally");
        let served = served(metrics, board).await;
        assert!(served.get("/metrics").await.2.contains("sluicegate_events_consumed_total"));
        let status: serde_json::Value = serde_json::from_str(&served.get("/status").await.2).expect("JSON");
        assert_eq!(status["lanes"][0]["stale"], true);
    }

    #[tokio::test]
    async fn livez_names_the_lane_whose_loop_is_stuck() {
        let mut board = Board::default();
        let turning = board.lane(lane("vitally"));
        let stuck = board.lane(LaneStatus { loop_turn_ms: now_ms() - 31_000, ..lane("userpilot") });
        let served = served(Arc::new(Metrics::new()), board).await;
        let (status, _, body) = served.get("/livez").await;
        assert_eq!((status, body.as_str()), (503, r#"{"status":"stuck","lanes":["userpilot"]}"#));
        stuck.update(|status| status.loop_turn_ms = now_ms());
        turning.update(|status| status.loop_turn_ms = now_ms());
        let (status, content_type, body) = served.get("/livez").await;
        assert_eq!((status, content_type.as_str()), (200, "application/json"));
        assert_eq!(body, r#"{"status":"ok","lanes":[]}"#);
    }

    #[tokio::test]
    async fn readyz_waits_for_every_lane_to_join_its_group() {
        let mut board = Board::default();
        let first = board.lane(lane("vitally"));
        let second = board.lane(lane("userpilot"));
        let served = served(Arc::new(Metrics::new()), board).await;
        first.update(|status| status.joined = true);
        let (status, _, body) = served.get("/readyz").await;
        assert_eq!((status, body.as_str()), (503, r#"{"status":"joining","lanes":["userpilot"]}"#));
        second.update(|status| status.joined = true);
        assert_eq!(served.get("/readyz").await.0, 200);
    }

    #[tokio::test]
    async fn status_shows_what_each_lane_reports_when_asked() {
        let mut board = Board::default();
        let mut reporter = board.lane(lane("vitally"));
        let served = served(Arc::new(Metrics::new()), board).await;
        let reporting = async {
            let ask = reporter.asked().await;
            reporter.update(|status| {
                status.state = "limited".to_owned();
                status.pending_rows = 12;
                status.budget = Budget { rows_per_minute: Some(1200), window_rows: 1188 };
                status.drain_eta_seconds = Some(0.6);
                status.last_error = Some(LastError { at_ms: 5, what: "throttled".to_owned(), over_at_ms: None });
            });
            ask.answered();
        };
        let ((code, content_type, body), ()) = tokio::join!(served.get("/status"), reporting);
        assert_eq!((code, content_type.as_str()), (200, "application/json"));
        let status: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
        let shown: LaneStatus = serde_json::from_value(status["lanes"][0].clone()).expect("a lane's status");
        assert_eq!((shown.destination.as_str(), shown.state.as_str()), ("vitally", "limited"));
        assert_eq!((shown.pending_rows, shown.budget.window_rows, shown.stale), (12, 1188, false));
        assert_eq!(shown.last_error.expect("an error").what, "throttled");
    }

    #[tokio::test]
    async fn other_paths_and_methods_are_refused_in_plain_text() {
        let served = served(Arc::new(Metrics::new()), Board::default()).await;
        let (status, content_type, _) = served.get("/healthz").await;
        assert_eq!((status, content_type.as_str()), (404, "text/plain; charset=utf-8"));
        let reply = served.client.post(format!("{}/metrics", served.url)).send().await.expect("an answer");
        assert_eq!(reply.status().as_u16(), 405);
        assert_eq!(reply.headers()["content-type"], "text/plain; charset=utf-8");
    }

    #[tokio::test]
    async fn it_answers_until_it_is_stopped_and_then_ends_with_connections_open() {
        let served = served(Arc::new(Metrics::new()), Board::default()).await;
        assert_eq!(served.get("/livez").await.0, 200);
        // The client sends half a request, whose end never comes.
        let mut half = std::net::TcpStream::connect(&served.url["http://".len()..]).expect("a connection");
        half.write_all(b"GET /livez HTTP/1.1\r\n").expect("a write");
        assert_eq!(served.get("/livez").await.0, 200);
        served.stop.send(()).expect("a server");
        served.server.await.expect("no panic").expect("no error");
    }

    #[tokio::test]
    async fn connections_that_ask_nothing_keep_no_one_out_and_are_closed() {
        let served = served(Arc::new(Metrics::new()), Board::default()).await;
        let address = &served.url["http://".len()..];
        // Every other connection sends half a request.
        let mut idle = Vec::new();
        for n in 0..359 {
            let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
            if n % 2 == 0 {
                stream.writable().await.expect("writable");
                stream.try_write(b"GET /livez HTTP/1.1\r\nhost:").expect("a write");
            }
            idle.push(stream);
            if n % 50 == 0 {
                assert_eq!(served.get("/livez").await.0, 200);
            }
        }
        assert_eq!(served.get("/livez").await.0, 200);
        let closed = async {
            for stream in &idle[..idle.len() - connections::MOST] {
                // The connection ends, or is reset if its bytes lay unread.
                stream.readable().await.expect("an event");
                assert!(matches!(stream.try_read(&mut [0; 8]), Ok(0) | Err(_)));
            }
        };
        tokio::time::timeout(Duration::from_secs(30), closed).await.expect("all but those that fit are closed");
    }
}
