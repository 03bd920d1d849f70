//! The engine's account of its work: counters, notes for the log, and the delivered rows since the last report.

use super::action::Note;
use super::counters::Counters;

/// Grows as the engine works; the loop takes notes and deliveries out.
#[derive(Debug, Default)]
pub struct Tally {
    pub counters: Counters,
    notes: Vec<Note>,
    /// Kafka's time of the oldest event of each row delivered since it was last asked for.
    delivered: Vec<i64>,
}

impl Tally {
    pub fn note(&mut self, note: Note) {
        self.notes.push(note);
    }

    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// Counts a delivered row of this many events, the oldest of which has this Kafka time in milliseconds since 1970.
    pub fn deliver(&mut self, events: u32, first_time_ms: i64) {
        self.counters.rows_delivered += 1;
        self.counters.events_delivered += u64::from(events);
        self.delivered.push(first_time_ms);
    }

    pub fn take_delivered(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.delivered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::testing::PARTITION;

    #[test]
    fn a_delivery_and_a_note_are_handed_out_once_and_stay_counted() {
        let mut tally = Tally::default();
        tally.deliver(3, 70);
        tally.deliver(1, 90);
        tally.note(Note::Fenced { partitions: vec![PARTITION] });
        assert_eq!(tally.take_delivered(), [70, 90]);
        assert_eq!((tally.take_notes().len(), tally.take_notes().len()), (1, 0));
        assert!(tally.take_delivered().is_empty());
        assert_eq!((tally.counters.rows_delivered, tally.counters.events_delivered), (2, 4));
    }
}
