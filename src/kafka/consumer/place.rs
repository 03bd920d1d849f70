//! The state of reading one partition, and the decision how to go on after a record or an end from behind.

use crate::record::Position;

/// The state of reading one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The thread reads on from `Owned::next`.
    Known,
    /// The thread does not read yet, because no broker has reported where the log begins or ends. The lane does not know of the
    /// partition.
    Unknown { oldest: bool, found: Option<Position> },
    /// The thread does not read for now, because a record or an end came from below `Owned::next`.
    Doubtful(Behind, Doubt),
    /// The thread no longer reads this log, and waits until the lane has settled what was read. Then it goes on at this
    /// position, or without one at the oldest record of a new log.
    Left(Option<Position>),
}

/// A record or an end from below the position that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    pub at: Position,
    /// True if a newer leader wrote it than wrote the last record read.
    pub is_newer: bool,
}

/// The progress in finding the cause. First the thread asks if the topic is still the same one, then where its log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    New,
    IdAsked,
    SameTopic,
}

/// The way to go on after a record or an end from behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GoOn {
    /// From the same position, because librdkafka delivered a record twice (librdkafka#2593).
    Same,
    /// From the oldest record that is left.
    Oldest,
    /// From this position, because the log was cut.
    Cut(Position),
}

/// Decides how a reader at `next` goes on in a log from `low` to `high`.
pub(super) fn go_on(next: Position, behind: Behind, low: Position, high: Position) -> GoOn {
    if behind.is_newer {
        GoOn::Cut(behind.at)
    } else if high < next {
        GoOn::Cut(high)
    } else if low > next {
        GoOn::Oldest
    } else {
        GoOn::Same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decides for a reader at 100 after a record from 10, in a log from `low` to `high`.
    fn at(is_newer: bool, low: i64, high: i64) -> GoOn {
        go_on(Position(100), Behind { at: Position(10), is_newer }, Position(low), Position(high))
    }

    #[test]
    fn records_that_come_twice_change_nothing() {
        assert_eq!(at(false, 0, 100), GoOn::Same);
        assert_eq!(at(false, 10, 500), GoOn::Same);
    }

    #[test]
    fn a_cut_log_is_read_on_where_a_newer_leader_began_to_write() {
        assert_eq!(at(true, 0, 50), GoOn::Cut(Position(10)));
        assert_eq!(at(true, 0, 500), GoOn::Cut(Position(10)), "it has grown past the position");
    }

    #[test]
    fn a_cut_log_of_unknown_leaders_is_read_on_at_its_end_which_sets_no_user_back() {
        assert_eq!(at(false, 10, 50), GoOn::Cut(Position(50)));
    }

    #[test]
    fn a_log_whose_start_has_passed_the_position_is_read_on_at_its_start() {
        assert_eq!(at(false, 200, 500), GoOn::Oldest);
    }
}
