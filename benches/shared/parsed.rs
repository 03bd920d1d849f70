//! The least that any consumer needs of an event, for the loops that the worker is compared with.

use serde::Deserialize;
use serde_json::value::RawValue;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Parsed<'a> {
    #[serde(borrow)]
    user_id: &'a str,
    #[serde(borrow)]
    traits: &'a RawValue,
}

/// Parses an event, and keeps the compiler from dropping the work.
pub fn parse(payload: &[u8]) {
    let parsed: Parsed<'_> = serde_json::from_slice(payload).expect("an event");
    std::hint::black_box((parsed.user_id, parsed.traits));
}
