//! Derives the ids by which providers recognize a resend: equal for the same bytes of the same version, else different.

use std::io::Write as _;

use uuid::Uuid;

use super::{EncodedRow, Version};

/// The namespace of the ids, drawn once at random. Another one would make every row in flight look new to the providers.
const NAMESPACE: Uuid = Uuid::from_u128(0x5a0d_6f1e_93c7_4b52_8e14_d2b7_60fa_39c8);

/// Returns the identity of one row; `body` is the row without the id itself.
///
/// The log position is part of the identity, because content alone is not enough. A row may be A, then B, then A again within a
/// vendor's 24 h window. Without the position, the second A would be a replay without effect.
pub fn of_row(destination: &str, version: Version<'_>, body: &[u8]) -> Uuid {
    let Version { topic, partition, last_offset, rekeyed } = version;
    // The numbers, the boolean and the zeros take 41 bytes at most.
    let mut name = Vec::with_capacity(destination.len() + topic.len() + body.len() + 41);
    write!(name, "{destination}\0{topic}\0{partition}\0{last_offset}\0{rekeyed}\0").expect("memory takes all");
    name.extend_from_slice(body);
    Uuid::new_v5(&NAMESPACE, &name)
}

/// Returns the identity of a request that holds these rows in this order.
pub fn of_rows(rows: &[EncodedRow]) -> Uuid {
    let mut name = b"rows\0".to_vec();
    for row in rows {
        name.extend_from_slice(row.identity.as_bytes());
    }
    Uuid::new_v5(&NAMESPACE, &name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const FIRST: Version<'_> = Version { topic: "identify", partition: 3, last_offset: 41, rekeyed: false };

    #[test]
    fn a_then_b_then_a_again_are_three_identities() {
        let first = of_row("d", FIRST, b"A");
        let second = of_row("d", Version { last_offset: 42, ..FIRST }, b"B");
        let third = of_row("d", Version { last_offset: 43, ..FIRST }, b"A");
        assert_eq!(BTreeSet::from([first, second, third]).len(), 3);
    }

    #[test]
    fn each_part_of_the_version_and_the_destination_makes_another_identity() {
        let identities = BTreeSet::from([
            of_row("d", FIRST, b"A"),
            of_row("e", FIRST, b"A"),
            of_row("d", Version { topic: "other", ..FIRST }, b"A"),
            of_row("d", Version { partition: 4, ..FIRST }, b"A"),
            of_row("d", Version { last_offset: 42, ..FIRST }, b"A"),
            of_row("d", Version { rekeyed: true, ..FIRST }, b"A"),
        ]);
        assert_eq!(identities.len(), 6);
    }

    #[test]
    fn the_order_of_rows_makes_another_request() {
        let row = |body: &'static [u8]| EncodedRow { body: body.into(), identity: of_row("d", FIRST, body) };
        assert_ne!(of_rows(&[row(b"A"), row(b"B")]), of_rows(&[row(b"B"), row(b"A")]));
        assert_ne!(of_rows(&[row(b"A")]), row(b"A").identity);
    }

    proptest! {
        #[test]
        fn identities_are_equal_exactly_when_bytes_and_version_are(
            bodies in (any::<[u8; 2]>(), any::<[u8; 2]>()), offsets in (0i64..3, 0i64..3)
        ) {
            let identity = |body: [u8; 2], offset| of_row("d", Version { last_offset: offset, ..FIRST }, &body);
            let same = bodies.0 == bodies.1 && offsets.0 == offsets.1;
            prop_assert_eq!(identity(bodies.0, offsets.0) == identity(bodies.1, offsets.1), same);
        }
    }
}
