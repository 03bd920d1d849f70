//! The mark in a commit's metadata, from which a successor knows the log that the position belongs to.
//!
//! The consumer thread writes the mark as the last member, `log`, of the lane's own JSON object. A version of the worker that
//! does not know the mark ignores it. This version also reads metadata without a mark. Then only the log's ends show if the
//! position belongs to this log.

use serde::{Deserialize, Serialize};

/// The start of the member after the lane's own members.
const BEHIND: &str = r#","log":{"#;
/// The start of the member if the lane wrote nothing.
const ALONE: &str = r#"{"log":{"#;

/// The identity of the log that a committed position belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mark {
    /// The topic's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The number of partitions that the topic had when the group first read it. A partition with this number or a higher one
    /// is new.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<i32>,
}

impl Mark {
    /// Returns the metadata with this mark added. If the mark is empty or the metadata is no JSON object, returns the metadata
    /// as it is.
    pub fn put_on(&self, metadata: &str) -> String {
        if self == &Mark::default() {
            return metadata.to_owned();
        }
        let mark = serde_json::to_string(self).expect("a struct of texts and numbers is always JSON");
        match metadata.strip_suffix('}') {
            Some(head) => format!("{head},\"log\":{mark}}}"),
            None if metadata.is_empty() => format!("{{\"log\":{mark}}}"),
            None => metadata.to_owned(),
        }
    }

    /// Splits the metadata into the lane's part and the mark. Without a valid mark, all of it is the lane's part.
    pub fn take_off(metadata: &str) -> (String, Mark) {
        let whole = || (metadata.to_owned(), Mark::default());
        let (at, lane) = match metadata.rfind(BEHIND) {
            Some(at) => (at + BEHIND.len() - 1, format!("{}}}", &metadata[..at])),
            None if metadata.starts_with(ALONE) => (ALONE.len() - 1, String::new()),
            None => return whole(),
        };
        let mark = metadata[at..].strip_suffix('}').and_then(|mark| serde_json::from_str(mark).ok());
        mark.map_or_else(whole, |mark| (lane, mark))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark() -> Mark {
        Mark { id: Some("AAAAAAAAAAAAAAAAAAAAAQ".to_owned()), first: Some(12) }
    }

    #[test]
    fn what_the_lane_wrote_comes_back_beside_the_mark() {
        for lane in [r#"{"v":1,"fence":9}"#, r#"{"v":1,"settled":{"bits":"ab"}}"#, ""] {
            let marked = mark().put_on(lane);
            assert!(serde_json::from_str::<serde_json::Value>(&marked).is_ok(), "{marked}");
            assert_eq!(Mark::take_off(&marked), (lane.to_owned(), mark()));
        }
    }

    #[test]
    fn metadata_without_a_mark_stays_as_it_is() {
        for lane in ["", "xyz", "{}", r#"{"v":1,"fence":9}"#, r#"{"log":7}"#, r#"{"v":1,"log":{"id":3}}"#] {
            assert_eq!(Mark::take_off(lane), (lane.to_owned(), Mark::default()), "{lane}");
            assert_eq!(Mark::default().put_on(lane), lane);
        }
        assert_eq!(mark().put_on("an operator's note"), "an operator's note");
    }

    #[test]
    fn the_mark_is_as_small_as_the_list_of_the_settled_leaves_room_for() {
        let mark = Mark { id: mark().id, first: Some(i32::MAX) }.put_on("{}");
        assert!(mark.len() <= 60, "{mark}");
    }
}
