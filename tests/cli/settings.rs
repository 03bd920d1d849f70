//! Arguments, configuration files and the environment, and the settings that the binary prints.

use std::net::TcpListener;
use std::process::{Command, Stdio};

use crate::binary::{ConfigFile, binary, ended, reading_from, run};

#[test]
fn a_wrong_flag_ends_with_64_and_the_usage() {
    let ended = run(&["run", "--bogus"]);
    assert_eq!(ended.code, 64, "{ended:?}");
    assert!(ended.stderr.contains("--bogus") && ended.stderr.contains("Usage:"), "{ended:?}");
}

#[test]
fn a_missing_file_ends_with_78_and_its_name() {
    let ended = run(&["-c", "/no/such/file.yaml", "check"]);
    assert_eq!(ended.code, 78, "{ended:?}");
    assert!(ended.stderr.contains("/no/such/file.yaml: cannot be read"), "{ended:?}");
}

#[test]
fn all_problems_are_reported_at_once_whatever_the_command() {
    let file = ConfigFile::new("{kafka: {topics: [], strat: x}, destinations: {d: {type: userpilot, linger: 1s}}}");
    for command in [["check"].as_slice(), &["run"], &["config", "print"], &["generate"]] {
        let ended = file.run(command);
        assert_eq!(ended.code, 78, "{command:?}: {ended:?}");
        for path in ["kafka.topics", "kafka.strat", "destinations.d.linger", "destinations.d.token"] {
            assert!(ended.stderr.lines().any(|line| line.starts_with(path)), "{command:?}: {path}: {ended:?}");
        }
        assert_eq!(ended.stdout, "", "{command:?}");
    }
}

#[test]
fn the_printed_settings_hide_tokens_and_passwords() {
    let file = ConfigFile::new(
        "{kafka: {properties: {sasl.password: MARKED}}, destinations: {d: {type: userpilot, token: MARKED}}}",
    );
    let ended = file.run(&["config", "print"]);
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stdout.contains("sasl.password: '***'") && ended.stdout.contains("token: '***'"), "{ended:?}");
    assert!(!format!("{ended:?}").contains("MARKED"), "{ended:?}");
}

#[test]
fn the_environment_lies_over_the_file() {
    let file = reading_from("a:1");
    let ended = ended(
        binary()
            .env("SLUICEGATE__KAFKA__BROKERS", "b:2")
            .env("SLUICEGATE__DESTINATIONS__USERPILOT__TOKEN", "MARKED")
            .args(["config", "print", "-c"])
            .arg(file.path()),
    );
    assert!(ended.code == 0 && ended.stdout.contains("brokers: b:2"), "{ended:?}");
    assert!(!ended.stdout.contains("MARKED"), "{ended:?}");
}

#[test]
fn the_schema_the_version_and_the_completions_are_for_programs() {
    let json = |args: &[&str]| -> serde_json::Value {
        let ended = run(args);
        assert_eq!(ended.code, 0, "{ended:?}");
        serde_json::from_str(&ended.stdout).expect("JSON")
    };
    assert_eq!(json(&["config", "schema"])["title"], "Sluicegate");
    assert_eq!(json(&["version", "--json"])["version"], env!("CARGO_PKG_VERSION"));
    let completions = run(&["completions", "bash"]);
    assert!(completions.code == 0 && completions.stdout.contains("complete -F _sluicegate"), "{completions:?}");
}

#[test]
fn the_log_on_a_terminal_has_colors_only_where_they_are_wanted_and_never_module_paths() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    // The worker logs a warning, and then ends, since its port is taken.
    let file = ConfigFile::new(&format!(
        "{{http: {{listen: '{}'}}, destinations: {{d: {{type: userpilot, token: t0, limit: {{rows_per_minute: 5000}}}}}}}}",
        taken.local_addr().expect("an address")
    ));
    let command = format!("{} -c {} run", env!("CARGO_BIN_EXE_sluicegate"), file.path().display());
    for (variables, is_colored) in [
        (&[("TERM", "xterm")][..], true),
        (&[("TERM", "xterm"), ("NO_COLOR", "1")], false),
        (&[("TERM", "dumb")], false),
    ] {
        let mut script = Command::new("script");
        script.args(["-qec", &command, "/dev/null"]).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
        let Ok(output) = script.output() else {
            println!("skipped: there is no script(1) to make a terminal with");
            return;
        };
        let log = String::from_utf8_lossy(&output.stdout);
        assert!(log.contains("WARN") && log.contains("destinations.d.limit.rows_per_minute = 5000"), "{log}");
        assert_eq!(log.contains('\x1b'), is_colored, "{variables:?}: {log}");
        assert!(!log.contains("sluicegate::"), "{log}");
    }
}
