//! Damaged input: examples with a few bytes changed, removed, repeated, inserted or cut off, and texts made of odd parts.

use proptest::collection::vec;
use proptest::prelude::*;

/// Parts that break parsers: half escapes, huge numbers, brackets, frames, other encodings, other lengths.
const PARTS: [&[u8]; 34] = [
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"null",
    b"true",
    b"-",
    b"0",
    b"1e999",
    b"-0.0",
    b"18446744073709551616",
    b"99999999999999999999999999999999",
    b"\\ud800",
    b"\\udc00",
    b"\\u0000",
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xf0\x9f\x98\x80",
    b"\xc2\xa0",
    b"\r\n",
    b"\t ",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    b"{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":{\"a\":",
    b"\"userId\":",
    b"\"traits\":{\"company\":{\"id\":",
    b"\"integrations\":{\"All\":false},",
    b"\"errors\":[{\"code\":\"x\",\"index\":0}],",
    b"\"job_id\":\"a/../b?c#d e\",",
];

/// One change to a text. Its place is computed from the text's length when that is known.
#[derive(Clone, Debug)]
pub enum Damage {
    Change(prop::sample::Index, u8),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Insert(prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    let place = any::<prop::sample::Index>;
    prop_oneof![
        2 => (place(), any::<u8>()).prop_map(|(at, byte)| Damage::Change(at, byte)),
        2 => (place(), 1..12_usize).prop_map(|(at, count)| Damage::Remove(at, count)),
        1 => (place(), 1..40_usize).prop_map(|(at, count)| Damage::Repeat(at, count)),
        4 => (place(), 0..PARTS.len()).prop_map(|(at, part)| Damage::Insert(at, part)),
        1 => place().prop_map(Damage::Cut),
    ]
}

fn apply(text: &mut Vec<u8>, damage: &Damage) {
    let place = |at: &prop::sample::Index| at.index(text.len() + 1);
    match damage {
        Damage::Change(at, byte) => {
            let at = place(at);
            if let Some(old) = text.get_mut(at) {
                *old = *byte;
            }
        }
        Damage::Remove(at, count) => {
            let at = place(at);
            text.drain(at..(at + count).min(text.len()));
        }
        Damage::Repeat(at, count) => {
            let at = place(at);
            let part = text[at..(at + count).min(text.len())].to_vec();
            text.splice(at..at, part);
        }
        Damage::Insert(at, part) => {
            let at = place(at);
            text.splice(at..at, PARTS[*part].iter().copied());
        }
        Damage::Cut(at) => text.truncate(place(at)),
    }
}

/// Generates examples with up to four damages each, so that most of them are damaged.
pub fn damaged<S: AsRef<[u8]> + Clone + std::fmt::Debug + 'static>(
    examples: impl Strategy<Value = S>,
) -> impl Strategy<Value = Vec<u8>> {
    (examples, vec(damage(), 0..5)).prop_map(|(example, damages)| {
        let mut text = example.as_ref().to_vec();
        for damage in &damages {
            apply(&mut text, damage);
        }
        text
    })
}

/// Generates texts of up to 15 parts, some of which are random bytes.
pub fn parts() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        4 => (0..PARTS.len()).prop_map(|part| PARTS[part].to_vec()),
        1 => vec(any::<u8>(), 0..8),
    ];
    vec(part, 0..16).prop_map(|parts| parts.concat())
}
