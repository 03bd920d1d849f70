//! The parts of a PromQL expression: selectors with the functions around them, grouping labels, and labels of the result.

use std::collections::BTreeSet;
use std::time::Duration;

use promql_parser::label::{MatchOp, Matchers};
use promql_parser::parser::{Expr, VectorSelector, parse};

use crate::exported::{Exported, labels};

/// The length that replaces `$__rate_interval` for the parser, since PromQL allows no `$` in brackets. No query uses
/// this length itself.
pub const RATE_INTERVAL: Duration = Duration::from_secs(301);

/// The length that replaces `$__range`, for the same reason.
pub const RANGE: Duration = Duration::from_secs(302);

/// One parsed expression.
pub struct Query {
    pub selectors: Vec<Selector>,
    /// The labels of every `by` and `on`.
    pub grouping: BTreeSet<String>,
    expr: Expr,
}

/// One metric in an expression.
pub struct Selector {
    pub metric: String,
    pub matchers: Vec<Matching>,
    /// The function directly around a range, and the range.
    pub range: Option<(String, Duration)>,
}

/// A label and the text that it is compared with.
pub struct Matching {
    pub label: String,
    pub value: String,
    pub is_regex: bool,
}

impl Query {
    /// Parses an expression of a dashboard or a rule.
    ///
    /// # Errors
    /// The parser's message.
    pub fn read(text: &str) -> Result<Query, String> {
        let seconds = |length: Duration| format!("{}s", length.as_secs());
        let text = text.replace("$__rate_interval", &seconds(RATE_INTERVAL)).replace("$__range", &seconds(RANGE));
        let expr = parse(&text)?;
        let mut query = Query { selectors: Vec::new(), grouping: BTreeSet::new(), expr: expr.clone() };
        query.walk(&expr, "");
        Ok(query)
    }

    fn walk(&mut self, expr: &Expr, function: &str) {
        match expr {
            Expr::Aggregate(aggregate) => {
                let grouping = aggregate.modifier.iter().flat_map(|modifier| modifier.labels().labels.clone());
                self.grouping.extend(grouping);
                self.walk(&aggregate.expr, "");
            }
            Expr::Binary(binary) => {
                let matching = binary.modifier.iter().filter_map(|modifier| modifier.matching.as_ref());
                self.grouping.extend(matching.flat_map(|matching| matching.labels().labels.clone()));
                self.walk(&binary.lhs, "");
                self.walk(&binary.rhs, "");
            }
            Expr::Unary(unary) => self.walk(&unary.expr, ""),
            Expr::Paren(paren) => self.walk(&paren.expr, function),
            Expr::Subquery(subquery) => self.walk(&subquery.expr, ""),
            Expr::Call(call) => call.args.args.iter().for_each(|arg| self.walk(arg, call.func.name)),
            Expr::VectorSelector(vector) => self.selectors.push(Selector::read(vector, None)),
            Expr::MatrixSelector(matrix) => {
                let range = Some((function.to_owned(), matrix.range));
                self.selectors.push(Selector::read(&matrix.vs, range));
            }
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => {}
        }
    }

    /// Returns the labels of the result's series, which legends and annotations may name.
    pub fn result_labels(&self, exported: &Exported) -> BTreeSet<String> {
        result_labels(&self.expr, exported).unwrap_or_default()
    }
}

impl Selector {
    fn read(vector: &VectorSelector, range: Option<(String, Duration)>) -> Selector {
        Selector { metric: vector.name.clone().unwrap_or_default(), matchers: read_matchers(&vector.matchers), range }
    }

    pub fn matches(&self, label: &str, value: &str) -> bool {
        self.matchers.iter().any(|matcher| matcher.label == label && matcher.value == value && matcher.is_regex)
    }
}

fn read_matchers(matchers: &Matchers) -> Vec<Matching> {
    let read = |matcher: &promql_parser::label::Matcher| Matching {
        label: matcher.name.clone(),
        value: matcher.value.clone(),
        is_regex: matches!(matcher.op, MatchOp::Re(_)),
    };
    matchers.matchers.iter().filter(|matcher| matcher.name != "__name__").map(read).collect()
}

/// Returns the labels of an expression's series, or `None` for a scalar.
fn result_labels(expr: &Expr, exported: &Exported) -> Option<BTreeSet<String>> {
    match expr {
        // topk and bottomk choose series and keep their labels.
        Expr::Aggregate(aggregate) if aggregate.param.is_some() => result_labels(&aggregate.expr, exported),
        Expr::Aggregate(aggregate) => {
            let by = aggregate.modifier.iter().flat_map(|modifier| modifier.labels().labels.clone());
            Some(by.collect())
        }
        Expr::Binary(binary) => result_labels(&binary.lhs, exported).or_else(|| result_labels(&binary.rhs, exported)),
        Expr::Unary(unary) => result_labels(&unary.expr, exported),
        Expr::Paren(paren) => result_labels(&paren.expr, exported),
        Expr::Subquery(subquery) => result_labels(&subquery.expr, exported),
        Expr::Call(call) if call.func.name == "absent" => Some(BTreeSet::new()),
        Expr::Call(call) => {
            let mut found = call.args.args.iter().filter_map(|arg| result_labels(arg, exported));
            found.next().map(|mut found| {
                if call.func.name == "histogram_quantile" {
                    found.remove("le");
                }
                found
            })
        }
        Expr::VectorSelector(vector) => vector.name.as_ref().and_then(|name| exported.labels(name)),
        Expr::MatrixSelector(matrix) => matrix.vs.name.as_ref().and_then(|name| exported.labels(name)),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => None,
    }
}

#[test]
fn the_labels_of_a_result_are_those_that_grouping_leaves() {
    let of = |text| Query::read(text).expect("a query").result_labels(&crate::exported::EXPORTED);
    assert_eq!(
        of("60 * sum by (destination) (rate(sluicegate_rows_sent_total[$__rate_interval]))"),
        labels(&["destination"])
    );
    assert_eq!(of("time() - max by (instance) (process_start_time_seconds)"), labels(&["instance"]));
    assert_eq!(
        of("histogram_quantile(0.9, sum by (le) (rate(sluicegate_delivery_latency_seconds_bucket[5m])))"),
        labels(&[])
    );
    assert_eq!(of("topk(3, sum by (destination) (sluicegate_kafka_lag))"), labels(&["destination"]));
    assert_eq!(of("up == 0"), labels(&["instance", "job", "namespace"]));
    assert_eq!(of("absent(sluicegate_build_info)"), labels(&[]));
}
