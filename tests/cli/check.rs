//! `check`, alone and with `--online`: the faults that it finds, and its remedies.

use std::fs;
use std::time::Instant;

use sluicegate::testbed::broker::EmbeddedBroker;

use crate::DEADLINE;
use crate::binary::{ConfigFile, closed_port, reading_from};

#[test]
fn the_documented_file_is_valid_once_its_tokens_are_there() {
    let ended = ConfigFile::documented().run(&["check"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{ended:?}");
    assert!(ended.stdout.contains("valid (3 destinations)"), "{ended:?}");
}

#[test]
fn a_check_names_each_token_that_cannot_be_read() {
    let file = ConfigFile::documented();
    fs::remove_file(file.folder.path().join("vitally")).expect("removed");
    fs::write(file.folder.path().join("userpilot"), "Token MARKED\n").expect("written");
    let ended = file.run(&["check"]);
    assert_eq!(ended.code, 78, "{ended:?}");
    for path in ["destinations.vitally.token_file", "destinations.userpilot.token_file"] {
        assert!(ended.stderr.contains(path), "{ended:?}");
    }
    assert!(!ended.stderr.contains("vibefollow.token_file") && !ended.stderr.contains("MARKED"), "{ended:?}");
}

#[test]
fn a_check_refuses_what_cannot_work_and_only_warns_of_what_hardly_will() {
    let check = |destinations: &str| ConfigFile::new(&format!("{{destinations: {{{destinations}}}}}")).run(&["check"]);
    let refused = check(
        "a: {type: vibefollow, token: t0, base_url: 'http://api.vibefollow.com'}, b: {type: userpilot, token: '${MARKED}'}, \
         c: {type: vitally, token: t0, base_url: 'https://acme.vitally.io'}",
    );
    assert_eq!(refused.code, 78, "{refused:?}");
    for line in [
        "destinations.a.base_url = http://api.vibefollow.com: http:// sends the token in clear text",
        "destinations.b.token: is a placeholder that nothing has replaced",
        "destinations.c.base_url = https://acme.vitally.io: this host of vitally serves people",
    ] {
        assert!(refused.stderr.lines().any(|found| found.starts_with(line)), "{line}: {refused:?}");
    }
    assert!(!refused.stderr.contains("MARKED"), "{refused:?}");

    // One provider, simulated or not, counts both lanes in one window.
    let twice = check(
        "a: {type: vibefollow, token: t0, base_url: 'http://127.0.0.1:1'}, \
         b: {type: vibefollow, token: t0, base_url: 'http://127.0.0.1:1'}",
    );
    assert_eq!(twice.code, 78, "{twice:?}");
    assert!(twice.stderr.contains("lower their rows_per_minute so that they add up to 1200"), "{twice:?}");

    let warned = check("a: {type: vibefollow, token: t0, limit: {rows_per_minute: 5000}}");
    assert_eq!(warned.code, 0, "{warned:?}");
    assert!(
        warned.stderr.starts_with("warning: destinations.a.limit.rows_per_minute = 5000: is above the 1200"),
        "{warned:?}"
    );
}

#[test]
fn an_online_check_says_how_to_create_the_dead_letter_topic_and_is_content_once_it_is_there() {
    let broker = EmbeddedBroker::start(&[("identify", 6)]).expect("a broker");
    let file = reading_from(broker.bootstrap_servers());
    let without = file.run(&["check", "--online"]);
    assert_eq!(without.code, 78, "{without:?}");
    let wrong: Vec<&str> = without.stdout.lines().filter(|line| line.starts_with("WRONG")).collect();
    let [wrong] = wrong.as_slice() else { panic!("{without:?}") };
    let create = format!(
        "kafka-topics.sh --bootstrap-server {} --create --topic identify.dlq.userpilot --partitions 6",
        broker.bootstrap_servers()
    );
    assert!(wrong.contains("topic identify.dlq.userpilot: does not exist") && wrong.contains(&create), "{wrong}");

    broker.create_topic("identify.dlq.userpilot", 6).expect("created");
    let with = file.run(&["check", "--online"]);
    assert_eq!((with.code, with.stderr.as_str()), (0, ""), "{with:?}");
    assert!(with.stdout.contains("topic identify: 6 partitions"), "{with:?}");
}

#[test]
fn an_online_check_of_brokers_that_do_not_answer_ends_with_69_in_time() {
    let port = closed_port();
    let started = Instant::now();
    let ended = reading_from(&port).run(&["check", "--online"]);
    assert!(started.elapsed() < DEADLINE, "{:?}", started.elapsed());
    assert_eq!(ended.code, 69, "{ended:?}");
    assert!(ended.stdout.contains(&format!("no answer from {port}")), "{ended:?}");
    assert!(ended.stdout.contains("Connection refused") && ended.stdout.contains("check kafka.brokers"), "{ended:?}");
}
