//! The cost of each provider's adapter in each mode: rendering rows, building their request, reading its reply.
//!
//! Run it with `cargo bench --bench adapters`. A request holds one row and, if the mode takes several, also 100.

use std::hint::black_box;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use secrecy::SecretString;
use serde_json::json;
use sluicegate::event::{Profile, Rules};
use sluicegate::providers::{Asked, EncodedRow, Provider, ProviderConfig, Reply, Row, Version, build};

/// The rows in a full request, which is the most that Vitally takes.
const MANY: usize = 100;

/// The type and the mode of each adapter.
const MODES: [(&str, &str); 8] = [
    ("vitally", "batch"),
    ("vitally", "single"),
    ("vibefollow", "single"),
    ("vibefollow", "bulk"),
    ("userpilot", "bulk_json"),
    ("userpilot", "bulk_ndjson"),
    ("userpilot", "single"),
    ("userpilot", "auto"),
];

fn event(user: usize) -> Vec<u8> {
    format!(
        r#"{{"type":"identify","userId":"user-{user:08}","messageId":"ajs-next-{user:013}-1b9d6bcd-bbfd-4b2d","timestamp":"2026-11-22T09:00:00.000Z","context":{{"groupId":"acme-42"}},"traits":{{"email":"ada{user}@example.com","firstName":"Ada","lastName":"Lovelace","plan":"growth","seats":{user},"trial":false,"tags":["a","b"],"company":{{"id":"acme-42","name":"Acme"}},"createdAt":"2024-03-01T00:00:00Z"}}}}"#
    )
    .into_bytes()
}

fn provider(kind: &str, mode: &str) -> Box<dyn Provider> {
    let config = json!({ "type": kind, "mode": mode, "base_url": "https://api.example.com" });
    let config: ProviderConfig = serde_json::from_value(config).expect("a provider's settings");
    assert!(config.problems().is_empty(), "{:?}", config.problems());
    build(&config, kind)
}

fn row(provider: &dyn Provider, profile: &Profile<'_>, offset: usize) -> EncodedRow {
    let version = Version { topic: "identify", partition: 3, last_offset: offset as i64, rekeyed: false };
    provider.row(&Row { profile, record_time_ms: 1_764_000_000_000, version }).expect("a row that the provider takes")
}

/// Returns the reply that says that all rows were taken or became a job.
fn reply(kind: &str, mode: &str, rows: usize) -> Reply {
    let (status, body) = match (kind, mode) {
        ("vitally", _) => (200, json!({ "message": "Success." })),
        ("vibefollow", "bulk") => (200, json!({ "data": { "accepted": rows, "rejected": 0, "errors": [] } })),
        ("vibefollow", _) => (202, json!({ "data": { "accepted": true } })),
        _ => (202, json!({ "job_id": "bulk:jobs:NX-1", "status": "queued" })),
    };
    Reply {
        status: http::StatusCode::from_u16(status).expect("a status"),
        headers: http::HeaderMap::new(),
        body: Bytes::from(body.to_string()),
        received_at: SystemTime::UNIX_EPOCH,
    }
}

fn adapters(criterion: &mut Criterion) {
    let rules = Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None, refuse_user_ids: Vec::new() };
    let events: Vec<Vec<u8>> = (0..MANY).map(event).collect();
    let profiles: Vec<Profile<'_>> =
        events.iter().map(|event| Profile::of(event, &rules).expect("an identify event")).collect();
    let token = SecretString::from("token");
    for (kind, mode) in MODES {
        let provider = provider(kind, mode);
        let mut group = criterion.benchmark_group(format!("{kind} {mode}"));
        for rows in [1, MANY] {
            if rows > provider.shape().max_rows {
                continue;
            }
            group.throughput(Throughput::Elements(rows as u64));
            group.bench_function(format!("build, rows: {rows}"), |bencher| {
                bencher.iter(|| {
                    let rows: Vec<EncodedRow> = profiles[..rows]
                        .iter()
                        .enumerate()
                        .map(|(offset, profile)| row(&*provider, black_box(profile), offset))
                        .collect();
                    provider.request(&rows, &token)
                });
            });
            let reply = reply(kind, mode, rows);
            group.bench_function(format!("read the reply, rows: {rows}"), |bencher| {
                bencher.iter(|| provider.classify(Asked::Send { rows }, black_box(&reply)));
            });
        }
        group.finish();
    }
}

/// Returns shorter times than those of the other benches, so that 26 figures keep the whole of `cargo bench` within
/// minutes.
fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1))
}

criterion_group!(name = all; config = settings(); targets = adapters);
criterion_main!(all);
