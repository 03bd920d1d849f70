//! A provider that repeats tokens and bodies in its answers, for the tests of secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

/// The number of a provider's wrong answers before it behaves.
pub const MISHAPS: usize = 14;

/// A provider of all three kinds that repeats what it receives wherever an answer has room for it.
pub struct Nosy {
    /// The address that its redirects name.
    elsewhere: SocketAddr,
    /// The number of sends that each provider has answered.
    pub sends: Mutex<BTreeMap<&'static str, usize>>,
    /// The number of polls of jobs that it has answered.
    polls: Mutex<usize>,
    /// The users of the good rows that each provider has taken.
    pub taken: Mutex<BTreeMap<&'static str, BTreeSet<String>>>,
    pub tokens: Mutex<BTreeSet<String>>,
}

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Starts a server that records every request, and that no client should ever reach.
pub async fn elsewhere() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = async |State(seen): State<Arc<Mutex<Vec<String>>>>, request: Request| {
        seen.lock().expect("no panic").push(format!("{} {:?}", request.uri(), request.headers()));
        StatusCode::OK
    };
    (serve(Router::new().fallback(note).with_state(Arc::clone(&seen))).await, seen)
}

/// A request that the provider repeats in its answers.
struct Asked {
    /// The provider that the client means.
    id: &'static str,
    token: String,
    body: String,
}

impl Asked {
    /// Returns an error that holds the token and the body in every place that a client may read.
    fn echo(&self) -> String {
        let Asked { token, body, .. } = self;
        let echo = json!({
            "errors": [{ "code": token, "error_code": token, "field": token, "index": 0, "message": format!("{token} {body}") }],
            "error": token, "message": body, "status": token, "data": { "accepted": token, "errors": [token] },
        });
        echo.to_string()
    }
}

impl Nosy {
    /// Starts the provider, and returns it with its address. Its redirects name `elsewhere`.
    pub async fn start(elsewhere: SocketAddr) -> (Arc<Nosy>, SocketAddr) {
        let nosy = Arc::new(Nosy {
            elsewhere,
            sends: Mutex::default(),
            polls: Mutex::default(),
            taken: Mutex::default(),
            tokens: Mutex::default(),
        });
        let address = serve(Router::new().fallback(answer).with_state(Arc::clone(&nosy))).await;
        (nosy, address)
    }

    /// Returns a response whose headers hold the token.
    fn response(&self, asked: &Asked, status: u16, body: String) -> Response {
        let token = &asked.token;
        let mut response = Response::builder()
            .status(status)
            .header("location", format!("http://{}/login?token={token}", self.elsewhere))
            .header("www-authenticate", token)
            .header("set-cookie", token)
            .header("x-echo", token);
        if status == 429 {
            response = response.header("retry-after", token);
        }
        response.body(Body::from(body)).expect("a response")
    }

    /// Answers a poll of a job: the first three polls wrongly, the later ones with the job's end.
    fn answer_poll(&self, asked: &Asked) -> Response {
        let mut polls = self.polls.lock().expect("no panic");
        *polls += 1;
        match *polls {
            1 => self.response(asked, 302, asked.echo()),
            2 => self.response(asked, 500, asked.echo()),
            3 => self.response(asked, 200, asked.echo()),
            _ => self.response(asked, 200, json!({ "status": "completed" }).to_string()),
        }
    }

    /// Returns the wrong answer to the send of this number, or `None` if the provider behaves from then on.
    async fn mishap(&self, asked: &Asked, send: usize) -> Option<Response> {
        let (status, body) = match send {
            1..=5 => ([301, 302, 303, 307, 308][send - 1], asked.echo()),
            6 => (401, asked.echo()),
            7 => (403, asked.echo()),
            8 => (404, asked.echo()),
            9 => (500, asked.echo()),
            10 => (200, format!("<html>{} {}</html>", asked.token, asked.body)),
            11 => (429, asked.echo()),
            12 => {
                tokio::time::sleep(Duration::from_secs(20)).await;
                (200, asked.token.clone())
            }
            13 => (418, asked.echo()),
            MISHAPS => (204, asked.echo()),
            _ => return None,
        };
        Some(self.response(asked, status, body))
    }

    /// Takes the rows of a send as the real provider does, or refuses them if one of the users is bad.
    fn take(&self, asked: &Asked) -> Response {
        let sent: Value = serde_json::from_str(&asked.body).expect("JSON");
        let rows = sent["users"].as_array().cloned().unwrap_or_else(|| vec![sent]);
        let user = |row: &Value| {
            ["userId", "external_user_id", "user_id"].map(|key| row[key].as_str().unwrap_or_default()).concat()
        };
        let users: BTreeSet<String> = rows.iter().map(user).collect();
        if users.iter().any(|user| user.contains("bad")) {
            return self.response(asked, if asked.id == "vitally" { 400 } else { 422 }, asked.echo());
        }
        self.taken.lock().expect("no panic").entry(asked.id).or_default().extend(users);
        let (status, body) = match asked.id {
            "vitally" => (200, json!({ "message": "Success." })),
            "vibefollow" => (202, json!({ "data": { "accepted": true } })),
            _ => (202, json!({ "job_id": "job-1" })),
        };
        self.response(asked, status, body.to_string())
    }
}

async fn answer(State(nosy): State<Arc<Nosy>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let authorization = parts.headers["authorization"].to_str().expect("text");
    let token = authorization.split(' ').nth(1).expect("a token").to_owned();
    nosy.tokens.lock().expect("no panic").insert(token.clone());
    let body = to_bytes(body, 1 << 20).await.expect("a body");
    let body = String::from_utf8(body.to_vec()).expect("text");
    let id = match parts.uri.path().split('/').nth(1) {
        Some("analytics") => "vitally",
        Some("api") => "vibefollow",
        _ => "userpilot",
    };
    let asked = Asked { id, token, body };
    if parts.method == "GET" {
        return nosy.answer_poll(&asked);
    }
    let send = {
        let mut sends = nosy.sends.lock().expect("no panic");
        let send = sends.entry(id).or_default();
        *send += 1;
        *send
    };
    match nosy.mishap(&asked, send).await {
        Some(response) => response,
        None => nosy.take(&asked),
    }
}
