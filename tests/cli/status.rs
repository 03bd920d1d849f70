//! `status` and `healthcheck`, asked of a process that runs and of one that is not there.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::Arc;

use sluicegate::metrics::Metrics;
use sluicegate::ops::{Board, LaneStatus, Ops, serve};

use crate::binary::{ConfigFile, Running, binary, closed_port, ended, run};

#[test]
fn asking_a_process_that_is_not_there_ends_with_69_and_says_where_it_was_looked_for() {
    let port = closed_port();
    for command in ["healthcheck", "status"] {
        let ended = run(&[command, "--url", &format!("http://{port}")]);
        assert_eq!((ended.code, ended.stdout.as_str()), (69, ""), "{ended:?}");
        assert!(ended.stderr.contains(&port) && ended.stderr.contains("Connection refused"), "{ended:?}");
    }
    // The address comes from the configuration, which may be wrong elsewhere.
    let file = ConfigFile::new(&format!("{{http: {{listen: '{port}'}}, destinations: {{d: {{type: userpilot}}}}}}"));
    let ended = file.run(&["healthcheck"]);
    assert!(ended.code == 69 && ended.stderr.contains(&port), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_process_reports_its_health_and_its_lanes() {
    let mut board = Board::default();
    // The lane's loop has never turned, as in a lane that is stuck.
    let reporter = board.lane(LaneStatus {
        destination: "vitally".to_owned(),
        state: "limited".to_owned(),
        pending_rows: 812,
        ..LaneStatus::default()
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let metrics = Metrics::new();
    let ops = Ops { metrics: Arc::new(metrics), board: Arc::new(board) };
    tokio::spawn(serve(listener, ops, std::future::pending()));
    let ask = async |args: &'static [&'static str]| {
        let url = url.clone();
        tokio::task::spawn_blocking(move || ended(binary().args(args).args(["--url", &url]))).await.expect("no panic")
    };

    let stuck = ask(&["healthcheck"]).await;
    assert!(stuck.code == 69 && stuck.stderr.contains("503") && stuck.stderr.contains("vitally"), "{stuck:?}");
    reporter.update(|status| status.loop_turn_ms = i64::MAX);
    let alive = ask(&["healthcheck"]).await;
    assert_eq!(alive.code, 0, "{alive:?}");

    let table = ask(&["status"]).await;
    let lane = table.stdout.lines().find(|line| line.starts_with("vitally")).unwrap_or_default();
    assert!(table.code == 0 && lane.contains("limited") && lane.contains("812"), "{table:?}");
    let json = ask(&["status", "--json"]).await;
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["lanes"][0]["pending_rows"], 812);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_script_can_wait_until_nothing_is_left_and_hears_the_rest() {
    let mut board = Board::default();
    let mut reporter = board.lane(LaneStatus {
        destination: "vitally".to_owned(),
        state: "delivering".to_owned(),
        pending_rows: 3,
        pending_events: 7,
        events_skipped: 2,
        partitions_assigned: 1,
        ..LaneStatus::default()
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let ops = Ops { metrics: Arc::new(Metrics::new()), board: Arc::new(board) };
    tokio::spawn(serve(listener, ops, std::future::pending()));
    let (change, mut changed) = tokio::sync::watch::channel(None);
    let (asked, mut asks) = tokio::sync::watch::channel(());
    tokio::spawn(async move {
        loop {
            let ask = reporter.asked().await;
            reporter.update(|status| {
                status.lag = *changed.borrow_and_update();
                status.lag_as_of_ms = Some(i64::MAX);
                if status.lag == Some(0) {
                    (status.pending_rows, status.pending_events) = (0, 0);
                }
            });
            ask.answered();
            asked.send_replace(());
        }
    });
    let wait = async |timeout: &'static str| {
        let url = url.clone();
        let args = ["status", "--wait-drained", "--timeout", timeout, "--url"];
        tokio::task::spawn_blocking(move || ended(binary().args(args).arg(&url))).await.expect("no panic")
    };
    let unknown = wait("1s").await;
    assert_eq!((unknown.code, unknown.stdout.as_str()), (75, ""), "{unknown:?}");
    assert!(
        unknown.stderr.starts_with("not drained within 1s (--timeout): vitally: 3 rows and 7 events pending"),
        "{unknown:?}"
    );
    assert!(unknown.stderr.contains("lag unknown"), "{unknown:?}");
    asks.mark_unchanged();
    let known = async {
        asks.changed().await.expect("a lane");
        change.send(Some(0)).expect("a lane");
    };
    let (drained, ()) = tokio::join!(wait("30s"), known);
    assert_eq!((drained.code, drained.stdout.as_str()), (0, "drained: nothing waits on any lane\n"), "{drained:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watched_status_is_printed_again_where_it_cannot_be_drawn_in_place() {
    let mut board = Board::default();
    let _reporter = board.lane(LaneStatus { destination: "vitally".to_owned(), ..LaneStatus::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let ops = Ops { metrics: Arc::new(Metrics::new()), board: Arc::new(board) };
    tokio::spawn(serve(listener, ops, std::future::pending()));
    let read = tokio::task::spawn_blocking(move || {
        let mut command = binary();
        command.args(["status", "--watch", "--every", "50ms", "--url", &url]).stdout(Stdio::piped());
        let mut running = Running(command.spawn().expect("the binary starts"));
        let lines = BufReader::new(running.0.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let mut heads = 0;
        lines
            .take_while(|line| {
                heads += usize::from(line.starts_with("LANE "));
                heads < 3
            })
            .collect::<Vec<_>>()
    });
    let lines = read.await.expect("three tables");
    assert!(lines.iter().all(|line| !line.contains('\x1b')), "{lines:?}");
    assert!(lines.iter().any(|line| line.contains('?')), "lag is not known: {lines:?}");
}
