//! The users that are settled beyond the committed position. After a clean hand-over none of them is sent again.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use crate::record::{Offset, Position};

/// Names a user, or a record that belongs to none, alike in every process and version.
///
/// 64 bits of SHA-1: two of a million users share a name with a probability of 3e-8, and then both are sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UserKey(pub u64);

impl UserKey {
    pub fn user(user: &str) -> Self {
        UserKey(Uuid::new_v5(&Uuid::NAMESPACE_OID, user.as_bytes()).as_u64_pair().0)
    }

    /// A record that has no readable user id.
    pub fn record(offset: Offset) -> Self {
        UserKey(Uuid::new_v5(&Uuid::NAMESPACE_URL, &offset.0.to_be_bytes()).as_u64_pair().0)
    }
}

/// Fewer members than these are not worth forgetting (a guess: some kilobytes).
const FEW: usize = 64;

/// Users with a settled event beyond the committed position, each with the offset of the last such event. Users that a later
/// commit has covered are removed lazily.
#[derive(Clone, Debug)]
pub struct SettledAhead {
    members: BTreeMap<UserKey, Offset>,
    committed: Position,
    /// Members that were left when those before the committed position were last forgotten.
    kept: usize,
}

impl Default for SettledAhead {
    fn default() -> Self {
        SettledAhead { members: BTreeMap::new(), committed: Position(0), kept: 0 }
    }
}

impl SettledAhead {
    pub fn note(&mut self, member: UserKey, last: Offset) {
        let noted = self.members.entry(member).or_insert(last);
        *noted = last.max(*noted);
    }

    /// Forgets the users that lie before the committed position.
    pub fn committed(&mut self, position: Position) {
        self.committed = position;
        // Each time they have doubled, so that an end costs the same however many are ahead.
        if self.members.len() > 2 * self.kept + FEW {
            self.members.retain(|_, last| last.position() >= position);
            self.kept = self.members.len();
        }
    }

    /// Everyone whom a successor that starts at `position` will read of, and whether all that it reads of them is settled.
    pub fn users_from(&self, position: Position, unsettled: &BTreeSet<UserKey>) -> BTreeMap<UserKey, bool> {
        let ahead = self.members.iter().filter(|(_, last)| last.position() >= position);
        let mut users: BTreeMap<UserKey, bool> = ahead.map(|(member, _)| (*member, true)).collect();
        users.extend(unsettled.iter().map(|member| (*member, false)));
        users
    }

    pub fn members(&self) -> impl Iterator<Item = UserKey> + '_ {
        self.members.iter().filter(|(_, last)| last.position() >= self.committed).map(|(member, _)| *member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_with_anything_unsettled_counts_as_unsettled() {
        let [a, b, c, d] = ["a", "b", "c", "d"].map(UserKey::user);
        let mut ahead = SettledAhead::default();
        ahead.note(a, Offset(50));
        ahead.note(a, Offset(40));
        ahead.note(b, Offset(60));
        ahead.note(d, Offset(9));
        let users = ahead.users_from(Position(10), &BTreeSet::from([b, c]));
        assert_eq!(users, BTreeMap::from([(a, true), (b, false), (c, false)]));
        ahead.committed(Position(51));
        assert_eq!(ahead.members().collect::<Vec<_>>(), [b]);
    }

    #[test]
    fn a_user_that_the_committed_position_has_passed_is_not_counted_and_soon_forgotten() {
        let mut ahead = SettledAhead::default();
        for n in 0..10_000 {
            ahead.note(UserKey::record(Offset(n)), Offset(n));
            ahead.committed(Position(n - 9));
            assert_eq!(ahead.members().count() as i64, 10.min(n + 1), "{n}");
            assert!(ahead.members.len() <= 2 * 10 + FEW + 1, "{n}");
        }
    }

    #[test]
    fn a_record_is_no_user() {
        assert_ne!(UserKey::record(Offset(1)), UserKey::record(Offset(2)));
        assert_ne!(UserKey::record(Offset(0)), UserKey::user("\0\0\0\0\0\0\0\0"));
    }
}
