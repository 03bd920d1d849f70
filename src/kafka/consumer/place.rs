//! How a partition is read at present, and how reading goes on after something that came from behind.

use crate::record::Position;

/// How a partition is read at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// From `Owned::next` on.
    Known,
    /// Not yet: the brokers have not said where the log begins or ends. The lane does not know of the partition.
    Unknown { oldest: bool, found: Option<Position> },
    /// Not for now: something came from below `Owned::next`.
    Doubtful(Behind, Doubt),
    /// Not any more: what was read is settled first. Then from here on, or from the oldest record of a new log.
    Left(Option<Position>),
}

/// Something that came from below the position that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Behind {
    pub at: Position,
    /// Whether a newer leader wrote it than all that was read.
    pub is_newer: bool,
}

/// How far it is known why: first whether it is the same topic still, then where its log ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Doubt {
    New,
    IdAsked,
    SameTopic,
}

/// How to go on where something came from behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GoOn {
    /// From the same position: librdkafka delivered twice (librdkafka#2593).
    Same,
    /// From the oldest record left.
    Oldest,
    /// From here, the log having been cut.
    Cut(Position),
}

/// Decides for a reader at `next` in a log from `low` to `high`.
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

    /// A reader at 100, what came from 10, and a log from `low` to `high`.
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
    fn a_cut_log_of_unknown_leaders_is_read_on_at_its_end_which_sets_nobody_back() {
        assert_eq!(at(false, 10, 50), GoOn::Cut(Position(50)));
    }

    #[test]
    fn a_log_whose_start_has_passed_the_position_is_read_on_at_its_start() {
        assert_eq!(at(false, 200, 500), GoOn::Oldest);
    }
}
