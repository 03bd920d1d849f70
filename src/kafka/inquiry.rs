//! Questions about the ends of logs, asked on a thread of their own: when a broker is gone, librdkafka takes its time for
//! them (measured: 5.5 s where 1 s was allowed), and reading and committing must not wait for that.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::context::Context;
use crate::record::{PartitionId, Position};

/// One question at a time.
pub(super) struct Inquiry {
    questions: Sender<PartitionId>,
    answers: Receiver<Answer>,
    open: Option<(PartitionId, Instant)>,
}

pub(super) struct Answer {
    pub partition: PartitionId,
    /// `None` where no broker told.
    pub end: Option<Position>,
}

impl Inquiry {
    /// # Errors
    /// The thread cannot be started.
    pub fn start(consumer: &Arc<BaseConsumer<Context>>, timeout: Duration) -> io::Result<Inquiry> {
        let (questions, asked) = channel::<PartitionId>();
        let (told, answers) = channel();
        // The consumer goes when the reader lets it go, or as soon as the last question has ended.
        let consumer = Arc::downgrade(consumer);
        std::thread::Builder::new().name("consumer-inquiry".to_owned()).spawn(move || {
            while let Ok(partition) = asked.recv() {
                let Some(consumer) = consumer.upgrade() else { return };
                let topic = &consumer.context().topics[usize::from(partition.topic)];
                let answer = consumer.fetch_watermarks(topic, partition.partition, timeout);
                let end = answer.ok().map(|(_, high)| Position(high));
                // The reader may have ended.
                let _ = told.send(Answer { partition, end });
            }
        })?;
        Ok(Inquiry { questions, answers, open: None })
    }

    /// Asks where the log of this partition ends.
    pub fn ask(&mut self, partition: PartitionId, now: Instant) {
        if self.questions.send(partition).is_ok() {
            self.open = Some((partition, now));
        }
    }

    /// The answer, if it has come.
    pub fn answer(&mut self) -> Option<Answer> {
        let answer = self.answers.try_recv().ok()?;
        self.open = None;
        Some(answer)
    }

    /// What is asked and not answered, and since when.
    pub fn open(&self) -> Option<(PartitionId, Instant)> {
        self.open
    }
}
