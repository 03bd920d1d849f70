//! One random schedule: reads, answers of every kind, commits that fail, rebalances, crashes, drains, clock steps.

mod acting;
mod answering;
mod happening;
mod judging;
mod mishaps;
mod totals;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use answering::Job;
use happening::Happening;
use judging::Life;
pub use totals::Totals;

use super::world::{Graves, Log, Odd, Provider, Random, SentRow};
use crate::engine::testing::start;
use crate::engine::{BatchId, BatchPolicy, CommitOutcome, Engine, GuardPolicy, Now, Policy, RetryPolicy};
use crate::event::Rules;
use crate::mapping::Mapping;
use crate::record::{PartitionId, Position};

/// Once all is well, a row that is to blame for its failures is a dead letter within ten minutes, if others pass. Before that a
/// job of another account may take ten minutes; and a limit of one row a second, or the guard's trickle, some more.
const LONGEST: Duration = Duration::from_secs(1800);

/// The simulated provider's way to report bad rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// No row named: split, and a lone refusal is suspect.
    Suspects,
    PerRow,
    Jobs,
}

pub struct Run {
    random: Random,
    began: Instant,
    now: Instant,
    wall_ms: i64,
    policy: Policy,
    style: Style,
    /// No crash, rebalance or drain: the engine remembers the events that it read, so that it can recognize repeats.
    is_settled: bool,
    /// All mishaps are over, and the rest is to be delivered.
    is_well: bool,
    /// Users are not keyed to partitions.
    is_miskeyed: bool,
    n_partitions: u64,
    n_users: u64,
    odd_percent: u64,
    fault_percent: u64,
    log: Log,
    broker: BTreeMap<PartitionId, (Position, String)>,
    provider: Provider,
    graves: Graves,
    engine: Engine,
    life: u64,
    /// Reader positions of the partitions that this engine owns; `true` while paused.
    readers: BTreeMap<PartitionId, (Position, bool)>,
    /// The furthest position that any owner has read.
    most_read: BTreeMap<PartitionId, Position>,
    /// The time since which they are being given up.
    revoking: BTreeMap<PartitionId, Instant>,
    /// From where and since when the engine has each partition.
    gained: BTreeMap<PartitionId, (Position, Instant)>,
    seen: Life,
    /// The wall clock goes as the other one does.
    has_steady_clock: bool,
    happenings: BTreeMap<(Instant, u64), Happening>,
    order: u64,
    in_flight: BTreeMap<String, usize>,
    jobs: Vec<Job>,
    /// The rows of each request of this life.
    sent: BTreeMap<BatchId, Vec<SentRow>>,
    /// The newest event of each user and partition that an engine knows as delivered.
    delivered: BTreeMap<(PartitionId, String), i64>,
    /// True if all owners so far left cleanly: then nothing that was delivered may be sent again.
    is_clean: bool,
    last_commit: CommitOutcome,
    /// Commits that failed one after the other before the last one.
    failed_before_last: u32,
    failed_in_a_row: u32,
    totals: Totals,
    faults: Vec<String>,
    /// Every action with its time, where a test asks for them.
    actions: Option<Vec<String>>,
}

impl Run {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let (style, policy) = draw_policy(&mut random);
        let now = start();
        let engine = Engine::new(policy.clone(), now);
        let mut run = Run {
            is_settled: random.chance(30),
            is_well: false,
            is_miskeyed: random.chance(20),
            has_steady_clock: random.chance(40),
            n_partitions: 1 + random.below(3),
            n_users: 1 + random.below(12),
            odd_percent: random.pick(&[0, 5, 25]),
            fault_percent: random.pick(&[0, 5, 25]),
            random,
            began: now,
            now,
            wall_ms: 1_700_000_000_000,
            policy,
            style,
            log: Log::default(),
            broker: BTreeMap::new(),
            provider: Provider::default(),
            graves: Graves::default(),
            engine,
            life: 0,
            readers: BTreeMap::new(),
            most_read: BTreeMap::new(),
            revoking: BTreeMap::new(),
            gained: BTreeMap::new(),
            seen: Life::default(),
            happenings: BTreeMap::new(),
            order: 0,
            in_flight: BTreeMap::new(),
            jobs: Vec::new(),
            sent: BTreeMap::new(),
            delivered: BTreeMap::new(),
            is_clean: true,
            last_commit: CommitOutcome::Done,
            failed_before_last: 0,
            failed_in_a_row: 0,
            totals: Totals::default(),
            faults: Vec::new(),
            actions: None,
        };
        run.assign_all();
        run
    }

    /// Runs the schedule and returns every action that the engine asked for, with the time since its beginning.
    pub fn actions(seed: u64) -> Vec<String> {
        let mut run = Run { actions: Some(Vec::new()), ..Run::new(seed) };
        // Faults are for the test that looks for them.
        let _ = run.finish();
        run.actions.take().unwrap_or_default()
    }

    /// Runs the schedule, then ends all faults and lets the rest be delivered.
    pub fn finish(&mut self) -> Result<Totals, String> {
        for _ in 0..self.random.below(400) + 100 {
            self.play();
            self.check()?;
        }
        (self.fault_percent, self.is_well) = (0, true);
        self.deliver_rest()
    }

    /// Lets one random thing happen: new events, reads, time that passes, or a mishap.
    fn play(&mut self) {
        match self.random.below(100) {
            0..25 => self.produce_some(),
            25..50 => self.feed(),
            50..91 => self.step(),
            92..94 if !self.is_settled => self.revoke_some(),
            94..96 => self.assign_all(),
            96 if !self.is_settled && self.random.chance(50) => self.crash(),
            97 if !self.is_settled && self.random.chance(40) => self.drain_and_restart(),
            98 => self.advance(Duration::from_secs(self.random.0 % 100)),
            91 if !self.is_settled => self.overtake(),
            99 if !self.is_settled && self.random.chance(50) => self.cut(),
            // The wall clock is set back, or forward by what clock skew may be.
            _ if self.has_steady_clock => {}
            _ => self.wall_ms += self.random.pick(&[-3_600_000, -5_000, 2_000]),
        }
    }

    /// Adds a few events to the log, or none.
    fn produce_some(&mut self) {
        for _ in 0..self.random.below(8) {
            let (partitions, users, odd) = (self.n_partitions, self.n_users, self.odd_percent);
            let odd = Odd {
                percent: odd,
                // Where a few bad rows fill twice the buffer, nothing shows whose fault it is.
                faulty: self.policy.buffer_bytes > 100_000,
                repeats: self.is_settled,
                miskeyed: self.is_miskeyed,
            };
            self.log.produce(&mut self.random, partitions, users, odd, self.wall_ms);
        }
    }

    /// Goes on without mishaps until everything is delivered, and returns the verdict.
    fn deliver_rest(&mut self) -> Result<Totals, String> {
        let well_since = self.now;
        let mut next_witness = well_since;
        for turn in 0..20_000 {
            if self.is_over() {
                self.totals.slowest = self.now - well_since;
                if self.totals.slowest > LONGEST {
                    return Err(format!("the rest took {:?} once all was well", self.totals.slowest));
                }
                return self.verdict();
            }
            // The results of other users' rows show a row that makes every request fail, or a lone suspect. In the end the
            // last of those has to have its end, too.
            if self.now >= next_witness && self.now < well_since + Duration::from_secs(7200) {
                next_witness = self.now + Duration::from_secs(10);
                let id = PartitionId { topic: 0, partition: 0 };
                self.log.produce_plain(id, &format!("witness{}", turn % 3), self.wall_ms);
            }
            if !self.revoking.is_empty() || self.readers.len() < self.n_partitions as usize {
                self.assign_all();
            }
            // A reader does not wait while there are records.
            while !self.has_read_all() {
                self.feed();
            }
            self.step();
            self.check()?;
        }
        Err(format!("stands still in {:?}: {:?}", self.engine.state(self.now), self.engine.snapshot(self.clock())))
    }

    fn clock(&self) -> Now {
        Now { at: self.now, wall_ms: self.wall_ms }
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        self.wall_ms += by.as_millis() as i64;
    }

    fn ids(&self) -> Vec<PartitionId> {
        (0..self.n_partitions).map(|partition| PartitionId { topic: 0, partition: partition as i32 }).collect()
    }

    fn has_read_all(&self) -> bool {
        self.readers.iter().all(|(id, (read, paused))| *paused || *read == self.log.end(*id))
    }

    fn feed(&mut self) {
        self.feed_all(false);
    }

    /// Feeds also partitions that the engine has paused.
    fn feed_what_was_read(&mut self) {
        self.feed_all(true);
    }

    fn feed_all(&mut self, also_paused: bool) {
        for id in self.ids() {
            let Some((position, paused)) = self.readers.get(&id).copied() else { continue };
            if paused && !also_paused {
                continue;
            }
            let n = self.random.below(6) as i64;
            for offset in position.0..(position.0 + n).min(self.log.end(id).0) {
                self.readers.insert(id, (Position(offset + 1), paused));
                if let Some(record) = self.log.record(id, offset) {
                    self.engine.on_record(&record, self.now);
                }
            }
            let position = self.readers[&id].0;
            let most = self.most_read.entry(id).or_insert(position);
            *most = position.max(*most);
            if position == self.log.end(id) {
                self.engine.on_end(id, position, self.now);
            }
        }
        self.pump();
    }

    /// Moves time to whatever comes next and lets it happen.
    fn step(&mut self) {
        self.pump();
        let next = self.happenings.keys().next().map(|(at, _)| *at);
        let target = [next, self.engine.next_wakeup()].into_iter().flatten().min();
        let target = target.unwrap_or(self.now + Duration::from_millis(50)).max(self.now);
        self.advance(target - self.now + Duration::from_micros(self.random.0 % 1000));
        while let Some(entry) = self.happenings.first_entry()
            && entry.key().0 <= self.now
        {
            let happening = entry.remove();
            self.happen(happening);
        }
        self.end_late_revokes();
        self.pump();
    }
}

/// Draws the provider's way to report bad rows, and the lane's policy.
fn draw_policy(random: &mut Random) -> (Style, Policy) {
    let max_rows = random.pick(&[1, 3, 10]);
    let style = random.pick(&[Style::Suspects, Style::PerRow, Style::Jobs]);
    let policy = Policy {
        calls_per_minute: None,
        mapping: Mapping::identity(Rules {
            max_bytes: 4096,
            use_anonymous_id: false,
            account_trait: None,
            refuse_user_ids: Vec::new(),
        }),
        names: vec!["sim".to_owned()],
        rows_per_minute: random.pick(&[Some(60), Some(240), Some(1200), Some(1200), None]),
        batch: BatchPolicy {
            max_rows,
            max_bytes: random.pick(&[400, 100_000]),
            overhead_bytes: 10,
            overhead_bytes_per_row: 1,
            single_below: random.pick(&[0, 0, 2]),
            linger: random.millis(0, 1000),
        },
        max_in_flight: if style == Style::Jobs { 1 } else { random.pick(&[1, 2, 4, 16]) },
        request_timeout: Duration::from_secs(3),
        retry: RetryPolicy { initial: Duration::from_millis(500), max: Duration::from_secs(20), max_attempts: 6 },
        buffer_bytes: random.pick(&[4_000, 1_000_000]),
        guard: GuardPolicy { ratio: 0.8, window: 20, rows_per_minute: 60 },
        message_id_window: 1000,
        commit_interval: random.millis(200, 1000),
        session_timeout: Duration::from_secs(45),
        seed: random.next(),
    };
    (style, policy)
}
