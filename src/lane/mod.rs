//! The loop of one destination, which waits for one thing, reports it to the engine, and then does what the engine says.

mod advice;
mod contact;
mod dead_letter;
mod mask_token;
mod password;
mod policy;
mod rejoin;
mod report;
mod requests;
mod source;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use self::requests::Done;
use crate::config::lane::DeadLetter;
use crate::config::{Config, Destination, Problem};
use crate::engine::{Action, CommitId, DeadLetterId, Engine, LaneState, Note, Now, Outgoing};
use crate::kafka::dead_letter::DeadLetterProducer;
use crate::kafka::{self, Command, CommitEntry, SourceEvent};
use crate::kafka::{Consumer, ConsumerSettings};
use crate::metrics::{LaneMetrics, Metrics};
use crate::ops::{LaneStatus, Reporter};
use crate::providers::{self, Provider, Row, Version};
use crate::record::PartitionId;
use crate::sender::token::TokenSource;
use crate::sender::{self, Sender, SenderSettings};
use crate::verdict::{EncodedRow, Rejection};

/// The batches of records between the consumer thread and the loop. They hold a few milliseconds of work. So records are ready
/// when the loop is, and a revoke never waits behind many batches.
const RECORD_BATCHES: usize = 4;

/// The time limit for the consumer to leave the group. It takes 20 to 120 ms (measured), and has known hangs that the lane
/// should not wait for.
const CLOSE: Duration = Duration::from_secs(6);

/// The longest time between two turns of the loop, by which `/livez` distinguishes a stuck loop from an idle one.
const TURN: Duration = Duration::from_secs(5);

/// The reason why a lane cannot start. Once it runs, nothing ends it, because it tries again what fails.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("destination {destination}: {source}")]
    Kafka { destination: String, source: kafka::Error },
    #[error("{problem}")]
    Setting { problem: Problem },
    #[error("destination {destination}: {source}")]
    Sender { destination: String, source: sender::Error },
}

/// All that serves one destination.
pub struct Lane {
    id: String,
    topics: Arc<[String]>,
    dead_letter: DeadLetter,
    drain: Duration,
    engine: Engine,
    provider: Arc<dyn Provider>,
    sender: Arc<Sender>,
    token: TokenSource,
    consumer: Consumer,
    /// The settings for another consumer in place of one that was fenced or refused.
    consumer_settings: ConsumerSettings,
    source: mpsc::Receiver<SourceEvent>,
    session_timeout: Duration,
    /// The time to join the group again, after the consumer was fenced or refused.
    rejoin_at: Option<Instant>,
    contact: contact::Contact,
    password: Option<password::PasswordFile>,
    /// The commit that the consumer has not answered yet.
    committing: Option<CommitId>,
    producer: Arc<DeadLetterProducer>,
    /// The last time the loop visited the producer.
    producer_visited: Option<Instant>,
    requests: JoinSet<Done>,
    letters: JoinSet<(DeadLetterId, Result<(), kafka::Error>)>,
    /// The partitions that the group waits for, and the channel that reports them as free.
    revokes: Vec<(BTreeSet<PartitionId>, oneshot::Sender<()>)>,
    metrics: LaneMetrics,
    reporter: Reporter,
    report: report::Report,
    advice: advice::Advice,
}

impl Lane {
    /// Joins the group and starts reading. The lane sends nothing before `run`.
    ///
    /// # Errors
    /// Returns an error if a secret or TLS file cannot be read, no HTTP client can be made, or librdkafka refuses the
    /// properties.
    pub fn start(
        config: &Config,
        id: &str,
        destination: &Destination,
        metrics: &Metrics,
        board: &mut crate::ops::Board,
    ) -> Result<Lane, Error> {
        let settings = &destination.settings;
        let named = |source| Error::Kafka { destination: id.to_owned(), source };
        let provider: Arc<dyn Provider> = providers::build(&destination.provider, id).into();
        let token = destination.token_source(id).map_err(|problem| Error::Setting { problem })?;
        let tls = destination.tls(id).map_err(|problem| Error::Setting { problem })?;
        let sender = Sender::new(SenderSettings { timeout: settings.request.timeout.0 }, &tls)
            .map_err(|source| Error::Sender { destination: id.to_owned(), source })?;
        let consumer = consumer_settings(config, id).map_err(|problem| Error::Setting { problem })?;
        let status = LaneStatus {
            destination: id.to_owned(),
            group: consumer.group.clone(),
            state: LaneState::Starting.label().to_owned(),
            state_since_ms: wall_ms(),
            loop_turn_ms: wall_ms(),
            ..LaneStatus::default()
        };
        let (events, source) = mpsc::channel(RECORD_BATCHES);
        let client_id = format!("sluicegate-{id}-dlq");
        let producer = DeadLetterProducer::new(&consumer.brokers, &consumer.properties, &client_id).map_err(named)?;
        Ok(Lane {
            id: id.to_owned(),
            topics: config.kafka.topics.clone().into(),
            dead_letter: settings.dead_letter.clone(),
            drain: config.shutdown.drain.0,
            engine: Engine::new(policy::policy(config, id, destination, &provider), Instant::now()),
            provider,
            sender: Arc::new(sender),
            token,
            consumer: Consumer::start(consumer.clone(), events).map_err(named)?,
            consumer_settings: consumer,
            source,
            session_timeout: config.kafka.session_timeout(),
            rejoin_at: None,
            contact: contact::Contact::default(),
            password: password::PasswordFile::new(&config.kafka),
            committing: None,
            producer: Arc::new(producer),
            producer_visited: None,
            requests: JoinSet::new(),
            letters: JoinSet::new(),
            revokes: Vec::new(),
            metrics: metrics.lane(id),
            reporter: board.lane(status),
            report: report::Report::default(),
            advice: advice::Advice::new(config, id, destination),
        })
    }

    /// Works until `shutdown` turns true. Then finishes what is in flight within `shutdown.drain`, commits and leaves the
    /// group.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) {
        let mut drain_until: Option<Instant> = None;
        let mut has_read = false;
        loop {
            self.perform();
            if std::mem::take(&mut has_read) {
                // A backlog is always ready. Without this, a lane would keep its thread for 128 batches (tokio's budget of a
                // task). On one core, probes, scrapes and replies would then wait for seconds.
                tokio::task::yield_now().await;
            }
            let now = Instant::now();
            let is_over = drain_until.is_some_and(|until| until <= now);
            if drain_until.is_some() && (self.engine.is_drained() || is_over) {
                if !self.engine.is_drained() {
                    let (requests, dead_letters) = (self.requests.len(), self.letters.len());
                    // If both are 0, the broker has not answered the last commit.
                    tracing::warn!(destination = %self.id, requests, dead_letters, "shutdown.drain is over before what was under way has been answered and committed; it will be sent again");
                }
                return self.leave().await;
            }
            if drain_until.is_none() && self.rejoin_at.is_some_and(|at| at <= now) {
                self.rejoin();
            }
            let rejoin_at = self.rejoin_at.filter(|_| drain_until.is_none());
            let wake = [self.engine.next_wakeup(), drain_until, rejoin_at]
                .into_iter()
                .flatten()
                .fold(now + TURN, Instant::min);
            tokio::select! {
                event = self.source.recv(), if !self.has_left() => match event {
                    Some(event) => {
                        self.on_source(event);
                        has_read = true;
                    }
                    // The channel of a consumer that leaves can close while the loop waits for it.
                    None if self.rejoin_at.is_some() => {}
                    None => self.on_refused("the consumer thread has ended; this is a bug".to_owned(), now),
                },
                // No code aborts these tasks, and the work that may panic is in tasks of its own.
                Some(Ok(done)) = self.requests.join_next() => self.on_reply(done),
                Some(Ok((letter, result))) = self.letters.join_next() => self.on_written(letter, result),
                ask = self.reporter.asked() => {
                    self.write_report();
                    ask.answered();
                }
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = shutdown.wait_for(|stop| *stop), if drain_until.is_none() => {
                    tracing::info!(destination = %self.id, in_flight = self.requests.len(), "draining");
                    self.engine.drain();
                    drain_until = Some(Instant::now() + self.drain);
                }
            }
        }
    }

    fn on_written(&mut self, letter: DeadLetterId, result: Result<(), kafka::Error>) {
        match &result {
            Ok(()) => self.report.went_well(report::Place::DeadLetters),
            Err(error) => {
                let text = format!("dead letter not written, the lane waits: {error}");
                self.on_weather(text.clone(), Instant::now());
                self.report.failed_at(report::Place::DeadLetters, text);
            }
        }
        self.engine.on_dead_letter(letter, result.is_ok(), Instant::now());
    }

    /// Does what the engine says until it says nothing.
    fn perform(&mut self) {
        loop {
            let (id, provider, topics, metrics) = (&self.id, &*self.provider, &self.topics, &self.metrics);
            let mut encode = |outgoing: &Outgoing<'_>| {
                for (name, reason) in &outgoing.profile.left_out {
                    metrics.traits_dropped.add(reason.label(), 1);
                    tracing::debug!(destination = %id, %name, reason = reason.label(), "a trait is left out");
                }
                encode(provider, topics, outgoing)
            };
            let Some(action) = self.engine.poll(now(), &mut encode) else { break };
            match action {
                Action::Send { batch, rows } => self.send(batch, &rows),
                Action::Poll { batch, job, rows, polls } => self.ask_about(batch, job, rows, polls),
                Action::WriteDeadLetter { id, letter } => {
                    let source = self.topics.get(usize::from(letter.partition.topic)).map_or("", String::as_str);
                    let topic = self.dead_letter.topic_of(source, &self.id);
                    let record = dead_letter::record(&self.id, source, topic, &letter, SystemTime::now());
                    let producer = Arc::clone(&self.producer);
                    self.letters.spawn(dead_letter::write_letter(id, producer, record));
                }
                Action::Commit { id, commits } => {
                    let entries = commits
                        .into_iter()
                        .map(|c| CommitEntry { partition: c.partition, position: c.position, metadata: c.metadata })
                        .collect();
                    self.committing = Some(id);
                    self.note_commit(Some(Instant::now()));
                    self.consumer.send(Command::Commit { id: id.0, entries });
                }
                Action::Pause(partitions) => self.consumer.send(Command::Pause(partitions)),
                Action::Resume(partitions) => self.consumer.send(Command::Resume(partitions)),
                Action::Release(partitions) => self.release(&partitions),
            }
        }
        let now = Instant::now();
        if self.producer_visited.is_none_or(|at| now - at >= TURN) {
            self.producer_visited = Some(now);
            self.producer.visit();
            self.look_at_password();
        }
        self.log_notes();
        self.watch_commit(now);
        self.note_state();
        if self.engine.state(Instant::now()) == LaneState::AccountFault {
            // This notices a rotated token file within one turn of the loop, not at the next probe minutes later.
            self.current_token();
        }
    }

    fn release(&mut self, partitions: &[PartitionId]) {
        for (waiting, _) in &mut self.revokes {
            partitions.iter().for_each(|partition| {
                waiting.remove(partition);
            });
        }
        for (_, done) in self.revokes.extract_if(.., |(waiting, _)| waiting.is_empty()) {
            // The thread may have reached its deadline and no longer wait.
            let _ = done.send(());
        }
    }

    fn log_notes(&mut self) {
        for note in self.engine.take_notes() {
            match note {
                Note::Gap { partition, from, to } => {
                    tracing::warn!(destination = %self.id, %partition, %from, %to, "offsets are missing: retention overtook the reader, or the log was cut or made anew");
                }
                Note::Replay { partition, from, fence } => {
                    tracing::info!(destination = %self.id, %partition, %from, %fence, "reading up to the fence of the last owner");
                }
                Note::Fenced { partitions } => {
                    tracing::warn!(destination = %self.id, partitions = partitions.len(), "the group moved on; what these partitions held is dropped and read again");
                }
            }
        }
    }

    /// Closes the consumer. Answers its revokes meanwhile, and ignores its other messages.
    async fn leave(self) {
        let Lane { id, consumer, mut source, .. } = self;
        let mut closed = tokio::task::spawn_blocking(move || consumer.join(CLOSE));
        let mut is_open = true;
        // The lane does not wait until the channel closes. During an outage the thread can be in a commit for a minute.
        let ended = loop {
            tokio::select! {
                event = source.recv(), if is_open => match event {
                    Some(SourceEvent::Revoking { done, .. }) => {
                        let _ = done.send(());
                    }
                    Some(_) => {}
                    None => is_open = false,
                },
                ended = &mut closed => break ended,
            }
        };
        match ended {
            Ok(true) => tracing::info!(destination = %id, "left the group"),
            _ => {
                tracing::warn!(destination = %id, "the consumer did not leave the group in time; the broker will notice")
            }
        }
    }
}

/// Returns the settings of the lane's consumer, with the password from its file.
fn consumer_settings(config: &Config, id: &str) -> Result<ConsumerSettings, Problem> {
    Ok(ConsumerSettings {
        brokers: config.kafka.brokers.clone(),
        topics: config.kafka.topics.clone(),
        group: config.kafka.group_of(id),
        start: config.kafka.start,
        properties: config.kafka_properties()?,
        client_id: format!("sluicegate-{id}"),
    })
}

/// Lets the provider render one row.
fn encode(provider: &dyn Provider, topics: &[String], outgoing: &Outgoing<'_>) -> Result<EncodedRow, Rejection> {
    let row = Row {
        profile: outgoing.profile,
        record_time_ms: outgoing.record_time_ms,
        version: Version {
            topic: topics.get(usize::from(outgoing.partition.topic)).map_or("", String::as_str),
            partition: outgoing.partition.partition,
            last_offset: outgoing.last.0,
            rekeyed: outgoing.rekeyed,
        },
    };
    provider.row(&row)
}

fn now() -> Now {
    Now { at: Instant::now(), wall_ms: wall_ms() }
}

fn wall_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
