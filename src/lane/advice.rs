//! Advises an operator on a lane's state: how loudly the log reports it, and which setting or place to look at.

use crate::config::{Config, Destination};
use crate::engine::LaneState;
use crate::verdict::{AccountFault, Answer, Outage, Verdict};

/// The settings that a remedy may point to, under the names that this destination has for them.
pub(super) struct Advice {
    id: String,
    vendor: &'static str,
    base_url: String,
    /// The setting that holds the token, and the file or the variable to write to.
    token: String,
    dead_letter_topics: String,
}

/// The complaint of the last answer that was no success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    Fault(AccountFault),
    Outage(Outage),
}

impl Complaint {
    pub fn of(answer: &Answer) -> Option<Complaint> {
        match answer {
            Answer::All(Verdict::AccountFault(fault)) => Some(Complaint::Fault(*fault)),
            Answer::All(Verdict::Unavailable(outage)) => Some(Complaint::Outage(*outage)),
            _ => None,
        }
    }
}

impl Advice {
    pub fn new(config: &Config, id: &str, destination: &Destination) -> Advice {
        let settings = &destination.settings;
        let token = match &settings.token_file {
            Some(file) => format!("destinations.{id}.token_file ({}), which is read again by itself", file.display()),
            None => format!(
                "destinations.{id}.token (or SLUICEGATE__DESTINATIONS__{}__TOKEN) and restart",
                id.to_ascii_uppercase()
            ),
        };
        let topics = config.kafka.topics.iter().map(|topic| settings.dead_letter.topic_of(topic, id));
        let dead_letter_topics = topics.collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>();
        Advice {
            id: id.to_owned(),
            vendor: destination.provider.type_name(),
            base_url: destination.provider.base_url().unwrap_or_default().to_owned(),
            token,
            dead_letter_topics: dead_letter_topics.join(", "),
        }
    }

    /// Returns the remedy for a state, or `None` if there is nothing to do.
    pub fn remedy(&self, state: LaneState, complaint: Option<Complaint>) -> Option<String> {
        let (id, vendor) = (&self.id, self.vendor);
        let text = match (state, complaint) {
            (LaneState::AccountFault, Some(Complaint::Fault(fault))) => self.account(fault),
            (LaneState::AccountFault, _) => self.account(AccountFault::Blocked),
            (LaneState::BackingOff, Some(Complaint::Outage(outage))) => self.outage(outage),
            (LaneState::BackingOff, _) => format!("wait; if it lasts, look at the status page of {vendor}"),
            (LaneState::UnreadableSuccess, _) => self.outage(Outage::UnreadableSuccess),
            (LaneState::Throttled, _) => format!(
                "wait; if it is frequent, something else uses the account: lower destinations.{id}.limit.rows_per_minute"
            ),
            (LaneState::Guarded, _) => format!(
                "read why rows are refused, in the headers of {}, and correct the producer or the destination's settings",
                self.dead_letter_topics
            ),
            (LaneState::DeadLetterBlocked, _) => format!(
                "create the topic {} or let the worker write to it; sluicegate check --online says how",
                self.dead_letter_topics
            ),
            (LaneState::MembershipStale, _) => {
                "look whether the brokers of kafka.brokers answer; the lane goes on when the group confirms it"
                    .to_owned()
            }
            (LaneState::BufferFull, _) => format!(
                "look at last_error in the status: one old row holds the position; destinations.{id}.buffer.max_bytes is the bound"
            ),
            (LaneState::KafkaDown, _) => {
                "look at the brokers of kafka.brokers and at the network; the lane goes on by itself".to_owned()
            }
            (LaneState::KafkaRefused, _) => format!(
                "give the group of {id} READ on its topics, or correct what the cause names; the lane tries again by itself"
            ),
            _ => return None,
        };
        Some(text)
    }

    fn account(&self, fault: AccountFault) -> String {
        let Advice { id, vendor, base_url, token, .. } = self;
        match fault {
            AccountFault::Unauthorized => format!("{vendor} refuses the token: write a valid one to {token}"),
            AccountFault::Forbidden => format!(
                "the token may not write users at {vendor}: give it that right or write another to {token}; or correct \
                 destinations.{id}.base_url ({base_url})"
            ),
            AccountFault::WrongAddress => {
                format!("{vendor} is not at this address: correct destinations.{id}.base_url ({base_url})")
            }
            AccountFault::Redirected => format!(
                "the address sends requests elsewhere, where no token follows: write the final https:// address to \
                 destinations.{id}.base_url ({base_url})"
            ),
            AccountFault::Blocked => {
                format!("{vendor} refuses every row: allow messages of the type user in the account's settings there")
            }
        }
    }

    fn outage(&self, outage: Outage) -> String {
        let Advice { id, vendor, base_url, .. } = self;
        match outage {
            Outage::Server | Outage::JobLost => format!("wait; if it lasts, look at the status page of {vendor}"),
            Outage::Timeout => {
                format!("wait; if {vendor} is only slow, raise destinations.{id}.request.timeout")
            }
            Outage::Connect | Outage::Reset => format!(
                "see that this machine may connect to {base_url} (destinations.{id}.base_url): firewall, network policy, proxy"
            ),
            Outage::Dns => {
                format!(
                    "see that this machine finds the host of {base_url} (destinations.{id}.base_url), or correct it"
                )
            }
            Outage::Tls => format!(
                "look at the certificate of {base_url}; a company's own authority goes into destinations.{id}.tls.ca_file"
            ),
            Outage::Protocol | Outage::Edge => format!(
                "see what answers at {base_url} (destinations.{id}.base_url) in place of {vendor}: a proxy, a firewall, a login page"
            ),
            Outage::UnreadableSuccess => format!(
                "look for a proxy that rewrites replies of {base_url} (destinations.{id}.base_url): the rows may have been taken"
            ),
        }
    }
}

/// Returns the level at which the log reports a lane's state.
pub(super) fn level(state: LaneState) -> tracing::Level {
    match state {
        // An operator has to act.
        LaneState::AccountFault
        | LaneState::Guarded
        | LaneState::DeadLetterBlocked
        | LaneState::UnreadableSuccess
        | LaneState::KafkaRefused => tracing::Level::ERROR,
        // These states end by themselves in most cases.
        LaneState::Throttled
        | LaneState::BackingOff
        | LaneState::MembershipStale
        | LaneState::BufferFull
        | LaneState::KafkaDown => tracing::Level::WARN,
        LaneState::Starting | LaneState::Draining => tracing::Level::INFO,
        // These states alternate with every request.
        LaneState::Idle
        | LaneState::Delivering
        | LaneState::Limited
        | LaneState::WaitingForJob
        | LaneState::Replaying => tracing::Level::DEBUG,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(token: &str) -> Advice {
        let yaml =
            format!("{{destinations: {{crm: {{type: vitally, base_url: 'https://acme.api.vitally.io', {token}}}}}}}");
        let config = Config::from_yaml(&yaml).expect("a valid configuration");
        let destination = &config.destinations["crm"];
        Advice::new(&config, "crm", destination)
    }

    #[test]
    fn a_wrong_token_is_an_error_that_names_the_setting_and_the_file_or_the_variable() {
        let wrong = Some(Complaint::Fault(AccountFault::Unauthorized));
        let remedy = |token| advice(token).remedy(LaneState::AccountFault, wrong).expect("a remedy");
        let file = remedy("token_file: /run/secrets/crm");
        assert!(file.contains("destinations.crm.token_file (/run/secrets/crm)"), "{file}");
        let variable = remedy("token: MARKED");
        assert!(
            variable.contains("SLUICEGATE__DESTINATIONS__CRM__TOKEN") && !variable.contains("MARKED"),
            "{variable}"
        );
        assert_eq!(level(LaneState::AccountFault), tracing::Level::ERROR);
    }

    #[test]
    fn every_state_that_is_shown_as_trouble_has_a_remedy_and_no_other() {
        for state in LaneState::ALL {
            let is_trouble = level(state) <= tracing::Level::WARN;
            assert_eq!(advice("token: t").remedy(state, None).is_some(), is_trouble, "{state:?}");
        }
    }

    #[test]
    fn every_fault_and_every_outage_points_to_a_place() {
        let advice = advice("token: t");
        let faults = AccountFault::ALL.map(|fault| advice.account(fault));
        let outages = Outage::ALL.map(|outage| advice.outage(outage));
        for text in faults.iter().chain(&outages) {
            assert!(text.contains("destinations.crm.") || text.contains("vitally"), "{text}");
        }
        let complaint = Some(Complaint::Outage(Outage::Tls));
        let tls = advice.remedy(LaneState::BackingOff, complaint).expect("a remedy");
        assert!(tls.contains("destinations.crm.tls.ca_file"), "{tls}");
    }
}
