//! Surroundings that fail the process: no writable disk, a log without a reader, stuck scrapers, one thread for everything.
//!
//! The scrapers never take their answers.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use sluicegate::testbed::simulator::Kind;

use crate::backlog::Backlog;
use crate::confined::Confined;
use crate::support::{QUICK, World, one_event_each, without_limits};

/// A directory in which no process can create a file, root included.
const UNWRITABLE: &str = "/proc";

fn yaml(world: &World, level: &str) -> String {
    let more = format!("{QUICK}, batch: {{ linger: 0s }}, mode: single");
    let block = world.block("vibefollow", Kind::Vibefollow, &more);
    world
        .yaml(&block, "group.protocol: consumer", "10s")
        .replace("format: text", &format!("format: text, level: {level}"))
}

async fn is_intact(world: &World, worker: &Confined) {
    assert_eq!(world.wrong_state(Kind::Vibefollow), Vec::<String>::new());
    let counters = world.simulator.provider(Kind::Vibefollow).summary().counters;
    assert_eq!((counters.regressions, counters.overlaps), (0, 0));
    assert_eq!(worker.metric("sluicegate_ledger_difference", &[]).await, 0.0);
    assert_eq!(worker.metric("sluicegate_dead_letters_total", &[]).await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_to_disk_from_the_start_to_the_end() {
    let mut world = World::start(4, without_limits()).await;
    world.produce_all(one_event_each(0..200)).await;
    assert!(std::fs::write(Path::new(UNWRITABLE).join("probe"), "").is_err());
    // With a limit of 0, the first byte that a process writes to a file ends it with SIGXFSZ, wherever the file is.
    let mut worker = Confined::start(&yaml(&world, "debug"), "ulimit -f 0", Path::new(UNWRITABLE));
    world.wait_committed("vibefollow").await;
    let files: Vec<_> = worker.open_files().into_iter().filter(|path| path.is_file()).collect();
    assert_eq!(files, Vec::<std::path::PathBuf>::new(), "no file is open");
    world.produce_all(one_event_each(200..210)).await;
    world.wait_committed("vibefollow").await;
    is_intact(&world, &worker).await;
    assert_eq!(worker.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_that_shows_it_ends_a_process_that_writes_a_file() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let script = format!("ulimit -f 0; echo byte > {}", file.path().display());
    let status = std::process::Command::new("sh").args(["-c", &script]).stderr(std::process::Stdio::null()).status();
    assert!(!status.expect("a shell").success());
    assert_eq!(std::fs::read(file.path()).expect("a file"), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_a_reader_and_scrapers_that_take_nothing_leave_the_data_path_alone() {
    let mut world = World::start(4, without_limits()).await;
    let mut worker = Confined::start(&yaml(&world, "debug"), ":", Path::new(UNWRITABLE));
    worker.hold_log();
    // Each scraper asks for everything again and again and takes nothing, so that answers pile up.
    let mut scrapers: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(worker.address()).expect("a connection")).collect();
    for scraper in &mut scrapers {
        scraper.set_nonblocking(true).expect("a socket");
        // The test wants the socket to be full, so this write may fail.
        let _ = scraper.write(&b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n".repeat(200));
    }
    // The log of these events is far longer than a pipe of 64 KiB and the worker's queue hold.
    world.produce_all(one_event_each(0..3_000)).await;
    world.wait_committed("vibefollow").await;
    is_intact(&world, &worker).await;
    let reply = reqwest::get(format!("http://{}/livez", worker.address())).await.expect("an answer");
    assert_eq!(reply.status().as_u16(), 200);
    world.produce_all(one_event_each(3_000..3_010)).await;
    world.wait_committed("vibefollow").await;
    worker.release_log();
    crate::support::until("what was lost is reported", async || worker.log().contains("log lines are lost")).await;
    worker.hold_log();
    world.produce_all(one_event_each(3_010..6_000)).await;
    world.wait_committed("vibefollow").await;
    is_intact(&world, &worker).await;
    assert_eq!(worker.stop().await, 0, "it ends though no process reads its log");
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_are_answered_while_lanes_with_one_thread_for_all_of_them_read_a_backlog() {
    let world = World::start(4, without_limits()).await;
    let backlog = Backlog { users: 20_000, events: 60_000 };
    backlog.write(&world);
    let blocks = world.block("vibefollow", Kind::Vibefollow, "") + &world.block("vitally", Kind::Vitally, "");
    let yaml = world.yaml(&blocks, "group.protocol: consumer", "10s");
    // As in a pod of one core.
    let worker = Confined::start(&yaml, "taskset -p -c 0 $$; export TOKIO_WORKER_THREADS=1", Path::new(UNWRITABLE));
    // The chart's liveness probe waits this long, over a connection of its own.
    let patience = Duration::from_secs(5);
    let probe = reqwest::Client::builder().timeout(patience).pool_max_idle_per_host(0).build().expect("a client");
    let all = 2.0 * backlog.events as f64;
    let (mut seen, mut read) = (0, 0.0);
    while read < all {
        let reply = probe.get(format!("http://{}/livez", worker.address())).send().await;
        let reply = reply.unwrap_or_else(|error| panic!("with {read} of {all} events read: {error}"));
        assert_eq!(reply.status().as_u16(), 200);
        let scrape = worker.metric("sluicegate_events_consumed_total", &[]);
        read = tokio::time::timeout(patience, scrape).await.expect("a scrape is answered");
        seen += u32::from(read > 0.0 && read < all);
    }
    assert!(seen > 3, "of {all} events somebody who asks again and again saw {seen} numbers");
}
