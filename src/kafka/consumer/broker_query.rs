//! Questions about the ends of logs and about the topics, asked on a thread of their own: when a broker is gone, librdkafka takes its time for
//! them (measured: 5.5 s where 1 s was allowed), and reading and committing must not wait for that.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};

use crate::kafka::native::{Topic, describe_topics};
use crate::record::{PartitionId, Position};

/// One question at a time.
pub(super) struct BrokerQuery {
    questions: Sender<Question>,
    answers: Receiver<Answer>,
    open: Option<(Question, Instant)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Where the log of this partition begins and ends.
    Ends(PartitionId),
    /// Which ids and how many partitions the topics have.
    Topics,
}

pub(super) enum Answer {
    /// The log's start and end; `None` where no broker told.
    Ends { partition: PartitionId, ends: Option<(Position, Position)> },
    /// All that exist, by index. `None` where no broker told.
    Topics(Option<Vec<(u16, Topic)>>),
}

impl BrokerQuery {
    /// # Errors
    /// The thread cannot be started.
    pub fn start<C: ConsumerContext + 'static>(
        consumer: &Arc<BaseConsumer<C>>,
        topics: Vec<String>,
        timeout: Duration,
    ) -> io::Result<BrokerQuery> {
        let (questions, asked) = channel::<Question>();
        let (told, answers) = channel();
        // The consumer goes when the reader lets it go, or as soon as the last question has ended.
        let consumer = Arc::downgrade(consumer);
        std::thread::Builder::new().name("consumer-query".to_owned()).spawn(move || {
            while let Ok(question) = asked.recv() {
                let Some(consumer) = consumer.upgrade() else { return };
                // The reader may have ended.
                let _ = told.send(answer(&consumer, &topics, question, timeout));
            }
        })?;
        Ok(BrokerQuery { questions, answers, open: None })
    }

    pub fn ask(&mut self, question: Question, now: Instant) {
        if self.questions.send(question).is_ok() {
            self.open = Some((question, now));
        }
    }

    /// The answer, if it has come.
    pub fn answer(&mut self) -> Option<Answer> {
        let answer = self.answers.try_recv().ok()?;
        self.open = None;
        Some(answer)
    }

    /// What is asked and not answered, and since when.
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
