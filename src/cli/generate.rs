//! `generate`: writes generated identify events to a topic, at a pace if asked, and waits until the broker has them all.

use std::collections::BTreeMap;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Exit, Generate, complain, refuse, say, with_config};
use crate::config::Problems;
use crate::kafka::settings::KafkaSettings;
use crate::kafka::{Error, EventProducer};
use crate::testbed::generator::{Generator, GeneratorSettings};

/// The time between two updates of the progress, which looks steady to people.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn generate(args: &Generate, files: &[PathBuf]) -> Exit {
    if files.is_empty() {
        return write(args, &KafkaSettings::default(), &BTreeMap::new());
    }
    with_config(files, &[], |config| match config.kafka_properties() {
        Ok(properties) => write(args, &config.kafka, &properties),
        Err(problem) => refuse(&Problems(vec![problem])),
    })
}

fn write(args: &Generate, kafka: &KafkaSettings, properties: &BTreeMap<String, String>) -> Exit {
    let brokers = args.brokers.as_ref().unwrap_or(&kafka.brokers);
    // A valid configuration names at least one topic.
    let Some(topic) = args.topic.as_ref().or(kafka.topics.first()) else { return Exit::Config };
    let producer = match EventProducer::new(brokers, properties, topic) {
        Ok(producer) => producer,
        Err(error) => {
            complain(&format!("{error}\n"));
            return Exit::Config;
        }
    };
    let mut progress = Progress::new(args.events);
    let result = produce(args, &producer, &mut progress);
    progress.clear();
    let (written, seconds) = (producer.acknowledged(), progress.started.elapsed().as_secs_f64());
    match result {
        Ok(()) => say(&format!(
            "wrote {written} events to topic {topic} in {seconds:.1}s ({:.0} a second)\n",
            written as f64 / seconds.max(0.001)
        )),
        Err(error) => {
            complain(&format!("{error}\nthe broker has acknowledged {written} of {} events\n", args.events));
            Exit::Unavailable
        }
    }
}

fn produce(args: &Generate, producer: &EventProducer, progress: &mut Progress) -> Result<(), Error> {
    producer.ready()?;
    progress.started = Instant::now();
    for (index, event) in (0..).zip(Generator::new(settings(args, now_ms()))) {
        wait_until(progress.started + due(index, args.rate), producer, progress);
        producer.send(&event.key, event.payload.as_deref())?;
        progress.show(producer.acknowledged());
    }
    producer.finish()
}

fn settings(args: &Generate, start_ms: i64) -> GeneratorSettings {
    // Events are whole milliseconds apart. Above a rate of 1,000 all have the time of the start, like those of a burst.
    // Below it their times fall behind by less than half.
    let step_ms = 1000_i64.checked_div(i64::from(args.rate)).unwrap_or(0);
    GeneratorSettings {
        seed: args.seed,
        users: args.users,
        events: args.events,
        start_ms,
        step_ms,
        ..GeneratorSettings::default()
    }
}

/// Returns the time at which an event is due, counted from the first one.
fn due(index: u64, rate: u32) -> Duration {
    if rate == 0 { Duration::ZERO } else { Duration::from_secs_f64(index as f64 / f64::from(rate)) }
}

fn wait_until(due: Instant, producer: &EventProducer, progress: &mut Progress) {
    while let Some(rest) = due.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero()) {
        std::thread::sleep(rest.min(PROGRESS_INTERVAL));
        progress.show(producer.acknowledged());
    }
}

fn now_ms() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX)
}

/// A line with the number of written events, on a terminal only.
struct Progress {
    started: Instant,
    shown: Option<Instant>,
    events: u64,
    terminal: bool,
}

impl Progress {
    fn new(events: u64) -> Progress {
        Progress { started: Instant::now(), shown: None, events, terminal: stderr().is_terminal() }
    }

    fn show(&mut self, written: u64) {
        if self.terminal && self.shown.is_none_or(|shown| shown.elapsed() >= PROGRESS_INTERVAL) {
            self.shown = Some(Instant::now());
            complain(&format!("\r{written} of {} events written", self.events));
        }
    }

    /// Removes the line; `ESC [ K` erases to the line's end (ECMA-48, EL).
    fn clear(&self) {
        if self.shown.is_some() {
            complain("\r\u{1b}[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_due_at_the_rate_or_at_once() {
        assert_eq!(due(1_000, 0), Duration::ZERO);
        assert_eq!(due(0, 50), Duration::ZERO);
        assert_eq!(due(125, 50), Duration::from_millis(2_500));
    }

    #[test]
    fn the_events_times_keep_the_rate_and_do_not_run_ahead_of_the_clock() {
        let args = |rate| Generate { brokers: None, topic: None, events: 10, users: 3, seed: 7, rate };
        assert_eq!(settings(&args(50), 5).step_ms, 20);
        assert_eq!(settings(&args(0), 5).step_ms, 0);
        assert_eq!(settings(&args(5_000), 5).step_ms, 0);
        assert_eq!((settings(&args(1), 5).start_ms, settings(&args(1), 5).seed), (5, 7));
    }
}
