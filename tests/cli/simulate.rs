//! `simulate`: its printed configuration, its answers, and its end.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{ChildStdout, Stdio};

use crate::DEADLINE;
use crate::binary::{Running, binary, run};

/// Returns the first value of a YAML key that a process prints.
fn printed(stdout: &mut BufReader<ChildStdout>, key: &str) -> String {
    let mut line = String::new();
    while stdout.read_line(&mut line).expect("text") > 0 {
        if let Some(value) = line.trim().strip_prefix(key).and_then(|rest| rest.strip_prefix(": ")) {
            return value.to_owned();
        }
        line.clear();
    }
    panic!("the process ended without printing {key}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_simulator_prints_a_configuration_serves_it_and_ends_with_0() {
    let child = binary().args(["simulate", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped()).spawn();
    let mut running = Running(child.expect("the binary starts"));
    let mut stdout = BufReader::new(running.0.stdout.take().expect("piped"));
    let base_url = printed(&mut stdout, "base_url");
    let token = printed(&mut stdout, "token");
    assert_eq!(token, "demo-vitally-token");

    let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().expect("a client");
    let row = r#"{"type":"user","userId":"u1","accountId":"a1","messageId":"m1","timestamp":"2026-01-05T08:00:00Z","traits":{}}"#;
    let sent = client
        .post(format!("{base_url}/analytics/v1/user"))
        .header("authorization", format!("Basic {token}"))
        .header("content-type", "application/json")
        .body(row)
        .send()
        .await
        .expect("an answer");
    assert_eq!(sent.status(), 200, "{:?}", sent.text().await);
    let state = client.get(format!("{base_url}/state")).send().await.expect("an answer").bytes().await.expect("a body");
    let state: serde_json::Value = serde_json::from_slice(&state).expect("JSON");
    assert_eq!(state["vitally"]["user_count"], 1, "{state}");

    running.terminate();
    assert_eq!(running.wait(), 0);
}

#[test]
fn a_port_that_is_taken_ends_the_simulator_with_69() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = taken.local_addr().expect("an address").to_string();
    let ended = run(&["simulate", "--listen", &addr]);
    assert_eq!(ended.code, 69, "{ended:?}");
    assert!(ended.stderr.contains(&addr) && ended.stderr.contains("--listen"), "{ended:?}");
}
