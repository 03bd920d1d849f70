//! The metrics that a running worker exports on `/metrics`, with their labels and values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use sluicegate::app::App;
use sluicegate::config::Config;
use sluicegate::kafka::EventProducer;
use sluicegate::testbed::broker::EmbeddedBroker;
use sluicegate::testbed::simulator::{Kind, Simulator, SimulatorSettings};
use tokio::sync::watch;

use crate::promql::{Matching, Query};

/// The longest wait for the lag of all lanes to appear, which takes about a second.
const DEADLINE: Duration = Duration::from_secs(60);

/// The labels that Prometheus or Kubernetes adds to every series.
const TARGET_LABELS: [&str; 3] = ["namespace", "job", "instance"];

/// The series that Prometheus makes of each scrape.
const SCRAPE_METRICS: [&str; 1] = ["up"];

/// Maps each metric's name to its labels, and each label to its values.
pub struct Exported(pub BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

/// The metrics of a worker with three lanes and one event in its topic.
pub static EXPORTED: LazyLock<Exported> = LazyLock::new(|| {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let text = runtime.block_on(scrape_a_worker());
    Exported::read(&text)
});

async fn scrape_a_worker() -> String {
    let letters = Kind::ALL.map(|kind| format!("identify.dlq.{}", kind.name()));
    let mut topics = vec![("identify", 1)];
    topics.extend(letters.iter().map(|topic| (topic.as_str(), 1)));
    let broker = EmbeddedBroker::cluster(1, &topics).expect("an embedded broker");
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let simulator = Simulator::start(SimulatorSettings::default(), any_port).await.expect("a free port");
    let lanes = Kind::ALL.map(|kind| {
        let (name, url) = (kind.name(), simulator.base_url());
        format!(
            "  {name}: {{ type: {name}, base_url: \"{url}\", token: demo-{name}-token, batch: {{ linger: 0s }} }}\n"
        )
    });
    let brokers = broker.bootstrap_servers();
    let yaml = format!(
        "kafka: {{ brokers: \"{brokers}\", topics: [identify], group: g }}\nhttp: {{ listen: 127.0.0.1:0 }}\ndestinations:\n{}",
        lanes.concat()
    );
    let config = Config::from_yaml(&yaml).unwrap_or_else(|problems| panic!("{problems}"));
    let app = App::start(&config).await.unwrap_or_else(|error| panic!("{error}"));
    let url = format!("http://{}/metrics", app.address().expect("a bound address"));
    let (stop, stopped) = watch::channel(false);
    let running = tokio::spawn(app.run(stopped));

    let producer = EventProducer::new(brokers, &BTreeMap::new(), "identify").expect("a producer");
    let event = br#"{"type":"identify","userId":"u","messageId":"m","traits":{"company":{"id":"acme"}}}"#;
    producer.send(b"u", Some(event)).expect("room for an event");
    producer.finish().expect("the broker takes it");

    let deadline = Instant::now() + DEADLINE;
    let text = loop {
        let text = reqwest::get(&url).await.expect("an answer").text().await.expect("text");
        // The worker exports the lag of a partition from the first assignment on.
        if text.matches("sluicegate_kafka_lag{").count() == Kind::ALL.len() {
            break text;
        }
        assert!(Instant::now() < deadline, "no lag within {DEADLINE:?}:\n{text}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    stop.send_replace(true);
    running.await.expect("no panic").unwrap_or_else(|error| panic!("{error}"));
    text
}

impl Exported {
    fn read(text: &str) -> Exported {
        let mut metrics: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, _) = line.rsplit_once(' ').expect("a value");
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let known = metrics.entry(name.to_owned()).or_default();
            for label in labels.trim_end_matches('}').split(',').filter(|label| !label.is_empty()) {
                let (label, value) = label.split_once("=\"").expect("a label and its value");
                known.entry(label.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
            }
        }
        Exported(metrics)
    }

    /// Returns the labels that the series of this metric have in Prometheus, or `None` if there is no such metric.
    /// Recorded series (`sluicegate:*`) are sums over replicas, so they have no `instance`.
    pub fn labels(&self, metric: &str) -> Option<BTreeSet<String>> {
        let own: Vec<&str> = match metric {
            _ if metric.starts_with("sluicegate:") => return Some(labels(&["namespace", "job", "destination"])),
            _ if SCRAPE_METRICS.contains(&metric) => Vec::new(),
            _ => self.0.get(metric)?.keys().map(String::as_str).collect(),
        };
        Some(own.into_iter().chain(TARGET_LABELS).map(str::to_owned).collect())
    }

    /// Returns the problems of a query: the metrics, labels and values in it that the worker does not export.
    pub fn unknown(&self, query: &Query) -> Vec<String> {
        let mut problems = Vec::new();
        let mut known: BTreeSet<String> = labels(&TARGET_LABELS);
        for selector in &query.selectors {
            let Some(of_metric) = self.labels(&selector.metric) else {
                problems.push(format!("no metric {}", selector.metric));
                continue;
            };
            for matcher in &selector.matchers {
                if !of_metric.contains(&matcher.label) {
                    problems.push(format!("{} has no label {}", selector.metric, matcher.label));
                } else if let Some(values) = self.0.get(&selector.metric).and_then(|known| known.get(&matcher.label)) {
                    let missing = constants(matcher).into_iter().filter(|value| !values.contains(*value));
                    problems
                        .extend(missing.map(|value| format!("{} has no {}={value}", selector.metric, matcher.label)));
                }
            }
            known.extend(of_metric);
        }
        let missing = query.grouping.iter().filter(|label| !known.contains(*label));
        problems.extend(missing.map(|label| format!("grouped by {label}, which no metric of it has")));
        problems
    }
}

pub fn labels(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Returns the values that a matcher names, without the dashboard's variables.
fn constants(matcher: &Matching) -> Vec<&str> {
    matcher.value.split('|').filter(|value| !value.contains('$')).collect()
}

#[test]
fn a_query_of_what_the_worker_does_not_export_is_found_out() {
    let unknown = |text| EXPORTED.unknown(&Query::read(text).expect("a query"));
    assert_eq!(unknown("sum by (destination) (sluicegate_pending_rows)"), Vec::<String>::new());
    assert_eq!(unknown(r#"sluicegate_lane_state{state=~"idle|delivering"}"#), Vec::<String>::new());
    assert_eq!(unknown("sluicegate_pending_cows"), ["no metric sluicegate_pending_cows"]);
    assert_eq!(unknown(r#"sluicegate_pending_rows{topic="a"}"#), ["sluicegate_pending_rows has no label topic"]);
    assert_eq!(
        unknown(r#"sluicegate_lane_state{state=~"idle|asleep"}"#),
        ["sluicegate_lane_state has no state=asleep"]
    );
    assert_eq!(unknown("sum by (topic) (sluicegate_kafka_lag)"), ["grouped by topic, which no metric of it has"]);
}
