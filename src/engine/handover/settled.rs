//! The last commit's list of who is settled, written so densely that commit metadata holds it.

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};

use super::ahead::UserKey;
use super::fence::Fence;

/// Longest metadata: Kafka's default of 4,096 for `offset.metadata.max.bytes`, above which the whole commit is refused.
const MOST: usize = 4096;

/// The bytes around the bits: names of keys, numbers of at most 20, 20, 2 and 5 characters, and 60 of the consumer's own
/// (`kafka::mark`).
const AROUND: usize = 160;

/// The settled users among those that a successor reads of: one mark a user, in the order of their keys.
///
/// Both sides know the same users. The leaving owner holds them as pending rows and as settled users, and the successor finds
/// them between the committed position and the fence. So the list holds only the marks, as Golomb-Rice codes of the gaps
/// between the rarer ones. They take about one bit a user at worst, and a tenth of that if one user in a hundred is marked. A
/// sum over the keys shows a successor that it has read something else; it then takes no user for settled.
///
/// The list drops the last users if they do not fit: about 22,500 users fit at worst, and the dropped ones are sent again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettledList {
    /// The number of users that the marks cover.
    of: u64,
    /// The sum of their names, modulo 2^64.
    sum: u64,
    /// True if the marks are those of the unsettled users.
    inverted: bool,
    /// The Rice parameter.
    k: u32,
    bits: String,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    #[serde(flatten)]
    fence: Fence,
    #[serde(default, skip_serializing_if = "SettledList::is_empty")]
    settled: SettledList,
}

impl SettledList {
    /// The list of the last owner's metadata; empty where there is none or something else.
    pub fn parse(metadata: &str) -> Self {
        let read = serde_json::from_str::<Metadata>(metadata).map(|metadata| metadata.settled);
        read.ok().filter(|settled| !settled.is_empty()).unwrap_or_default()
    }

    /// The metadata of a last commit: the fence and this list.
    pub fn to_metadata(&self, fence: Fence) -> String {
        let metadata = Metadata { fence, settled: self.clone() };
        serde_json::to_string(&metadata).expect("numbers and texts are always JSON")
    }

    /// Writes as many of the users (see `SettledAhead::users_from`) as fit next to this fence.
    pub fn new(users: &BTreeMap<UserKey, bool>, fence: Fence) -> Self {
        let n_settled = users.values().filter(|settled| **settled).count();
        if n_settled == 0 {
            return SettledList::default();
        }
        let inverted = n_settled * 2 > users.len();
        let n_marks = if inverted { users.len() - n_settled } else { n_settled };
        // The best parameter for gaps of a given mean: log2 of the mean times ln 2 (Golomb 1966).
        let mean = users.len() as f64 / n_marks.max(1) as f64;
        let k = (mean * std::f64::consts::LN_2).max(1.0).log2() as u32;
        let room = MOST.saturating_sub(fence.to_metadata().len() + AROUND) * 6 / 8 * 8;
        let mut bits = Bits::default();
        let (mut of, mut gap) = (0, 0u64);
        for (at, settled) in users.values().enumerate() {
            if *settled == inverted {
                gap += 1;
                continue;
            }
            if bits.len + (gap >> k) as usize + 1 + k as usize > room {
                break;
            }
            bits.push_rice(gap, k);
            gap = 0;
            of = at + 1;
        }
        if (of as u64) + gap == users.len() as u64 {
            // All marks fit: what follows the last one is known as well.
            of = users.len();
        }
        SettledList { of: of as u64, sum: sum(users.keys().take(of)), inverted, k, bits: BASE64.encode(&bits.bytes) }
    }

    pub fn is_empty(&self) -> bool {
        self.of == 0
    }

    /// The settled users among those read. Empty if the last owner knew other users.
    pub fn among(&self, members: &BTreeSet<UserKey>) -> BTreeSet<UserKey> {
        let Ok(of) = usize::try_from(self.of) else { return BTreeSet::new() };
        if of == 0 || of > members.len() || self.k > 63 || sum(members.iter().take(of)) != self.sum {
            return BTreeSet::new();
        }
        let Ok(bytes) = BASE64.decode(&self.bits) else { return BTreeSet::new() };
        let mut bits = Reader { bytes: &bytes, at: 0 };
        let mut next_mark = bits.rice(self.k);
        let mut settled = BTreeSet::new();
        for (at, member) in members.iter().take(of).enumerate() {
            let is_marked = next_mark == Some(at as u64);
            if is_marked {
                next_mark = bits.rice(self.k).and_then(|gap| (at as u64 + 1).checked_add(gap));
            }
            if is_marked != self.inverted {
                settled.insert(*member);
            }
        }
        settled
    }
}

fn sum<'a>(members: impl Iterator<Item = &'a UserKey>) -> u64 {
    members.fold(0, |sum, member| sum.wrapping_add(member.0))
}

/// A string of bits, the first in each byte's highest place. The last byte is filled with ones, which start no code.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl Bits {
    fn push(&mut self, bit: bool) {
        if self.len.is_multiple_of(8) {
            self.bytes.push(0xFF);
        }
        if !bit && let Some(last) = self.bytes.last_mut() {
            *last &= !(0x80 >> (self.len % 8));
        }
        self.len += 1;
    }

    /// The quotient in ones and a zero, then `k` bits of remainder.
    fn push_rice(&mut self, value: u64, k: u32) {
        (0..value >> k).for_each(|_| self.push(true));
        self.push(false);
        (0..k).rev().for_each(|bit| self.push(value >> bit & 1 == 1));
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bit(&mut self) -> Option<bool> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = byte & (0x80 >> (self.at % 8)) != 0;
        self.at += 1;
        Some(bit)
    }

    fn rice(&mut self, k: u32) -> Option<u64> {
        let mut value = 0u64;
        while self.bit()? {
            value += 1;
        }
        for _ in 0..k {
            value = value.checked_mul(2)? | u64::from(self.bit()?);
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::time::Duration;

    use crate::engine::testing::{ByHand, PARTITION, gained, largest_fence, policy};
    use crate::engine::{BatchPolicy, Policy};
    use crate::verdict::Verdict;

    use super::*;
    use crate::record::Position;

    /// A list of `n` users, of which those are settled.
    fn users(n: u64, is_settled: impl Fn(u64) -> bool) -> BTreeMap<UserKey, bool> {
        (0..n).map(|n| (UserKey::user(&format!("user-{n}")), is_settled(n))).collect()
    }

    fn settled_of(users: &BTreeMap<UserKey, bool>) -> BTreeSet<UserKey> {
        users.iter().filter(|(_, settled)| **settled).map(|(member, _)| *member).collect()
    }

    fn handed_over(users: &BTreeMap<UserKey, bool>) -> BTreeSet<UserKey> {
        let metadata = SettledList::new(users, largest_fence()).to_metadata(largest_fence());
        assert_eq!(Fence::parse(&metadata), Some(largest_fence()), "the fence reads the same");
        assert!(metadata.len() <= MOST, "{} bytes", metadata.len());
        SettledList::parse(&metadata).among(&users.keys().copied().collect())
    }

    proptest! {
        #[test]
        fn a_successor_that_read_the_same_knows_who_is_settled(n in 0u64..3000, every in 1u64..200, inverted: bool) {
            let users = users(n, |n| (n % every == 0) != inverted);
            prop_assert_eq!(handed_over(&users), settled_of(&users));
        }

        #[test]
        fn junk_settles_no_user_that_was_not_read(of in 0u64..50, k in 0u32..70, bits in "[A-Za-z0-9+/]{0,40}", inverted: bool) {
            let members: BTreeSet<UserKey> = users(50, |_| false).into_keys().collect();
            let sum = sum(members.iter().take(of as usize));
            let settled = SettledList { of, sum, inverted, k, bits };
            prop_assert!(settled.among(&members).is_subset(&members));
        }
    }

    #[test]
    fn twenty_two_thousand_members_fit_at_worst_and_more_where_few_are_settled() {
        // A pattern without pattern: every second member by a bit of its name.
        let half = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 63 == 1;
        for (n, is_settled) in [(22_000, &half as &dyn Fn(u64) -> bool), (250_000, &|n| n % 100 == 0)] {
            let users = users(n, is_settled);
            assert_eq!(handed_over(&users), settled_of(&users), "{n} members");
        }
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_the_rest_holds() {
        let users = users(100_000, |n| n % 2 == 0);
        let (handed, settled) = (handed_over(&users), settled_of(&users));
        assert!(handed.is_subset(&settled) && handed.len() > 11_000, "{}", handed.len());
    }

    #[test]
    fn no_user_is_settled_for_a_successor_that_read_something_else() {
        let users = users(100, |n| n % 3 == 0);
        let settled = SettledList::new(&users, largest_fence());
        let mut members: BTreeSet<UserKey> = users.keys().copied().collect();
        members.pop_first();
        assert!(settled.among(&members).is_empty(), "one less");
        members.insert(UserKey::user("somebody else"));
        assert!(settled.among(&members).is_empty(), "another");
    }

    #[test]
    fn nothing_is_settled_where_nothing_was_said() {
        for metadata in [
            "",
            "junk",
            &largest_fence().to_metadata(),
            r#"{"v":1,"fence":9,"at":0,"clean":true,"bytes":0,"settled":"zz"}"#,
        ] {
            assert!(SettledList::parse(metadata).is_empty(), "{metadata}");
        }
    }

    #[test]
    fn a_repeat_that_was_skipped_beyond_the_commit_is_no_event_of_the_next_owners() {
        let single = BatchPolicy { max_rows: 1, linger: Duration::ZERO, ..policy().batch };
        let policy = || Policy { rows_per_minute: None, batch: single, ..policy() };
        let mut lane = ByHand::new(policy());
        lane.gain(&[gained(PARTITION)]);
        for (offset, plan) in [(0, "free"), (1, "pro")] {
            lane.read(offset, &format!(r#"{{"userId":"a","messageId":"{plan}","traits":{{"plan":"{plan}"}}}}"#));
            lane.pass(Duration::from_millis(200));
            lane.answer("a", Verdict::Delivered);
        }
        lane.read(2, r#"{"userId":"b"}"#);
        lane.read(3, r#"{"userId":"a","messageId":"free","traits":{"plan":"free"}}"#);
        lane.pass(Duration::from_millis(200));
        lane.engine.revoking(&[PARTITION], lane.now.at);
        lane.answer("b", Verdict::Throttled { retry_after: None });
        lane.pass(Duration::from_secs(1));
        assert_eq!((lane.released.as_slice(), lane.commits[0].position), (&[PARTITION][..], Position(2)));

        let mut next = lane.successor(policy());
        next.read(2, r#"{"userId":"b"}"#);
        next.read(3, r#"{"userId":"a","messageId":"free","traits":{"plan":"free"}}"#);
        next.engine.on_end(PARTITION, Position(4), next.now.at);
        next.pass(Duration::from_secs(30));
        let users: Vec<&str> = next.out.iter().flat_map(|(_, users)| users).map(String::as_str).collect();
        assert_eq!(users, ["b"], "the repeat would set a back from pro to free");
    }
}
