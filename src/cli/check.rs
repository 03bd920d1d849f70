//! `check`: reports what is wrong with the configuration and, on request, with the brokers, each with its remedy.

use std::collections::{BTreeMap, BTreeSet};

use super::{Exit, complain, refuse, say};
use crate::config::Config;
use crate::kafka::admin::{Finding, Standing, inspect, refusal};

/// Checks the files and, if `online`, the brokers that the configuration names. The configuration itself is already
/// valid.
pub(super) fn check(config: &Config, online: bool) -> Exit {
    let files = match config.check_files() {
        Ok(()) => Exit::Ok,
        Err(problems) => refuse(&problems),
    };
    for warning in config.warnings() {
        complain(&format!("warning: {warning}\n"));
    }
    // A missing password file is already reported. Without it the brokers would only refuse the client.
    let Ok(properties) = config.kafka_properties() else { return files };
    if let Some(finding) = refusal(&properties) {
        say(&line(&finding));
        return Exit::Config;
    }
    if files == Exit::Ok {
        say(&format!("the configuration is valid ({} destinations)\n", config.enabled().count()));
    }
    if !online {
        return files;
    }
    let kafka = &config.kafka;
    let findings = inspect(&kafka.brokers, &properties, &kafka.topics, &dead_letter_topics(config));
    for finding in &findings {
        say(&line(finding));
    }
    worse(files, &findings)
}

/// Returns the dead-letter topics of all enabled destinations, each with the topics whose dead letters it takes.
fn dead_letter_topics(config: &Config) -> BTreeMap<String, BTreeSet<String>> {
    let mut topics: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (id, destination) in config.enabled() {
        for source in &config.kafka.topics {
            let topic = destination.settings.dead_letter.topic_of(source, id);
            topics.entry(topic).or_default().insert(source.clone());
        }
    }
    topics
}

fn line(finding: &Finding) -> String {
    let mark = if finding.standing == Standing::Good { "ok   " } else { "WRONG" };
    let remedy = finding.remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
    format!("{mark} {}: {}{remedy}\n", finding.subject, finding.text)
}

/// Returns the worse exit code: a problem that only an operator can solve comes before one that may pass.
fn worse(files: Exit, findings: &[Finding]) -> Exit {
    let any = |standing| findings.iter().any(|finding| finding.standing == standing);
    if files != Exit::Ok || any(Standing::Wrong) {
        Exit::Config
    } else if any(Standing::Unreachable) {
        Exit::Unavailable
    } else {
        Exit::Ok
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(standing: Standing) -> Finding {
        Finding { standing, subject: "topic x".to_owned(), text: "is so".to_owned(), remedy: Some("do it".to_owned()) }
    }

    #[test]
    fn a_shared_dead_letter_topic_is_looked_at_once_and_knows_all_its_sources() {
        let yaml = "{kafka: {topics: [a, b]}, destinations: {\
            d: {type: userpilot, token: t0, dead_letter: {topic: dlq}}, \
            e: {type: userpilot, token: t0, dead_letter: {topic: dlq}}, \
            off: {type: userpilot, enabled: false}}}";
        let topics = dead_letter_topics(&Config::from_yaml(yaml).expect("valid"));
        assert_eq!(topics, BTreeMap::from([("dlq".to_owned(), ["a".to_owned(), "b".to_owned()].into())]));
    }

    #[test]
    fn what_an_operator_has_to_change_comes_before_what_may_pass() {
        let good = finding(Standing::Good);
        let wrong = finding(Standing::Wrong);
        let unreachable = finding(Standing::Unreachable);
        assert_eq!(worse(Exit::Ok, std::slice::from_ref(&good)), Exit::Ok);
        assert_eq!(worse(Exit::Ok, &[good.clone(), unreachable.clone()]), Exit::Unavailable);
        assert_eq!(worse(Exit::Ok, &[unreachable, wrong]), Exit::Config);
        assert_eq!(worse(Exit::Config, &[good]), Exit::Config);
    }

    #[test]
    fn a_finding_is_one_line_with_its_remedy() {
        assert_eq!(line(&finding(Standing::Wrong)), "WRONG topic x: is so; do it\n");
    }
}
