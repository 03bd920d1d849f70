//! The life of one worker in a run, from its events to its death at the chosen moment.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use sluicegate::testbed::simulator::Kind;

use super::{DEADLINE, Run, Worker};
use crate::events::Made;
use crate::oracle::Death;
use crate::schedule::{End, Life, Moment, Outage};

/// The longest wait for a moment, after which the worker dies all the same: the load may be over, or a row held back.
const PATIENCE: Duration = Duration::from_secs(15);

/// The times at which a worker was asked to end, was struck and was gone. `was_clean` is true if it had ended cleanly
/// before.
#[derive(Clone, Copy)]
struct Blow {
    asked: Instant,
    struck: Instant,
    gone: Instant,
    was_clean: bool,
}

impl Run {
    /// Runs one life to its end and returns the worker of the next one.
    pub(super) async fn live(&mut self, worker: Worker, life: Life, mut chunk: Vec<Made>) -> Result<Worker, String> {
        let rest = if life.produced_after_death { chunk.split_off(chunk.len() / 2) } else { Vec::new() };
        if let Some(broker) = &self.world.embedded {
            let code = RDKafkaRespErr::RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS;
            let commits = vec![code; self.schedule.failing_commits];
            broker.request_errors(RDKafkaApiKey::OffsetCommit, &commits).expect("an answer");
        }
        self.produce(chunk).await;
        if let Some(broker) = &self.world.embedded {
            // From here on only dead letters are written, and these errors delay some of them.
            let code = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
            let writes = vec![code; self.schedule.failing_writes];
            broker.request_errors(RDKafkaApiKey::Produce, &writes).expect("an answer");
        }
        let mut pair = vec![worker];
        match life.outage {
            Outage::WhileUp { after, down } => {
                tokio::time::sleep(after).await;
                self.broker_down().await;
                tokio::time::sleep(down).await;
                self.broker_up().await;
            }
            Outage::AcrossDeath { after } => {
                tokio::time::sleep(after).await;
                self.broker_down().await;
            }
            Outage::None | Outage::WhileDown => {}
        }
        self.wait(life, &mut pair).await;
        // Either worker of a pair may die. Both are as likely, and a seed always takes the same.
        let victim = pair.remove((self.schedule.seed % pair.len() as u64) as usize);
        let killed = self.kill(victim, life.end).await?;
        if let Some(broker) = &self.world.embedded {
            broker.clear_request_errors(RDKafkaApiKey::Produce).expect("an answer");
        }
        if life.outage == Outage::WhileDown {
            self.broker_down().await;
            self.broker_up().await;
        }
        let survivor = pair.pop();
        let was_alone = survivor.is_none();
        let successor = match life.outage {
            Outage::AcrossDeath { .. } => {
                let successor = survivor.unwrap_or_else(|| self.start(0));
                self.broker_up().await;
                successor
            }
            _ => {
                let death = self.examine(killed, was_alone)?;
                self.deaths.push(death);
                self.world.produce_all(rest).await;
                return Ok(survivor.unwrap_or_else(|| self.start(0)));
            }
        };
        let death = self.examine(killed, false)?;
        self.deaths.push(death);
        self.world.produce_all(rest).await;
        Ok(successor)
    }

    async fn broker_down(&self) {
        match (&self.kafka, &self.world.embedded) {
            (Some(kafka), _) => kafka.kill(),
            (None, Some(broker)) => broker.broker_down().expect("an answer"),
            (None, None) => {}
        }
    }

    async fn broker_up(&self) {
        match (&self.kafka, &self.world.embedded) {
            (Some(kafka), _) => kafka.up(),
            (None, Some(broker)) => broker.broker_up().expect("an answer"),
            (None, None) => {}
        }
    }

    /// Waits for the moment, and starts a second worker if the moment needs one.
    async fn wait(&mut self, life: Life, pair: &mut Vec<Worker>) {
        let world = &self.world;
        let began = Instant::now();
        let arrived = |kind: Kind| world.simulator.provider(kind).summary().counters.rows_received as usize;
        let answered = |kind: Kind| {
            let statuses = world.simulator.provider(kind).summary().counters.statuses;
            statuses.range(200..300).map(|(_, count)| *count as usize).sum::<usize>()
        };
        let patience = async |condition: &(dyn Fn() -> bool + Sync)| {
            while !condition() && began.elapsed() < PATIENCE {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        match life.moment {
            Moment::After(time) => tokio::time::sleep(time.saturating_sub(pair[0].started.elapsed())).await,
            Moment::InReplay(time) => {
                patience(&|| pair[0].process.log().contains("reading up to the fence")).await;
                tokio::time::sleep(time).await;
            }
            Moment::OnArrival(kind, rows) => {
                let before = arrived(kind);
                patience(&|| arrived(kind) >= before + rows).await;
            }
            Moment::AfterAnswer(kind, answers, time) => {
                let before = answered(kind);
                patience(&|| answered(kind) >= before + answers).await;
                tokio::time::sleep(time).await;
            }
            Moment::InRebalance(time) => {
                // The first worker must own partitions that it can lose.
                patience(&|| arrived(Kind::Vitally) > 0 && pair[0].process.log().contains("partitions assigned")).await;
                let second = self.start(1 - pair[0].replica);
                pair.push(second);
                let handed_over = |worker: &Worker, text: &str| worker.process.log().contains(text);
                patience(&|| {
                    handed_over(&pair[0], "partitions revoked") || handed_over(&pair[1], "partitions assigned")
                })
                .await;
                tokio::time::sleep(time).await;
            }
        }
    }

    async fn kill(&mut self, mut victim: Worker, end: End) -> Result<Blow, String> {
        if !victim.process.is_running() {
            return Err(format!("a worker has ended by itself:\n{}", victim.process.log()));
        }
        let asked = Instant::now();
        if let End::TermThenKill(time) = end {
            victim.process.signal("TERM");
            tokio::time::sleep(time).await;
        }
        let has_left = victim.process.ended_with() == Some(0);
        let log = victim.process.log();
        let struck = Instant::now();
        victim.process.kill();
        let gone = Instant::now();
        let _ = writeln!(self.logs, "--- worker {} of life {}\n{log}", victim.replica, self.deaths.len());
        // A worker that gave up waiting for what was in flight logs this.
        let was_clean = has_left && !log.contains("shutdown.drain is over") && !log.contains("did not leave the group");
        Ok(Blow { asked, struck, gone, was_clean })
    }

    /// Reads the committed positions once the worker is gone.
    fn examine(&self, blow: Blow, was_alone: bool) -> Result<Death, String> {
        let mut committed = Vec::new();
        for (kind, asker) in &self.askers {
            let deadline = Instant::now() + DEADLINE;
            let sample = loop {
                match asker.try_to_ask() {
                    Ok(sample) => break sample,
                    Err(error) if Instant::now() > deadline => {
                        return Err(format!("{}: no committed positions: {error}", kind.name()));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(50)),
                }
            };
            committed.push(sample);
        }
        let Blow { asked, struck, gone, was_clean } = blow;
        Ok(Death { asked, struck, gone, committed, was_alone, was_clean })
    }
}
