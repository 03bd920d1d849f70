//! What reading and merging cost per event of about 600 bytes; the aim is under 1 us for `decode`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sluicegate::event::{Rules, decode, merge};

const EVENT: &str = r#"{"type":"identify","userId":"user-00012345","anonymousId":"5f0c2f1e-8f0f-4b7e-9d39-0f4c1f3f6a77","messageId":"ajs-next-1764000000000-1b9d6bcd-bbfd-4b2d","timestamp":"2026-11-22T09:00:00.000Z","receivedAt":"2026-11-22T09:00:00.412Z","context":{"groupId":"acme-42","ip":"203.0.113.7","library":{"name":"analytics.js","version":"2.11.1"},"locale":"en-US","page":{"path":"/app","url":"https://example.com/app"}},"traits":{"email":"ada@example.com","firstName":"Ada","plan":"growth","seats":42,"trial":false,"company":{"id":"acme-42","name":"Acme"},"createdAt":"2024-03-01T00:00:00Z"}}"#;

fn benches(criterion: &mut Criterion) {
    let rules = Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None };
    criterion.bench_function("decode, 600 bytes", |bencher| {
        bencher.iter(|| decode(Some(black_box(EVENT.as_bytes())), &rules).is_ok());
    });
    for n in [2, 8] {
        criterion.bench_function(&format!("merge, {n} events"), |bencher| {
            bencher
                .iter(|| merge(std::iter::repeat_n(black_box(EVENT.as_bytes()), n), &rules).map(|it| it.traits.len()));
        });
    }
}

criterion_group!(decoding, benches);
criterion_main!(decoding);
