//! The states a lane can be in, exactly one at a time.

/// The state of a lane; exported, shown and logged on change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LaneState {
    /// No partition assigned yet, or the first wait of a gained share.
    Starting,
    /// Reads again what a former owner may have sent, up to the fence.
    Replaying,
    Idle,
    Delivering,
    /// The budget is used up: rows wait for the limit.
    Limited,
    /// The provider said wait.
    Throttled,
    /// The provider is unavailable.
    BackingOff,
    /// Token, address or account are wrong: one row as a probe now and then.
    AccountFault,
    /// Most of what ends ends as dead letters: a trickle goes on.
    Guarded,
    /// A job runs at the provider, this lane's or another client's.
    WaitingForJob,
    /// The dead-letter topic cannot be written.
    DeadLetterBlocked,
    /// The group has not confirmed our membership within the session timeout.
    MembershipStale,
    /// Intake is paused because the buffer is full, and nothing else explains it.
    BufferFull,
    Draining,
    /// The provider answers with successes that cannot be read: one row at a time.
    UnreadableSuccess,
    /// No broker answers.
    KafkaDown,
    /// Kafka refuses this lane's group; the lane waits and tries again.
    KafkaRefused,
}

impl LaneState {
    pub const ALL: [LaneState; 17] = [
        LaneState::Starting,
        LaneState::Replaying,
        LaneState::Idle,
        LaneState::Delivering,
        LaneState::Limited,
        LaneState::Throttled,
        LaneState::BackingOff,
        LaneState::AccountFault,
        LaneState::Guarded,
        LaneState::WaitingForJob,
        LaneState::DeadLetterBlocked,
        LaneState::MembershipStale,
        LaneState::BufferFull,
        LaneState::Draining,
        LaneState::UnreadableSuccess,
        LaneState::KafkaDown,
        LaneState::KafkaRefused,
    ];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            LaneState::Starting => "starting",
            LaneState::Replaying => "replaying",
            LaneState::Idle => "idle",
            LaneState::Delivering => "delivering",
            LaneState::Limited => "limited",
            LaneState::Throttled => "throttled",
            LaneState::BackingOff => "backing_off",
            LaneState::AccountFault => "account_fault",
            LaneState::Guarded => "guarded",
            LaneState::WaitingForJob => "waiting_for_job",
            LaneState::DeadLetterBlocked => "dead_letter_blocked",
            LaneState::MembershipStale => "membership_stale",
            LaneState::BufferFull => "buffer_full",
            LaneState::Draining => "draining",
            LaneState::UnreadableSuccess => "unreadable_success",
            LaneState::KafkaDown => "kafka_down",
            LaneState::KafkaRefused => "kafka_refused",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_a_label_of_its_own() {
        let labels: std::collections::BTreeSet<&str> = LaneState::ALL.map(LaneState::label).into();
        assert_eq!(labels.len(), LaneState::ALL.len());
        assert!(
            labels.iter().all(|label| label.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !label.is_empty())
        );
    }
}
