//! The kinds of series that a lane exports, and their registration.

use std::collections::BTreeSet;
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// A counter that mirrors a total kept elsewhere. One place either sets it or adds to it, never both.
pub struct Total(IntCounter);

impl Total {
    /// Brings the counter up to this total. A lower total changes nothing.
    pub fn set(&self, total: u64) {
        self.0.inc_by(total.saturating_sub(self.0.get()));
    }

    pub fn add(&self, n: u64) {
        self.0.inc_by(n);
    }
}

/// A `Total` in seconds.
pub struct TotalSeconds(Counter);

impl TotalSeconds {
    /// Brings the counter up to this total. A lower total changes nothing.
    pub fn set(&self, total: Duration) {
        let missing = total.as_secs_f64() - self.0.get();
        if missing > 0.0 {
            self.0.inc_by(missing);
        }
    }
}

/// One `Total` for each value of a label.
///
/// The values come from a closed set and are 0 from the start. A value that the set lacks appears when it is first counted.
pub struct Totals(IntCounterVec);

impl Totals {
    pub fn set(&self, label: &str, total: u64) {
        Total(self.0.with_label_values(&[label])).set(total);
    }

    pub fn add(&self, label: &str, n: u64) {
        self.0.with_label_values(&[label]).inc_by(n);
    }
}

/// A state out of a closed set: 1 for the present state, 0 for the others.
pub struct Choice {
    series: IntGaugeVec,
    labels: &'static [&'static str],
}

impl Choice {
    pub fn set(&self, chosen: &str) {
        for label in self.labels {
            self.series.with_label_values(&[label]).set(i64::from(*label == chosen));
        }
    }
}

/// A number of records per partition that the lane owns. Other partitions have no series.
pub struct Lag {
    series: IntGaugeVec,
    shown: BTreeSet<String>,
}

impl Lag {
    /// Shows these partitions (by `partition_label`) and no others.
    pub fn set(&mut self, lags: &[(String, u64)]) {
        let owned: BTreeSet<String> = lags.iter().map(|(partition, _)| partition.clone()).collect();
        for gone in self.shown.difference(&owned) {
            // It fails only if there is nothing to remove.
            let _ = self.series.remove_label_values(&[gone]);
        }
        for (partition, lag) in lags {
            self.series.with_label_values(&[partition]).set(i64::try_from(*lag).unwrap_or(i64::MAX));
        }
        self.shown = owned;
    }
}

/// Registers metrics of one destination. `destination` is a constant label, so that each metric is defined in one place.
#[derive(Clone, Copy)]
pub(super) struct Family<'a> {
    pub registry: &'a Registry,
    pub destination: &'a str,
}

/// The reason why registering cannot fail. Names and labels are constants of `metrics` and destinations are lower_snake, so a
/// test meets every way to fail.
pub(super) const VALID: &str = "names and labels are valid";

pub(super) fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    registry.register(Box::new(collector.clone())).expect("each metric is registered once per destination");
    collector
}

impl Family<'_> {
    pub fn total(self, name: &str, help: &str) -> Total {
        Total(register(self.registry, IntCounter::with_opts(self.opts(name, help)).expect(VALID)))
    }

    pub fn seconds(self, name: &str, help: &str) -> TotalSeconds {
        TotalSeconds(register(self.registry, Counter::with_opts(self.opts(name, help)).expect(VALID)))
    }

    pub fn totals(self, (name, help): (&str, &str), (label, values): (&str, &[&str])) -> Totals {
        let series = register(self.registry, IntCounterVec::new(self.opts(name, help), &[label]).expect(VALID));
        for value in values {
            series.with_label_values(&[value]);
        }
        Totals(series)
    }

    pub fn count(self, name: &str, help: &str) -> IntGauge {
        register(self.registry, IntGauge::with_opts(self.opts(name, help)).expect(VALID))
    }

    pub fn gauge(self, name: &str, help: &str) -> Gauge {
        register(self.registry, Gauge::with_opts(self.opts(name, help)).expect(VALID))
    }

    pub fn histogram(self, name: &str, help: &str, buckets: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(self.opts(name, help)).buckets(buckets.to_vec());
        register(self.registry, Histogram::with_opts(opts).expect(VALID))
    }

    /// Registers a choice that starts with the first of `values`.
    pub fn choice(self, (name, help): (&str, &str), label: &str, values: &'static [&'static str]) -> Choice {
        let series = register(self.registry, IntGaugeVec::new(self.opts(name, help), &[label]).expect(VALID));
        let choice = Choice { series, labels: values };
        choice.set(values.first().copied().unwrap_or_default());
        choice
    }

    pub fn lag(self, name: &str, help: &str) -> Lag {
        let series = register(self.registry, IntGaugeVec::new(self.opts(name, help), &["partition"]).expect(VALID));
        Lag { series, shown: BTreeSet::new() }
    }

    fn opts(self, name: &str, help: &str) -> Opts {
        Opts::new(format!("sluicegate_{name}"), help).const_label("destination", self.destination)
    }
}
