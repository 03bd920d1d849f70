//! Tokens, passwords, e-mails and traits, which no output may show, whatever a provider answers.
//!
//! They are in no log, metric, status, header or error. No token goes to the target of a redirect.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::SocketAddr;
use std::panic::catch_unwind;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use secrecy::SecretString;
use serde_json::json;
use sluicegate::config::Config;
use sluicegate::providers::headers::authorization;

use crate::nosy_provider::{MISHAPS, Nosy, elsewhere};
use crate::support::{Process, World, metric, until, without_limits};

/// A part of every token, password, e-mail and trait of these tests.
const SECRET: &str = "MARKED";
/// A part of every user id.
const PERSON: &str = "PERSON";

const IDS: [&str; 3] = ["vitally", "vibefollow", "userpilot"];

/// The number of users whose events wait when the worker starts.
const FIRST_USERS: usize = 6;

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

/// Returns the destinations of a run: one of each kind, each with a token from another place, and one behind a proxy.
fn destinations(provider: SocketAddr, token_file: &Path) -> String {
    let shared = "batch: { linger: 0s }, request: { timeout: 500ms, max_in_flight: 1 }, \
                  retry: { initial: 20ms, max: 100ms }, limit: { rows_per_minute: 60000 }";
    let url = format!("base_url: \"http://{provider}\"");
    format!(
        "  vitally: {{ type: vitally, mode: single, {url}, token: MARKED-token-inline, {shared} }}\n\
         \u{20} vibefollow: {{ type: vibefollow, mode: single, {url}, token_file: {}, {shared} }}\n\
         \u{20} userpilot: {{ type: userpilot, {url}, {shared} }}\n\
         \u{20} behind_proxy: {{ type: userpilot, mode: single, base_url: \"http://provider.invalid\", token: MARKED-token-proxy, {shared} }}\n",
        token_file.display()
    )
}

/// Waits until each provider has had its mishaps and has refused two rows. Returns the number of good rows.
async fn pass_mishaps_and_refusals(world: &mut World, nosy: &Nosy) -> usize {
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
    let mut others = FIRST_USERS;
    while world.dead_letters("vitally").len() < 2 {
        assert!(others < 200, "the refused rows do not end");
        world.produce_all([event(&format!("PERSON-{others}"))]).await;
        others += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    others
}

/// Asserts that each provider took every good row with the token as it is, and that its dead letters show no secret.
async fn assert_delivered_discreetly(world: &World, nosy: &Nosy, good_rows: usize) {
    for id in IDS {
        world.wait_committed(id).await;
        let taken = nosy.taken.lock().expect("no panic")[id].len();
        assert_eq!(taken, good_rows, "{id}: each good row was taken");
        for letter in world.dead_letters(id) {
            for (name, value) in &letter.headers {
                assert_discreet(&format!("{id}'s header"), &format!("{name}: {value}"));
            }
            assert!(!String::from_utf8_lossy(&letter.value).contains("MARKED-token"), "{letter:?}");
        }
    }
    let tokens = ["MARKED-token-environment", "MARKED-token-file", "MARKED-token-inline"].map(str::to_owned);
    assert_eq!(*nosy.tokens.lock().expect("no panic"), BTreeSet::from(tokens), "each token was sent as it is");
}

/// Asserts that no endpoint of the worker shows a secret, and that the metrics count all dead letters.
async fn assert_endpoints_discreet(worker: &mut Process) {
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
}

/// Asserts that no command that an operator runs beside the worker prints a secret.
fn assert_commands_discreet(yaml: &str, address: &str, variables: &[(&str, &str)]) {
    for arguments in [
        ["status", "--url", address].as_slice(),
        &["status", "--json", "--url", address],
        &["healthcheck", "--url", address],
        &["config", "print"],
        &["check"],
        &["check", "--online"],
    ] {
        let text = printed(yaml, arguments, variables);
        assert!(text.len() > 5, "{arguments:?} prints nothing");
        assert_discreet(&format!("{arguments:?}"), &text);
    }
}

async fn full_run(format: &str, level: &str) {
    let mut world = World::start(1, without_limits()).await;
    let (elsewhere, visits) = elsewhere().await;
    let (nosy, provider) = Nosy::start(elsewhere).await;
    // The proxy does not exist. Messages about it must not hold its password.
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address");
    let proxy = format!("http://MARKED-proxy-user:MARKED-proxy-password@{proxy}");
    let token_file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(token_file.path(), "MARKED-token-file\n").expect("written");
    let blocks = destinations(provider, token_file.path());
    let variables = [
        ("SLUICEGATE__DESTINATIONS__USERPILOT__TOKEN", "MARKED-token-environment"),
        ("SLUICEGATE__KAFKA__PROPERTIES__SSL_KEY_PASSWORD", "MARKED-key-password"),
        ("HTTP_PROXY", proxy.as_str()),
        ("http_proxy", proxy.as_str()),
    ];
    let properties = "group.protocol: consumer, sasl.username: someone, sasl.password: MARKED-password, debug: \"all\"";
    let log = format!("log: {{ format: {format}, level: {level} }}");
    let yaml = world.yaml(&blocks, properties, "5s").replace("log: { format: text }", &log);

    world.produce_all((0..FIRST_USERS).map(|n| event(&format!("PERSON-{n}")))).await;
    let mut worker = Process::start_with(&yaml, &[], &variables);
    let good_rows = pass_mishaps_and_refusals(&mut world, &nosy).await;
    assert_delivered_discreetly(&world, &nosy, good_rows).await;
    assert_endpoints_discreet(&mut worker).await;
    let address = worker.address().await;
    assert_commands_discreet(&yaml, &address, &variables);
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
