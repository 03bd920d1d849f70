//! Connections between the worker and its providers that break, die, stall or are never established.

use std::time::Duration;

use sluicegate::testbed::simulator::Kind;
use tokio::net::{TcpSocket, TcpStream};

use super::{Behind, ONE_BY_ONE, QUICK, event, lane_metric, last_error, retries, round, wait_state};
use crate::proxy::{End, Endless, Fault, Proxy};
use crate::support::{Process, Worker, World, metric, until};

/// Returns settings for faults that only a timeout ends. They allow a row many failures, because a loaded machine may
/// answer late even when the fault is over.
fn hasty() -> String {
    QUICK.replace("timeout: 5s", "timeout: 400ms").replace("max: 500ms", "max: 500ms, max_attempts: 1000")
}

/// Returns settings for faults that end before any timeout, even on a loaded machine.
fn patient() -> String {
    QUICK.replace("timeout: 5s", "timeout: 10s")
}

/// Starts lanes that deliver and keep connections open, and sets the fault. Then writes newer events and removes the
/// fault. Meanwhile `/status` reports an error that starts with `reason` and contains `text`.
async fn survive(fault: Fault, settings: &str, reason: &str, text: &str) -> Behind {
    let mut behind = Behind::start(2).await;
    let worker = Worker::start(&behind.world.config(&behind.blocks(settings))).await;
    behind.warm(10).await;
    behind.set(&fault);
    behind.world.produce_all(round(30, 2)).await;
    for kind in Kind::ALL {
        let id = kind.name();
        until("it is tried again and again", async || retries(&worker, id, reason).await >= 3.0).await;
        until("the lane says so", async || {
            matches!(worker.state(id).await.as_str(), "backing_off" | "unreadable_success")
        })
        .await;
        let error = last_error(&worker, id).await;
        assert!(error.starts_with(reason) && error.contains(text), "{id}: {error}");
    }
    behind.world.produce_all(round(40, 3)).await;
    for kind in Kind::ALL {
        let id = kind.name();
        until("the newer events are read", async || {
            lane_metric(&worker, "sluicegate_events_consumed_total", id).await == behind.world.log.len() as f64
        })
        .await;
        let tried = retries(&worker, id, reason).await;
        until("tries go on", async || retries(&worker, id, reason).await >= tried + 2.0).await;
        assert!(behind.world.committed(id).0 <= 10, "{id} commits what was never delivered");
    }
    behind.set(&Fault::None);
    behind.all_well(&worker).await;
    for proxy in &behind.proxies {
        until("broken connections are given up", async || proxy.counts().open <= 2).await;
    }
    worker.stop().await;
    behind
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_reset_on_the_way_lose_nothing() {
    survive(Fault::Error(End::Reset), QUICK, "reset", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_closed_without_a_reply_lose_nothing() {
    survive(Fault::Error(End::Close), QUICK, "reset", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_black_hole_that_takes_requests_and_never_answers_ends_at_the_timeout() {
    survive(Fault::BlackHole, &hasty(), "timeout", "not complete within 400ms").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_reads_nothing_of_large_requests_ends_at_the_timeout() {
    survive(Fault::Deaf, &hasty(), "timeout", "not complete within 400ms").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_trickles_ends_at_the_timeout_of_the_whole() {
    survive(Fault::SlowLoris(Duration::from_millis(20)), &hasty(), "timeout", "not complete within 400ms").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delay_within_the_timeout_is_no_failure() {
    let mut behind = Behind::start(2).await;
    let worker = Worker::start(&behind.world.config(&behind.blocks(QUICK))).await;
    behind.set(&Fault::Delay(Duration::from_millis(300)));
    behind.world.produce_all(round(30, 1)).await;
    behind.all_well(&worker).await;
    for kind in Kind::ALL {
        assert_eq!(retries(&worker, kind.name(), "timeout").await, 0.0, "{kind:?}");
        assert_eq!(last_error(&worker, kind.name()).await, "", "{kind:?}");
    }
    worker.stop().await;
}

/// Returns the most bytes that a reply without an end may cost. These are the cap on a body, or the client's limit on a
/// head, and the buffers of both sockets. The kernel lets these buffers grow to its own limits (`tcp_rmem`,
/// `tcp_wmem`).
fn most_bytes() -> u64 {
    let buffer = |name: &str, usual: u64| -> u64 {
        std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}"))
            .ok()
            .and_then(|sizes| sizes.split_whitespace().nth(2)?.parse().ok())
            .unwrap_or(usual)
    };
    // Linux's defaults: 6 MiB to receive, 4 MiB to send.
    2 * 1024 * 1024 + buffer("tcp_rmem", 6 * 1024 * 1024) + buffer("tcp_wmem", 4 * 1024 * 1024)
}

async fn an_endless_reply(part: Endless, settings: &str, reason: &str, text: &str) {
    let behind = survive(Fault::Endless(part), settings, reason, text).await;
    let most_bytes = most_bytes();
    for proxy in &behind.proxies {
        let counts = proxy.counts();
        assert!(counts.longest_reply < most_bytes, "more than {most_bytes}: {counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_without_an_end_is_cut_off_at_the_cap() {
    an_endless_reply(Endless::Body, &patient(), "unreadable_success", "longer than 1048576 bytes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunked_body_without_an_end_is_cut_off_at_the_cap() {
    an_endless_reply(Endless::Chunks, &patient(), "unreadable_success", "longer than 1048576 bytes").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_without_an_end_is_cut_off() {
    an_endless_reply(Endless::Headers, &patient(), "protocol", "").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interim_replies_without_an_end_end_at_the_timeout() {
    survive(Fault::Endless(Endless::Informational), &hasty(), "timeout", "not complete within 400ms").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_without_an_end_do_not_grow_the_process() {
    let mut world = World::start(1, super::roomy()).await;
    let proxy = Proxy::start(world.simulator.addr()).await;
    let settings = QUICK.replace("max: 500ms", "max: 50ms");
    let block = world.block("vibefollow", Kind::Vibefollow, &settings);
    let block = block.replace(&world.simulator.base_url(), &proxy.url());
    let mut process = Process::start(&world.yaml(&block, "group.protocol: consumer", "5s"), &[]);
    world.produce_all(round(10, 1)).await;
    world.wait_committed("vibefollow").await;
    proxy.set(Fault::Endless(Endless::Chunks));
    world.produce_all(round(10, 2)).await;
    let mut resident = Vec::new();
    for replies in [20, 120] {
        until("the lane reads many of them", async || proxy.counts().requests >= replies).await;
        resident.push(metric(&process.get("/metrics").await.1, "process_resident_memory_bytes", &[]));
    }
    // If replies stayed in memory, a hundred of them at the cap would take 100 MiB.
    assert!(resident[1] - resident[0] < 25.0 * 1024.0 * 1024.0, "{resident:?}");
    proxy.set(Fault::None);
    world.wait_committed("vibefollow").await;
    assert_eq!(world.wrong_state(Kind::Vibefollow), Vec::<String>::new());
    process.signal("TERM");
    assert_eq!(process.exit(Duration::from_secs(15)).await, 0, "{}", process.log());
}

/// Waits until the lane has settled every event. This is cheaper than asking the broker for the committed position.
async fn all_settled(world: &World, worker: &Worker, kind: Kind) {
    let events = world.log.len() as f64;
    until("every event has an end", async || {
        lane_metric(worker, "sluicegate_events_settled_total", kind.name()).await == events
    })
    .await;
}

/// Writes rounds of events over connections that end in this way after or at each use.
async fn kept_connections_end(fault: Fault, settings: &str) -> (Behind, Worker) {
    let mut behind = Behind::start(2).await;
    let worker = Worker::start(&behind.world.config(&behind.blocks(settings))).await;
    behind.set(&fault);
    for version in 1..=4 {
        behind.world.produce_all(round(6, version)).await;
        for kind in Kind::ALL {
            all_settled(&behind.world, &worker, kind).await;
        }
    }
    (behind, worker)
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_after_each_reply_cost_no_rows() {
    for how in [End::Close, End::Reset] {
        let (mut behind, worker) = kept_connections_end(Fault::IdleClose(how), ONE_BY_ONE).await;
        for proxy in &behind.proxies {
            let counts = proxy.counts();
            assert!(counts.connections >= 4, "{counts:?}");
        }
        behind.set(&Fault::None);
        behind.all_well(&worker).await;
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_end_as_the_next_request_begins_are_an_unknown_outcome_and_a_resend() {
    for how in [End::Close, End::Reset] {
        let (mut behind, worker) = kept_connections_end(Fault::CloseAtNext(how), ONE_BY_ONE).await;
        for kind in Kind::ALL {
            assert!(retries(&worker, kind.name(), "reset").await > 0.0, "{kind:?}, {how:?}");
            let sent = lane_metric(&worker, "sluicegate_rows_sent_total", kind.name()).await;
            let received = behind.world.simulator.provider(kind).summary().counters.rows_received;
            // The lane counts the rows that it sent into a closing connection.
            assert!(sent > received as f64, "{kind:?}, {how:?}: {sent} sent, {received} received");
        }
        behind.set(&Fault::None);
        behind.all_well(&worker).await;
        worker.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_connections_that_are_dead_without_a_word_are_replaced_at_the_timeout() {
    let mut behind = Behind::start(2).await;
    let worker = Worker::start(&behind.world.config(&behind.blocks(&hasty()))).await;
    behind.warm(20).await;
    for version in 2..=4 {
        let before = behind.proxies.each_ref().map(|proxy| proxy.counts().connections);
        behind.proxies.iter().for_each(Proxy::freeze);
        behind.world.produce_all(round(20, version)).await;
        for kind in Kind::ALL {
            all_settled(&behind.world, &worker, kind).await;
        }
        for (proxy, before) in behind.proxies.iter().zip(before) {
            assert!(proxy.counts().connections > before, "{:?}", proxy.counts());
        }
    }
    behind.all_well(&worker).await;
    for (kind, proxy) in Kind::ALL.iter().zip(&behind.proxies) {
        assert!(retries(&worker, kind.name(), "timeout").await > 0.0, "{kind:?}");
        until("dead connections are given up", async || proxy.counts().open <= 2).await;
    }
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_gone_refuses_connections_and_is_found_when_it_is_back() {
    let mut behind = Behind::start(2).await;
    let worker = Worker::start(&behind.world.config(&behind.blocks(QUICK))).await;
    behind.warm(10).await;
    for proxy in &mut behind.proxies {
        proxy.close().await;
    }
    behind.world.produce_all(round(20, 2)).await;
    for kind in Kind::ALL {
        let id = kind.name();
        until("it is tried again and again", async || retries(&worker, id, "connect").await >= 3.0).await;
        wait_state(&worker, id, "backing_off").await;
        let error = last_error(&worker, id).await;
        assert!(error.starts_with("connect: ") && error.contains("refused"), "{id}: {error}");
    }
    for proxy in &mut behind.proxies {
        proxy.open().await;
    }
    behind.all_well(&worker).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attempts_to_connect_that_are_swallowed_end_at_half_the_timeout() {
    let mut world = World::start(1, super::roomy()).await;
    // A listener whose queue is full drops further attempts silently.
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
    let listener = socket.listen(1).expect("a listener");
    let address = listener.local_addr().expect("an address");
    let mut fillers = Vec::new();
    let is_full = loop {
        match tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await {
            Err(_) => break true,
            Ok(_) if fillers.len() > 64 => break false,
            Ok(connection) => fillers.push(connection),
        }
    };
    if !is_full {
        println!("skipped: this system's queue of unaccepted connections has no end");
        return;
    }
    let block = world.block("vitally", Kind::Vitally, &hasty());
    let block = block.replace(&world.simulator.base_url(), &format!("http://{address}"));
    let worker = Worker::start(&world.config(&block)).await;
    world.produce_all(round(10, 1)).await;
    until("it is tried again and again", async || retries(&worker, "vitally", "connect").await >= 3.0).await;
    wait_state(&worker, "vitally", "backing_off").await;
    assert_eq!(last_error(&worker, "vitally").await, "connect: no connection within 200ms");
    assert_eq!(world.committed("vitally").0, 0);
    drop((listener, fillers));
    let proxy = Proxy::at(address, world.simulator.addr(), false).await.expect("the port is free again");
    super::all_delivered(&world, &worker, Kind::Vitally).await;
    world.produce_all([event("fresh", 1, serde_json::json!({}))]).await;
    super::all_delivered(&world, &worker, Kind::Vitally).await;
    assert!(proxy.counts().connections > 0);
    worker.stop().await;
}
