//! Whose rows were settled beyond the committed position, so that after a clean hand-over nobody is sent again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::fence::Fence;
use crate::record::{Offset, Position};

/// Most users in one partition's commit metadata: at 34 characters each at the very most they stay below Kafka's default of
/// 4,096 for `offset.metadata.max.bytes`, above which the whole commit would be refused. The rest are sent again.
const MOST: usize = 100;

/// Users with the last event of theirs that is settled, of those beyond the committed position.
///
/// A user's rows of one partition end in log order, so everything of the user up to that event is settled. Users are known
/// by 60 bits of SHA-1: that a hand-over with 100,000 events to replay takes one for another has a probability of 1e-11.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ahead {
    users: BTreeMap<u64, Offset>,
    /// No event from here on is known to be settled already.
    until: i64,
}

/// The metadata with the list beside the fence.
#[derive(Serialize, Deserialize)]
struct Metadata {
    #[serde(flatten)]
    fence: Fence,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    settled: String,
}

impl Ahead {
    /// What the last owner's metadata says; nothing where it says nothing or something else.
    pub fn parse(metadata: &str) -> Self {
        let mut ahead = Ahead::default();
        let Ok(metadata) = serde_json::from_str::<Metadata>(metadata) else { return ahead };
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        for entry in metadata.settled.split(' ') {
            let Some((user, offset)) = entry.split_once(':') else { continue };
            if let (Some(user), Some(offset)) = (hex(user), hex(offset).and_then(|offset| i64::try_from(offset).ok())) {
                ahead.users.insert(user, Offset(offset));
                ahead.until = ahead.until.max(offset.saturating_add(1));
            }
        }
        ahead
    }

    /// A row of this user ended with this event.
    pub fn note(&mut self, user: &str, last: Offset) {
        let noted = self.users.entry(hash(user)).or_insert(last);
        *noted = last.max(*noted);
    }

    /// Whether the last owner had settled this event of this user.
    pub fn holds(&self, user: &str, offset: Offset) -> bool {
        offset.0 < self.until && self.users.get(&hash(user)).is_some_and(|last| offset <= *last)
    }

    /// What lies before the committed position is of no interest any more.
    pub fn committed(&mut self, position: Position) {
        self.users.retain(|_, last| last.position() >= position);
    }

    /// The metadata of a last commit: the fence and as many users as fit.
    pub fn to_metadata(&self, fence: Fence, position: Position) -> String {
        let ahead = self.users.iter().filter(|(_, last)| last.position() >= position).take(MOST);
        let entries: Vec<String> = ahead.map(|(user, last)| format!("{user:x}:{last:x}", last = last.0)).collect();
        let metadata = Metadata { fence, settled: entries.join(" ") };
        serde_json::to_string(&metadata).expect("numbers and one text are always JSON")
    }
}

/// Equal in every process and version, unlike the hashes of tables.
fn hash(user: &str) -> u64 {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, user.as_bytes()).as_u64_pair().0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fence() -> Fence {
        Fence::new(Position(100), 0, true, 0)
    }

    #[test]
    fn a_successor_knows_what_was_settled_and_nothing_more() {
        let mut ahead = Ahead::default();
        ahead.note("a", Offset(50));
        ahead.note("a", Offset(40));
        ahead.note("b", Offset(3));
        let metadata = ahead.to_metadata(fence(), Position(10));
        assert_eq!(Fence::parse(&metadata), Some(fence()), "the fence reads the same");
        let known = Ahead::parse(&metadata);
        assert!(known.holds("a", Offset(50)) && known.holds("a", Offset(12)));
        assert!(!known.holds("a", Offset(51)) && !known.holds("b", Offset(3)) && !known.holds("c", Offset(12)));
    }

    #[test]
    fn metadata_stays_below_kafkas_default_limit() {
        // As few users as fit, so that their hashes are not the small ones of many.
        for users in [MOST, 10_000] {
            let mut ahead = Ahead::default();
            (0..users).for_each(|n| ahead.note(&format!("user-{n}"), Offset(i64::MAX - 1)));
            let widest = Fence::new(Position(i64::MAX), i64::MAX, false, u64::MAX);
            let metadata = ahead.to_metadata(widest, Position(0));
            assert!(metadata.len() < 4096, "{users} users take {} bytes", metadata.len());
        }
    }

    #[test]
    fn nothing_is_settled_where_nothing_was_said() {
        for metadata in
            ["", "junk", &fence().to_metadata(), r#"{"v":1,"fence":9,"at":0,"clean":true,"bytes":0,"settled":"zz"}"#]
        {
            assert!(!Ahead::parse(metadata).holds("a", Offset(0)), "{metadata}");
        }
    }
}
