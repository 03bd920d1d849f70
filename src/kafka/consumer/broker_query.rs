//! Asks brokers about the ends of logs and about the topics, on a thread of its own.
//!
//! If a broker is gone, librdkafka takes long to answer (measured: 5.5 s with a limit of 1 s). Reading and committing must not
//! wait for that.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};

use crate::kafka::native::{Topic, describe_topics};
use crate::record::{PartitionId, Position};

/// The handle of the query thread, which takes one question at a time.
pub(super) struct BrokerQuery {
    questions: Sender<Question>,
    answers: Receiver<Answer>,
    open: Option<(Question, Instant)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Asks where the log of this partition begins and ends.
    Ends(PartitionId),
    /// Asks which ids and how many partitions the topics have.
    Topics,
}

pub(super) enum Answer {
    /// The log's start and end, or `None` if no broker reported them.
    Ends { partition: PartitionId, ends: Option<(Position, Position)> },
    /// The described topics, each with its index, or `None` if no broker reported them.
    Topics(Option<Vec<(u16, Topic)>>),
}

impl BrokerQuery {
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub fn start<C: ConsumerContext + 'static>(
        consumer: &Arc<BaseConsumer<C>>,
        topics: Vec<String>,
        timeout: Duration,
    ) -> io::Result<BrokerQuery> {
        let (questions, asked) = channel::<Question>();
        let (sender, answers) = channel();
        // The thread holds a weak reference. So the consumer is dropped when the reader drops it, or after the last question.
        let consumer = Arc::downgrade(consumer);
        std::thread::Builder::new().name("consumer-query".to_owned()).spawn(move || {
            while let Ok(question) = asked.recv() {
                let Some(consumer) = consumer.upgrade() else { return };
                // The reader may have ended, and then needs no answer.
                let _ = sender.send(answer(&consumer, &topics, question, timeout));
            }
        })?;
        Ok(BrokerQuery { questions, answers, open: None })
    }

    pub fn ask(&mut self, question: Question, now: Instant) {
        if self.questions.send(question).is_ok() {
            self.open = Some((question, now));
        }
    }

    /// Returns the answer if it has arrived.
    pub fn answer(&mut self) -> Option<Answer> {
        let answer = self.answers.try_recv().ok()?;
        self.open = None;
        Some(answer)
    }

    /// Returns the question without an answer so far, and the time at which it was asked.
    pub fn open(&self) -> Option<(Question, Instant)> {
        self.open
    }
}

fn answer<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topics: &[String],
    question: Question,
    timeout: Duration,
) -> Answer {
    match question {
        Question::Ends(partition) => {
            let topic = &topics[usize::from(partition.topic)];
            let ends = consumer.fetch_watermarks(topic, partition.partition, timeout);
            Answer::Ends { partition, ends: ends.ok().map(|(low, high)| (Position(low), Position(high))) }
        }
        Question::Topics => {
            let described = describe_topics(consumer, topics, timeout).ok();
            let index = |topic: &Topic| topics.iter().position(|name| *name == topic.name);
            let indexed = |topic: Topic| Some((u16::try_from(index(&topic)?).ok()?, topic));
            Answer::Topics(described.map(|topics| topics.into_iter().filter_map(indexed).collect()))
        }
    }
}
