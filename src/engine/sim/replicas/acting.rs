//! The actions of the replicas of a cluster: they read, send, commit, and poll their jobs.

use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use super::cluster::{CLOSING, Cluster, Happening, QUEUE, TURN};
use super::provider::Row;
use crate::engine::{Action, BatchId, Outgoing};
use crate::record::{Offset, PartitionId, Record};
use crate::verdict::{Answer, EncodedRow, JobId, Outage, Verdict};

impl Cluster {
    /// Every replica reads, does what its engine says, and leaves when it is done.
    pub(super) fn pump(&mut self) {
        let ids: Vec<usize> = self.replicas.iter().filter(|(_, r)| !r.is_frozen).map(|(id, _)| *id).collect();
        for id in ids {
            self.feed(id);
            self.act(id);
            if self.replicas.get(&id).is_some_and(|replica| replica.is_leaving && replica.engine.is_drained()) {
                let is_restarting = self.replicas.remove(&id).is_some_and(|replica| replica.is_restarting);
                self.group.expel(id);
                match is_restarting {
                    true => self.join(),
                    false => self.rebalance(),
                }
            }
        }
    }

    pub(super) fn feed(&mut self, id: usize) {
        let Some(replica) = self.replicas.get(&id) else { return };
        let running: Vec<PartitionId> =
            replica.readers.iter().filter(|(_, reader)| !reader.paused).map(|(partition, _)| *partition).collect();
        for partition in running {
            let log_end = self.end(partition);
            let Some(reader) = self.replicas.get_mut(&id).and_then(|r| r.readers.get_mut(&partition)) else { continue };
            reader.shows = reader.shows.filter(|(_, until)| *until > self.now);
            let end = reader.shows.map_or(log_end, |(shown, _)| shown.min(log_end)).max(reader.position);
            let from = reader.position;
            reader.position = end.min(crate::record::Position(from.0 + TURN));
            let is_new_end = reader.position == end && reader.end != Some(end);
            if is_new_end {
                reader.end = Some(end);
            }
            let to = reader.position;
            for offset in from.0..to.0 {
                let payload = format!(r#"{{"userId":"{}"}}"#, self.user(partition, offset));
                let record = Record {
                    partition,
                    offset: Offset(offset),
                    timestamp_ms: 0,
                    key: None,
                    payload: Some(payload.as_bytes()),
                };
                if let Some(replica) = self.replicas.get_mut(&id) {
                    replica.engine.on_record(&record, self.now);
                }
            }
            if is_new_end && let Some(replica) = self.replicas.get_mut(&id) {
                replica.engine.on_end(partition, to, self.now);
            }
        }
    }

    pub(super) fn act(&mut self, id: usize) {
        let mut encode = |outgoing: &Outgoing<'_>| {
            let body = format!("{} {} {}", outgoing.partition.partition, outgoing.profile.user_id, outgoing.last.0);
            Ok(EncodedRow { body: Bytes::from(body), identity: Uuid::nil() })
        };
        let now = self.clock(self.replicas.get(&id).map_or(0, |replica| replica.skew_ms));
        while let Some(action) = self.replicas.get_mut(&id).and_then(|replica| replica.engine.poll(now, &mut encode)) {
            match action {
                Action::Send { batch, rows } => self.send(id, batch, &rows),
                Action::Commit { id: commit, commits } => {
                    let entries = commits.into_iter().map(|c| (c.partition, c.position, c.metadata)).collect();
                    let after = self.random.millis(1, 5);
                    self.later(after, Happening::Commits(id, commit, entries));
                }
                Action::Pause(ids) => self.set_paused(id, &ids, true),
                Action::Resume(ids) => self.set_paused(id, &ids, false),
                Action::Release(ids) => {
                    for partition in ids {
                        if self.replicas.get_mut(&id).is_some_and(|replica| replica.revoking.remove(&partition)) {
                            self.released(id, partition);
                        }
                    }
                }
                Action::Poll { batch, job, .. } => {
                    let after = self.random.millis(self.plan.latency_ms.0, self.plan.latency_ms.1);
                    self.later(after, Happening::Polled(id, batch, job));
                }
                Action::WriteDeadLetter { .. } => self.faults.push("nothing here is bad".to_owned()),
            }
        }
    }

    pub(super) fn set_paused(&mut self, id: usize, partitions: &[PartitionId], paused: bool) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        for partition in partitions {
            if let Some(reader) = replica.readers.get_mut(partition) {
                reader.paused = paused;
            }
        }
    }

    pub(super) fn submit(&mut self, id: usize, batch: BatchId, rows: Vec<Row>, rest: Duration) {
        let answer = if self.jobs.last().is_some_and(|ends| *ends > self.now) {
            Answer::All(Verdict::Busy { retry_after: None })
        } else {
            let work = Duration::from_secs(60) * rows.len() as u32 / self.plan.limit;
            let ends = self.now + QUEUE + work;
            self.provider.arrive(&rows, ends, self.now);
            self.jobs.push(ends);
            let job = JobId((self.jobs.len() - 1).to_string());
            Answer::Pending { job, poll_after: work + CLOSING }
        };
        self.later(rest, Happening::Answers(id, batch, answer));
    }

    pub(super) fn polled(&mut self, id: usize, batch: BatchId, job: JobId) {
        let ends = job.0.parse().ok().and_then(|job: usize| self.jobs.get(job).copied());
        let answer = match ends.is_some_and(|ends| ends <= self.now) {
            true => Answer::All(Verdict::Delivered),
            false => Answer::Pending { job, poll_after: Duration::from_millis(500) },
        };
        self.later(Duration::ZERO, Happening::Answers(id, batch, answer));
    }

    pub(super) fn send(&mut self, id: usize, batch: BatchId, rows: &[EncodedRow]) {
        let rows: Vec<Row> = rows.iter().map(|row| parse(&row.body)).collect();
        if self.plan.jobs {
            let latency = self.random.millis(self.plan.latency_ms.0, self.plan.latency_ms.1);
            let arrival = latency / 2;
            self.later(arrival, Happening::Submits(id, batch, rows, latency - arrival));
            return;
        }
        let Some(timeout) = self.replicas.get(&id).map(|replica| replica.release.timeout) else { return };
        let times_out = self.random.chance(self.plan.timeout_percent);
        let (latency, answer) = match times_out {
            true => (timeout, Answer::All(Verdict::Unavailable(Outage::Timeout))),
            false => {
                (self.random.millis(self.plan.latency_ms.0, self.plan.latency_ms.1), Answer::All(Verdict::Delivered))
            }
        };
        let arrival = self.random.millis(0, latency.as_millis() as u64);
        let until = self.now + if times_out { arrival } else { latency };
        self.later(arrival, Happening::Arrives(rows, until));
        self.later(latency, Happening::Answers(id, batch, answer));
    }
}

fn parse(body: &[u8]) -> Row {
    let text = std::str::from_utf8(body).expect("the encoder writes text");
    let numbers: Vec<i64> = text.split(' ').map(|number| number.parse().expect("a number")).collect();
    Row { partition: PartitionId { topic: 0, partition: numbers[0] as i32 }, user: numbers[1] as u64, last: numbers[2] }
}
