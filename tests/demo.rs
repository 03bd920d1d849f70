//! Tests of `sluicegate demo` as a user starts it: the output when piped, and the exit code.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Output, Stdio};

fn demo(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.arg("demo").args(arguments.split_whitespace()).args(["--listen", "127.0.0.1:0"]);
    command
}

fn output(arguments: &str) -> Output {
    demo(arguments).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns the output of a run, once it has passed its own checks: six for each of the three providers.
fn passed(output: &Output) -> String {
    let text = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}{}", self::text(&output.stderr));
    assert_eq!(text.lines().filter(|line| line.starts_with("ok  ")).count(), 18, "{text}");
    assert!(!text.contains("FAILED"), "{text}");
    assert!(text.ends_with("everything holds\n"), "{text}");
    text
}

/// Runs a short demo with a fault and asserts that the lane was seen in this state.
fn recovers(fault: &str, lane: &str, state: &str) {
    let text = passed(&output(&format!("--duration 20s --events 500 --users 60 --seed 3 --fault {fault}")));
    let seen = text.lines().any(|line| line.contains(lane) && line.contains(state));
    assert!(seen, "{lane} was never {state}:\n{text}");
}

#[test]
fn a_short_run_shows_its_lanes_and_passes_its_own_checks() {
    let text = passed(&output("--duration 15s --events 600 --users 80 --seed 7"));
    assert!(!text.contains('\x1b'), "{text}");
    for lane in ["vitally", "vibefollow", "userpilot"] {
        assert!(text.lines().any(|line| line.contains(&format!("{lane} ")) && line.contains("events=600")), "{text}");
    }
    assert!(text.contains("600 events became about"), "{text}");
    assert!(text.contains("/metrics"), "{text}");
}

#[test]
fn a_backlog_is_there_before_the_lanes_start_and_every_user_becomes_current() {
    let csv = tempfile::NamedTempFile::new().expect("a file");
    let mut command = demo("--backlog --events 1200 --users 60 --seed 7");
    let text = passed(&command.arg("--csv").arg(csv.path()).output().expect("the binary starts"));
    assert!(text.contains("1,200 events were there before the lanes started.\n"), "{text}");
    for lane in ["vitally", "vibefollow", "userpilot"] {
        let current = text.lines().filter(|line| line.starts_with(lane) && line.contains(" 60 users current after "));
        assert_eq!(current.count(), 1, "{text}");
    }
    assert!(
        text.contains("Computed: a sender without merging needs 1:00 for 1,200 rows, one for each event"),
        "{text}"
    );
    let csv = std::fs::read_to_string(csv.path()).expect("written");
    assert_eq!(csv.lines().next(), Some("provider,current_s,unmerged_s"));
    assert_eq!(csv.lines().count(), 1 + 3 * 60);
}

#[test]
fn the_users_own_events_come_out_as_what_each_provider_would_hold() {
    let mut child = demo("--input -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let lines = concat!(
        r#"{"userId":"ann","traits":{"plan":"free","email":"ann@example.com"},"context":{"groupId":"acme"}}"#,
        "\n{broken\n",
        r#"{"userId":"ann","traits":{"plan":"pro"},"context":{"groupId":"acme"}}"#,
        "\n\n",
        r#"{"userId":9007199254740993,"traits":{"company":{"id":"globex"}}}"#,
        "\n",
        r#"{"userId":"ben","traits":{"email":"ben@example.com"}}"#,
    );
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("a reader");
    let output = child.wait_with_output().expect("an end");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.ends_with("everything holds\n"), "{stderr}");
    let held: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON document");
    let ann = serde_json::json!({ "accountId": "acme", "traits": { "plan": "pro", "email": "ann@example.com" } });
    assert_eq!(held["vitally"]["users"]["ann"], ann);
    assert_eq!(held["vibefollow"]["users"]["ben"]["email"], "ben@example.com");
    assert_eq!(held["userpilot"]["users"]["9007199254740993"]["company_id"], "globex");
    let reasons = |lane: &str| {
        let letters = held[lane]["dead_letters"].as_array().expect("dead letters");
        let mut reasons: Vec<&str> = letters.iter().filter_map(|letter| letter["reason"].as_str()).collect();
        reasons.sort_unstable();
        reasons
    };
    assert_eq!(reasons("vitally"), ["no_account", "not_json"]);
    assert_eq!(reasons("vibefollow"), ["not_json"]);
    assert_eq!(reasons("userpilot"), ["not_json"]);
}

/// Runs the demo over these lines and returns its exit code, the users that the providers hold, and its messages.
fn of_input(input: &[u8]) -> (Option<i32>, serde_json::Value, String) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), input).expect("written");
    let output = demo("").arg("--input").arg(file.path()).output().expect("the binary starts");
    let held = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), held, text(&output.stderr))
}

#[test]
fn input_without_events_ends_with_64_and_says_what_it_looks_like() {
    for (input, says) in [
        ("id,plan\n1,pro\n", "2 of 2 lines are no JSON objects (one object a line): lines 1, 2."),
        ("{\n  \"userId\": \"a\"\n}\n", "jq -c . FILE"),
        ("[{\"userId\":\"a\"}]", "jq -c '.[]' FILE"),
        ("", "The input is empty."),
    ] {
        let (code, _, stderr) = of_input(input.as_bytes());
        assert_eq!(code, Some(64), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
        assert!(stderr.ends_with("nothing was checked: the input holds no event\n"), "{stderr}");
    }
}

#[test]
fn odd_but_legal_events_are_delivered_and_what_is_left_out_is_named_with_its_line() {
    let many: serde_json::Map<_, _> = (0..501).map(|n| (format!("p{n}"), n.into())).collect();
    let account = r#""context":{"groupId":"acme"}"#;
    let lines = [
        "\u{feff}{\"userId\":\"bom\",\"traits\":{\"plan\":1},\"context\":{\"groupId\":\"acme\"}}".to_owned(),
        format!(r#"{{"userId":"named","traits":{{"firstName":7,"last_name":"Kim"}},{account}}}"#),
        format!(r#"{{"userId":"dated","traits":{{"createdAt":"2026-01-02T03:04:05Z"}},{account}}}"#),
        format!(r#"{{"userId":"many","traits":{},{account}}}"#, serde_json::Value::Object(many)),
        r#"{"type":"track","userId":"named","event":"x"}"#.to_owned(),
        "userId,plan".to_owned(),
        format!(r#"{{"userId":"large","traits":{{"x":1e400}},{account}}}"#),
        format!(r#"{{"userId":"last","traits":{{"plan":"pro"}},{account}}}"#),
    ];
    let (code, held, stderr) = of_input(lines.join("\n").as_bytes());
    assert!(!stderr.contains("this is a bug") && code != Some(70), "{stderr}");
    assert_eq!(held["vitally"]["users"]["named"]["traits"]["name"], "7 Kim", "{stderr}");
    assert_eq!(held["vibefollow"]["users"]["bom"]["traits"]["plan"], "1", "{stderr}");
    assert!(stderr.contains("1 of 8 lines are no JSON objects (one object a line): line 6."), "{stderr}");
    assert!(stderr.contains("vitally    skipped: 1 for type: line 5"), "{stderr}");
    assert!(stderr.contains("vitally    dead letters: 1 for not_json: line 6"), "{stderr}");
}

#[test]
fn events_that_no_provider_takes_are_not_said_to_hold() {
    let (code, _, stderr) = of_input(b"{\"type\":\"track\",\"userId\":\"a\"}\n");
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stderr.ends_with("nothing was delivered: what was left out, and why, stands above\n"), "{stderr}");
}

#[test]
fn an_outage_is_ridden_out() {
    recovers("outage", "vibefollow", "backing_off");
}

#[test]
fn a_throttle_is_waited_out() {
    recovers("throttle", "vitally", "throttled");
}

#[test]
fn a_wrong_token_holds_its_lane_until_it_is_fixed() {
    recovers("wrong-token", "userpilot", "account_fault");
}

#[test]
fn a_killed_lane_starts_again_and_nothing_goes_backwards() {
    recovers("crash", "vitally", "killed");
}

#[test]
fn sigterm_ends_it_early_with_69_and_a_partial_summary() {
    let mut child =
        demo("--duration 60s").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut text = String::new();
    // The first line of a lane shows that everything runs.
    while !text.contains("budget=") {
        text += &lines.next().expect("a line of a lane before the end").expect("UTF-8");
        text += "\n";
    }
    let killed = Command::new("kill").arg(child.id().to_string()).status().expect("kill");
    assert!(killed.success());
    for line in lines {
        text += &line.expect("UTF-8");
        text += "\n";
    }
    assert_eq!(child.wait().expect("an end").code(), Some(69), "{text}");
    assert!(text.ends_with("interrupted; what was checked so far holds\n"), "{text}");
}

#[test]
fn an_input_that_is_not_there_is_named_and_ends_with_69() {
    let output = output("--input no-such-file.ndjson");
    assert_eq!(output.status.code(), Some(69));
    assert!(text(&output.stderr).starts_with("no-such-file.ndjson (--input): "), "{}", text(&output.stderr));
    assert!(output.stdout.is_empty());
}
