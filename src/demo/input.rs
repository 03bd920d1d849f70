//! The user's own lines in the demo: the count of those that are events, and the partition and offset of each.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::auditor::Letter;
use crate::testbed::model::{LogEntry, ReadRules, skips};
use crate::testbed::simulator::Kind;

/// The most line numbers that a report names; more would not help.
const NAMED: usize = 5;

/// The lines that were read, by line number from 1.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    read: u64,
    blank: u64,
    /// The numbers of the lines that are no JSON object.
    others: Vec<u64>,
    /// The first byte of the first of those lines.
    begins: Option<u8>,
    /// The number of each written line, by partition and offset.
    written: BTreeMap<(i32, i64), u64>,
}

impl Lines {
    /// Notes the next line and returns true if it is to be written. A blank line is not: it separates events in files
    /// written by hand.
    pub fn read(&mut self, line: &[u8]) -> bool {
        self.read += 1;
        let line = line.trim_ascii();
        if line.is_empty() {
            self.blank += 1;
            return false;
        }
        if serde_json::from_slice::<BTreeMap<String, &RawValue>>(line).is_err() {
            self.others.push(self.read);
            self.begins = self.begins.or(line.first().copied());
        }
        true
    }

    /// Returns the number of the line that was read last.
    pub fn number(&self) -> u64 {
        self.read
    }

    pub fn written(&mut self, line: u64, partition: i32, offset: i64) {
        self.written.insert((partition, offset), line);
    }

    /// Returns the number of lines that are JSON objects.
    pub fn objects(&self) -> u64 {
        self.read - self.blank - self.others.len() as u64
    }

    /// Returns a report for the user: the lines that were read, and those of them that are no events.
    pub fn report(&self) -> Vec<String> {
        let filled = self.read - self.blank;
        let mut report = vec![match (self.read, filled) {
            (0, _) => "The input is empty.".to_owned(),
            (_, 0) => format!("The input has {} lines, all blank.", self.read),
            _ => format!("The input has {filled} lines, blank ones left out."),
        }];
        if !self.others.is_empty() {
            report.push(format!(
                "{} of {filled} lines are no JSON objects (one object a line): {}.",
                self.others.len(),
                named(&self.others)
            ));
        }
        if self.objects() == 0 && filled > 0 {
            report.push(match self.begins {
                Some(b'[') => "This looks like a JSON array: jq -c '.[]' FILE writes its events one a line.".to_owned(),
                Some(b'{') => {
                    "This looks like JSON over several lines: jq -c . FILE writes each event in one line.".to_owned()
                }
                _ => "This is no JSON, such as CSV: write each event as a JSON object in one line.".to_owned(),
            });
        }
        report
    }

    /// Returns a text for each reason for which events were skipped or dead-lettered at one provider, with their lines.
    pub fn left_out(&self, kind: Kind, log: &[LogEntry], letters: &[Letter]) -> Vec<String> {
        let mut skipped: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (place, reason) in skips(kind, &ReadRules::default(), log) {
            skipped.entry(reason).or_default().extend(self.written.get(&place));
        }
        let mut dead: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for letter in letters {
            let line = self.written.get(&(letter.partition, letter.offset));
            dead.entry(letter.reason.as_str()).or_default().extend(line);
        }
        let texts = |(what, reasons): (&str, BTreeMap<&str, Vec<u64>>)| {
            let one = |(reason, mut lines): (&str, Vec<u64>)| {
                lines.sort_unstable();
                lines.dedup();
                format!("{:<10} {what}: {} for {reason}: {}", kind.name(), lines.len(), named(&lines))
            };
            reasons.into_iter().map(one).collect::<Vec<_>>()
        };
        [("skipped", skipped), ("dead letters", dead)].into_iter().flat_map(texts).collect()
    }
}

fn named(lines: &[u64]) -> String {
    let first: Vec<String> = lines.iter().take(NAMED).map(u64::to_string).collect();
    let word = if lines.len() == 1 { "line" } else { "lines" };
    let more = if lines.len() > NAMED { ", ..." } else { "" };
    format!("{word} {}{more}", first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Lines {
        let mut lines = Lines::default();
        for line in text.lines() {
            lines.read(line.as_bytes());
        }
        lines
    }

    #[test]
    fn input_that_holds_no_events_is_named_for_what_it_looks_like() {
        for (text, count, hint) in [
            ("id,plan\n1,pro\n2,free", "3 of 3 lines are no JSON objects (one object a line): lines 1, 2, 3.", "CSV"),
            ("{\n  \"userId\": \"a\",\n  \"traits\": 5\n}", "4 of 4 lines", "jq -c . FILE"),
            ("[{\"userId\":\"a\"},\n{\"userId\":\"b\"}]", "2 of 2 lines", "jq -c '.[]' FILE"),
            ("[]", "1 of 1 lines are no JSON objects (one object a line): line 1.", "jq -c '.[]' FILE"),
        ] {
            let lines = lines(text);
            let report = lines.report().join("\n");
            assert_eq!(lines.objects(), 0, "{text}");
            assert!(report.contains(count) && report.contains(hint), "{report}");
        }
        assert_eq!(lines("").report(), ["The input is empty."]);
        assert_eq!(lines("\n \n").report(), ["The input has 2 lines, all blank."]);
    }

    #[test]
    fn an_object_with_a_number_that_no_double_holds_is_an_object() {
        let lines = lines("{\"userId\":\"a\",\"traits\":{\"x\":1e400}}\n\n7\n");
        assert_eq!((lines.objects(), lines.number()), (1, 3));
        assert!(lines.report()[1].starts_with("1 of 2 lines are no JSON objects (one object a line): line 3."));
    }
}
