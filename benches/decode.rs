//! The cost of reading an event of about 600 bytes, and of merging a second one into a pending state of few or many traits.
//!
//! `cargo bench` runs this bench, `engine`, `limiter` and `adapters`, which need no services. These commands show the
//! cost of a change:
//!
//! ```text
//! cargo bench --bench decode -- --save-baseline main      # before the change
//! cargo bench --bench decode -- --baseline main           # after it: criterion prints the change and its confidence
//! ```

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sluicegate::event::{Profile, Rules, decode, merge};

const EVENT: &str = r#"{"type":"identify","userId":"user-00012345","anonymousId":"5f0c2f1e-8f0f-4b7e-9d39-0f4c1f3f6a77","messageId":"ajs-next-1764000000000-1b9d6bcd-bbfd-4b2d","timestamp":"2026-11-22T09:00:00.000Z","receivedAt":"2026-11-22T09:00:00.412Z","context":{"groupId":"acme-42","ip":"203.0.113.7","library":{"name":"analytics.js","version":"2.11.1"},"locale":"en-US","page":{"path":"/app","url":"https://example.com/app"}},"traits":{"email":"ada@example.com","firstName":"Ada","plan":"growth","seats":42,"trial":false,"company":{"id":"acme-42","name":"Acme"},"createdAt":"2024-03-01T00:00:00Z"}}"#;

/// Returns an event of this many traits in addition to the user id.
fn event_of(traits: usize) -> Vec<u8> {
    let traits: Vec<String> = (0..traits).map(|n| format!(r#""trait_{n:04}":"value {n:06}""#)).collect();
    let traits = traits.join(",");
    format!(r#"{{"type":"identify","userId":"user-00012345","traits":{{{traits}}}}}"#).into_bytes()
}

fn decoding(criterion: &mut Criterion) {
    let rules = rules();
    let mut group = criterion.benchmark_group("decode");
    // The decoder looks among all traits for one that may name the account.
    let listing = Rules { account_trait: Some("accountId".to_owned()), ..rules.clone() };
    for (name, payload, rules) in [
        ("600 bytes", EVENT.as_bytes().to_vec(), &rules),
        // The id is not plain text, so the decoder reads the event twice up to it.
        ("600 bytes, a number for userId", EVENT.replace(r#""user-00012345""#, "12345").into_bytes(), &rules),
        ("600 bytes, account_trait set", EVENT.as_bytes().to_vec(), &listing),
        ("200 traits, 6 KB", event_of(200), &rules),
        ("200 traits, 6 KB, account_trait set", event_of(200), &listing),
    ] {
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| {
            bencher.iter(|| decode(Some(black_box(payload.as_slice())), rules).is_ok())
        });
    }
    group.finish();
}

/// Measures merging a second event into the first and writing the state as one event, as a row does when events pile
/// up.
fn merging(criterion: &mut Criterion) {
    let rules = rules();
    let mut group = criterion.benchmark_group("merge");
    for n in [2, 4] {
        group.throughput(Throughput::Elements(n as u64));
        group.bench_function(format!("{n} events of 600 bytes"), |bencher| {
            bencher.iter(|| {
                merge(
                    std::iter::repeat_n(black_box(EVENT.as_bytes()), n).filter_map(|event| Profile::of(event, &rules)),
                )
                .map(|it| it.to_event().len())
            });
        });
    }
    // The merge searches 50 keys one by one, and more keys through a map, so both ways are measured.
    for traits in [20, 200, 2000] {
        let (state, newer) = (event_of(traits), event_of(2));
        group.throughput(Throughput::Elements(1));
        group.bench_function(format!("a small event into a state of {traits} traits"), |bencher| {
            bencher.iter(|| {
                let events = [black_box(state.as_slice()), black_box(newer.as_slice())];
                merge(events.into_iter().filter_map(|event| Profile::of(event, &rules))).map(|it| it.to_event().len())
            });
        });
    }
    group.finish();
}

fn rules() -> Rules {
    Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None, refuse_user_ids: Vec::new() }
}

/// Returns times that are short enough for the whole of `cargo bench`. They are long enough that the median of 100
/// samples repeats within 2% on a quiet machine.
fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2))
}

criterion_group!(name = all; config = settings(); targets = decoding, merging);
criterion_main!(all);
