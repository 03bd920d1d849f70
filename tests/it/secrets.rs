//! Tokens, passwords, e-mails and traits, which no output may show, whatever a provider answers.
//!
//! They are in no log, metric, status, header or error. No token goes to the target of a redirect.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;
use std::panic::catch_unwind;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use http::StatusCode;
use secrecy::SecretString;
use serde_json::{Value, json};
use sluicegate::config::Config;
use sluicegate::providers::headers::authorization;

use crate::support::{Process, World, metric, until, without_limits};

/// A part of every token, password, e-mail and trait of these tests.
const SECRET: &str = "MARKED";
/// A part of every user id.
const PERSON: &str = "PERSON";

const IDS: [&str; 3] = ["vitally", "vibefollow", "userpilot"];

/// The number of a provider's wrong answers before it behaves.
const MISHAPS: usize = 14;

/// A provider of all three kinds that repeats what it receives wherever an answer has room for it.
struct Nosy {
    /// The address that its redirects name.
    elsewhere: SocketAddr,
    /// The number of sends that each provider has answered.
    sends: Mutex<BTreeMap<&'static str, usize>>,
    /// The number of polls of jobs that it has answered.
    polls: Mutex<usize>,
    taken: Mutex<BTreeMap<&'static str, BTreeSet<String>>>,
    tokens: Mutex<BTreeSet<String>>,
}

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// Starts a server that records every request, and that no client should ever reach.
async fn elsewhere() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = async |State(seen): State<Arc<Mutex<Vec<String>>>>, request: Request| {
        seen.lock().expect("no panic").push(format!("{} {:?}", request.uri(), request.headers()));
        StatusCode::OK
    };
    (serve(Router::new().fallback(note).with_state(Arc::clone(&seen))).await, seen)
}

async fn answer(State(nosy): State<Arc<Nosy>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let authorization = parts.headers["authorization"].to_str().expect("text");
    let token = authorization.split(' ').nth(1).expect("a token").to_owned();
    nosy.tokens.lock().expect("no panic").insert(token.clone());
    let body = to_bytes(body, 1 << 20).await.expect("a body");
    let body = String::from_utf8(body.to_vec()).expect("text");
    let echo = json!({
        "errors": [{ "code": token, "error_code": token, "field": token, "index": 0, "message": format!("{token} {body}") }],
        "error": token, "message": body, "status": token, "data": { "accepted": token, "errors": [token] },
    });
    let status = |status: u16, body: String| {
        let mut response = Response::builder()
            .status(status)
            .header("location", format!("http://{}/login?token={token}", nosy.elsewhere))
            .header("www-authenticate", &token)
            .header("set-cookie", &token)
            .header("x-echo", &token);
        if status == 429 {
            response = response.header("retry-after", &token);
        }
        response.body(Body::from(body)).expect("a response")
    };
    let id = match parts.uri.path().split('/').nth(1) {
        Some("analytics") => "vitally",
        Some("api") => "vibefollow",
        _ => "userpilot",
    };
    if parts.method == "GET" {
        let mut polls = nosy.polls.lock().expect("no panic");
        *polls += 1;
        return match *polls {
            1 => status(302, echo.to_string()),
            2 => status(500, echo.to_string()),
            3 => status(200, echo.to_string()),
            _ => status(200, json!({ "status": "completed" }).to_string()),
        };
    }
    let step = {
        let mut sends = nosy.sends.lock().expect("no panic");
        let step = sends.entry(id).or_default();
        *step += 1;
        *step
    };
    match step {
        1..=5 => return status([301, 302, 303, 307, 308][step - 1], echo.to_string()),
        6 => return status(401, echo.to_string()),
        7 => return status(403, echo.to_string()),
        8 => return status(404, echo.to_string()),
        9 => return status(500, echo.to_string()),
        10 => return status(200, format!("<html>{token} {body}</html>")),
        11 => return status(429, echo.to_string()),
        12 => {
            tokio::time::sleep(Duration::from_secs(20)).await;
            return status(200, token.clone());
        }
        13 => return status(418, echo.to_string()),
        MISHAPS => return status(204, echo.to_string()),
        _ => {}
    }
    let sent: Value = serde_json::from_str(&body).expect("JSON");
    let rows = sent["users"].as_array().cloned().unwrap_or_else(|| vec![sent]);
    let users: BTreeSet<String> = rows
        .iter()
        .map(|row| ["userId", "external_user_id", "user_id"].map(|key| row[key].as_str().unwrap_or_default()).concat())
        .collect();
    if users.iter().any(|user| user.contains("bad")) {
        return status(if id == "vitally" { 400 } else { 422 }, echo.to_string());
    }
    nosy.taken.lock().expect("no panic").entry(id).or_default().extend(users);
    match id {
        "vitally" => status(200, json!({ "message": "Success." }).to_string()),
        "vibefollow" => status(202, json!({ "data": { "accepted": true } }).to_string()),
        _ => status(202, json!({ "job_id": "job-1" }).to_string()),
    }
}

fn event(user: &str) -> (Vec<u8>, Option<Vec<u8>>) {
    let event = json!({
        "type": "identify", "userId": user, "messageId": format!("{user}-1"), "context": { "groupId": "acme" },
        "traits": { "email": format!("MARKED-{user}@acme.io"), "name": "MARKED-name", "MARKED-key": "MARKED-value" },
    });
    (user.as_bytes().to_vec(), Some(event.to_string().into_bytes()))
}

/// Returns the output of the binary with these arguments, both streams together.
fn printed(yaml: &str, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    file.write_all(yaml.as_bytes()).expect("written");
    let output = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
        .arg("-c")
        .arg(file.path())
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts");
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn assert_discreet(what: &str, text: &str) {
    for word in [SECRET, PERSON] {
        let line = text.lines().find(|line| line.contains(word));
        assert!(line.is_none(), "{what} shows {word}: {}", line.unwrap_or_default());
    }
}

/// Asserts that a log shows no secret. Lines of debug and trace level may hold user ids.
fn assert_discreet_log(log: &str) {
    assert!(log.contains("DEBUG"), "not as verbose as it should be:\n{log}");
    for line in log.lines() {
        assert!(!line.contains(SECRET), "the log shows a secret: {line}");
        let verbose = line.contains("DEBUG") || line.contains("TRACE");
        assert!(verbose || !line.contains(PERSON), "the log names a user: {line}");
    }
}

async fn full_run(format: &str, level: &str) {
    let mut world = World::start(1, without_limits()).await;
    let (elsewhere, visits) = elsewhere().await;
    let nosy = Arc::new(Nosy {
        elsewhere,
        sends: Mutex::default(),
        polls: Mutex::default(),
        taken: Mutex::default(),
        tokens: Mutex::default(),
    });
    let provider = serve(Router::new().fallback(answer).with_state(Arc::clone(&nosy))).await;
    // The proxy does not exist. Messages about it must not hold its password.
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address");
    let proxy = format!("http://MARKED-proxy-user:MARKED-proxy-password@{proxy}");
    let token_file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token_file.path(), "MARKED-token-file\n").expect("written");
    let shared = "batch: { linger: 0s }, request: { timeout: 500ms, max_in_flight: 1 }, \
                  retry: { initial: 20ms, max: 100ms }, limit: { rows_per_minute: 60000 }";
    let url = format!("base_url: \"http://{provider}\"");
    let blocks = format!(
        "  vitally: {{ type: vitally, mode: single, {url}, token: MARKED-token-inline, {shared} }}\n\
         \u{20} vibefollow: {{ type: vibefollow, mode: single, {url}, token_file: {}, {shared} }}\n\
         \u{20} userpilot: {{ type: userpilot, {url}, {shared} }}\n\
         \u{20} behind_proxy: {{ type: userpilot, mode: single, base_url: \"http://provider.invalid\", token: MARKED-token-proxy, {shared} }}\n",
        token_file.path().display()
    );
    let variables = [
        ("SLUICEGATE__DESTINATIONS__USERPILOT__TOKEN", "MARKED-token-environment"),
        ("SLUICEGATE__KAFKA__PROPERTIES__SSL_KEY_PASSWORD", "MARKED-key-password"),
        ("HTTP_PROXY", proxy.as_str()),
        ("http_proxy", proxy.as_str()),
    ];
    let properties = "group.protocol: consumer, sasl.username: someone, sasl.password: MARKED-password, debug: \"all\"";
    let log = format!("log: {{ format: {format}, level: {level} }}");
    let yaml = world.yaml(&blocks, properties, "5s").replace("log: { format: text }", &log);

    world.produce_all((0..6).map(|n| event(&format!("PERSON-{n}")))).await;
    let mut worker = Process::start_with(&yaml, &[], &variables);
    for id in IDS {
        until(&format!("{id} has gone through its mishaps"), async || {
            nosy.sends.lock().expect("no panic").get(id).copied().unwrap_or(0) >= MISHAPS
        })
        .await;
    }
    world.produce_all([event("PERSON-bad-1"), event("PERSON-bad-2")]).await;
    for id in &IDS[1..] {
        until(&format!("{id} has two dead letters"), async || world.dead_letters(id).len() == 2).await;
    }
    // Vitally's refusal of a row counts only after Vitally has accepted another user's row.
    let mut others = 6;
    while world.dead_letters("vitally").len() < 2 {
        assert!(others < 200, "the refused rows do not end");
        world.produce_all([event(&format!("PERSON-{others}"))]).await;
        others += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for id in IDS {
        world.wait_committed(id).await;
        let taken = nosy.taken.lock().expect("no panic")[id].len();
        assert_eq!(taken, others, "{id}: each good row was taken");
        for letter in world.dead_letters(id) {
            for (name, value) in &letter.headers {
                assert_discreet(&format!("{id}'s header"), &format!("{name}: {value}"));
            }
            assert!(!String::from_utf8_lossy(&letter.value).contains("MARKED-token"), "{letter:?}");
        }
    }
    let tokens = ["MARKED-token-environment", "MARKED-token-file", "MARKED-token-inline"].map(str::to_owned);
    assert_eq!(*nosy.tokens.lock().expect("no panic"), BTreeSet::from(tokens), "each token was sent as it is");

    for path in ["/metrics", "/status", "/livez", "/readyz", "/nothing"] {
        let (_, text) = worker.get(path).await;
        assert_discreet(path, &text);
        if path == "/metrics" {
            assert_eq!(metric(&text, "sluicegate_dead_letters_total", &[]), 6.0);
            for id in IDS {
                assert_eq!(metric(&text, "sluicegate_ledger_difference", &[&format!("\"{id}\"")]), 0.0);
            }
        }
    }
    let address = worker.address().await;
    for arguments in [
        ["status", "--url", &address].as_slice(),
        &["status", "--json", "--url", &address],
        &["healthcheck", "--url", &address],
        &["config", "print"],
        &["check"],
        &["check", "--online"],
    ] {
        let text = printed(&yaml, arguments, &variables);
        assert!(text.len() > 5, "{arguments:?} prints nothing");
        assert_discreet(&format!("{arguments:?}"), &text);
    }
    worker.signal("TERM");
    assert_eq!(worker.exit(Duration::from_secs(20)).await, 0);
    assert_discreet_log(&worker.log());
    assert_eq!(*visits.lock().expect("no panic"), Vec::<String>::new(), "a redirect was followed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nosy_provider_brings_no_secret_into_json_logs_metrics_status_or_letters() {
    full_run("json", "trace").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nosy_provider_brings_no_secret_into_text_logs_metrics_status_or_letters() {
    full_run("text", "debug").await;
}

#[test]
fn no_error_of_a_wrong_configuration_shows_a_secret() {
    for (wrong, remedy) in [
        ("destinations: { d: { type: userpilot, tokn: MARKED } }", "did you mean token?"),
        ("destinations: { d: { type: userpilot, token_file: MARKED } }", "is no path"),
        ("destinations: { d: { type: userpilot, token: MARKED, token_file: /none/MARKE } }", "remove one of them"),
        ("destinations: { d: { type: userpilot, token: [MARKED] } }", "put it in quotes"),
        ("destinations: { d: { type: userpilot, token: 'Bearer MARKED' } }", "without a word such as Basic"),
        ("destinations: { d: { type: userpilot, token: MARKED, base_url: 'https://u:MARKED@h' } }", "***@h"),
        ("destinations: { d: { type: userpilot, token: MARKED, tls: { key_file: MARKED } } }", "is no path"),
        ("destinations: { d: { type: userpilot, token: *MARKED } }", "cannot be read as YAML"),
        ("destinations: { d: { type: userpilot, token: 'MARKED } }", "cannot be read as YAML"),
        ("kafka: { password_file: MARKED }", "is no path"),
        ("kafka: { properties: { sasl.pasword: MARKED } }", "librdkafka refuses it"),
    ] {
        let destinations =
            if wrong.starts_with("kafka") { "destinations: { d: { type: userpilot, token: MARKED } }\n" } else { "" };
        for command in [["check"].as_slice(), &["run"], &["config", "print"], &["check", "--online"], &["generate"]] {
            let text = printed(&format!("{destinations}{wrong}\n"), command, &[]);
            assert!(text.contains(remedy), "{wrong}, {command:?}: {text}");
            assert_discreet(wrong, &text);
        }
    }
    // librdkafka sees these mistakes only when it creates a client.
    let late = "kafka: { properties: { security.protocol: ssl, ssl.key.pem: MARKED, ssl.key.password: MARKED } }\n\
                destinations: { d: { type: userpilot, token: MARKED } }\n";
    for command in [["run"].as_slice(), &["check", "--online"], &["generate"]] {
        let text = printed(late, command, &[]);
        assert!(text.contains("ssl.key.pem") && text.contains("librdkafka refused"), "{command:?}: {text}");
        assert_discreet("late", &text);
    }
}

#[test]
fn neither_the_debug_form_of_a_configuration_nor_a_panic_over_a_token_shows_it() {
    let config = Config::from_yaml(
        "kafka: { properties: { sasl.password: MARKED } }\n\
         destinations: { d: { type: userpilot, token: MARKED } }",
    )
    .expect("valid");
    assert_discreet("Debug", &format!("{config:?} {config:#?}"));
    assert_discreet("config print", &config.to_yaml());
    // The tests' output also shows what the process would print.
    let payload = catch_unwind(|| authorization("Basic", &SecretString::from("MARKED\u{7f}\n"))).expect_err("a panic");
    let text = payload.downcast_ref::<String>().map_or("", String::as_str);
    assert!(text.contains("the token was validated"), "{text}");
    assert_discreet("a panic", text);
}
