//! The imports that each module may have, and the style rules that no lint checks, read from the sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The most lines of a file, tests included.
const LONGEST: usize = 600;

/// The parts of this crate that each module at the top of the tree may name. `a::b` allows only what is under that
/// path.
///
/// Pure modules never import IO. Only `lane` and `app` see both sides.
const ALLOWED: &[(&str, &[&str])] = &[
    // Vocabulary.
    ("record", &[]),
    ("units", &[]),
    ("verdict", &[]),
    ("event", &["units"]),
    // Pure modules.
    ("mapping", &["event"]),
    ("engine", &["event", "mapping", "record", "verdict"]),
    ("providers", &["event", "verdict"]),
    // Edges. `metrics` takes the closed sets of its labels from the types that it counts.
    ("kafka", &["record", "units"]),
    ("sender", &["providers::Reply", "providers::headers", "verdict"]),
    ("metrics", &["event", "record", "verdict"]),
    ("ops", &["metrics"]),
    ("log", &[]),
    // Joins. Components never import `config`, which composes their settings.
    (
        "config",
        &["event", "kafka::settings", "log", "ops::settings", "providers", "sender::tls", "sender::token", "units"],
    ),
    (
        "lane",
        &[
            "config",
            "engine",
            "kafka",
            "mapping",
            "metrics",
            "ops",
            "providers",
            "record",
            "sender",
            "units",
            "verdict",
        ],
    ),
    ("app", &["config", "lane", "metrics", "ops"]),
    // These judge the worker by its effects outside, never by `engine`, `providers` or the reading of events.
    ("testbed", &["event::settings", "kafka"]),
    ("demo", &["app", "config", "kafka", "log", "metrics", "ops", "testbed", "units"]),
    ("cli", &["app", "config", "demo", "kafka", "lane", "log", "ops", "testbed", "units"]),
    ("main", &[]),
    ("lib", &[]),
];

/// The names that pure modules may not contain, in addition to clippy's `disallowed-methods`.
const IMPURE: &[&str] = &[
    "tokio::",
    "rdkafka::",
    "reqwest::",
    "axum::",
    "tracing::",
    "std::env",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::thread",
    "SystemTime::now",
    "Instant::now",
    "println!",
    "HashMap<",
];

/// The files of test support, which read fixtures and the first moment of a virtual clock.
const TEST_SUPPORT: &[&str] = &["engine/sim/", "engine/testing.rs", "providers/fixtures.rs"];

pub(super) struct Source {
    /// The path below `src/`, with slashes.
    pub path: String,
    pub text: String,
}

impl Source {
    /// Returns the module at the top of the tree that the file belongs to.
    fn module(&self) -> &str {
        let first = self.path.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Returns the file's lines with their numbers, without comments.
    pub fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
        lines.filter(|(_, line)| !line.starts_with("//"))
    }
}

pub(super) fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder that can be listed") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("UTF-8");
                let path = path.strip_prefix(&root).expect("below src").to_string_lossy().replace('\\', "/");
                sources.push(Source { path, text });
            }
        }
    }
    assert!(sources.len() > 50, "only {} files found below src", sources.len());
    sources
}

/// Returns the paths after each `crate::` of a line, up to the first character that belongs to no path.
fn edges(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").filter_map(|(at, word)| {
        // A longer name that ends in `crate` is no import of this crate.
        if line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            return None;
        }
        let rest = &line[at + word.len()..];
        let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
        Some(rest[..end].trim_end_matches(':'))
    })
}

fn is_allowed(module: &str, edge: &str, allowed: &[&str]) -> bool {
    let within = |path: &str| edge == path || edge.strip_prefix(path).is_some_and(|rest| rest.starts_with("::"));
    within(module) || allowed.iter().any(|path| within(path))
}

#[test]
fn every_module_imports_only_what_its_layer_allows() {
    let table: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let mut faults = Vec::new();
    for source in sources() {
        let module = source.module();
        let Some(allowed) = table.get(module) else {
            faults.push(format!("src/{}: module {module} has no line in the table of this test", source.path));
            continue;
        };
        for (number, line) in source.code() {
            for edge in edges(line) {
                // `use crate::{a, b}` would hide its imports from this test.
                if edge.is_empty() || !is_allowed(module, edge, allowed) {
                    faults.push(format!("src/{}:{number}: {module} may not import `{edge}`: {line}", source.path));
                }
            }
            if !source.path.contains('/') && line.contains("super::") && !line.contains("use super::*") {
                faults.push(format!("src/{}:{number}: write crate:: instead of super::", source.path));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn pure_modules_name_no_io() {
    let mut faults = Vec::new();
    for source in sources() {
        if !matches!(source.module(), "engine" | "event" | "mapping" | "providers" | "verdict")
            || TEST_SUPPORT.iter().any(|path| source.path.starts_with(path))
        {
            continue;
        }
        for (number, line) in source.code() {
            faults.extend(
                IMPURE
                    .iter()
                    .filter(|name| line.contains(*name))
                    .map(|name| format!("src/{}:{number}: pure code names {name}: {line}", source.path)),
            );
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_opens_with_one_sentence_and_stays_short() {
    let mut faults = Vec::new();
    for source in sources() {
        let first = source.text.lines().next().unwrap_or_default();
        if first.strip_prefix("//! ").is_none_or(|sentence| sentence.len() <= 10) {
            faults.push(format!("src/{}: the first line is no //! sentence", source.path));
        }
        let lines = source.text.lines().count();
        if lines > LONGEST {
            faults.push(format!("src/{}: {lines} lines, more than {LONGEST}; split it by concept", source.path));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn nothing_is_unwrapped() {
    let mut faults = Vec::new();
    for source in sources() {
        for (number, line) in source.code().filter(|(_, line)| line.contains(".unwrap()")) {
            faults.push(format!("src/{}:{number}: say with expect why it cannot fail: {line}", source.path));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn the_table_bites() {
    assert_eq!(edges("use crate::engine::{Row, verdict};").collect::<Vec<_>>(), ["engine"]);
    assert_eq!(edges("let a: crate::ops::Board = crate::app::run(x);").collect::<Vec<_>>(), ["ops::Board", "app::run"]);
    assert!(is_allowed("sender", "providers::headers::is_token", &["providers::headers"]));
    assert!(!is_allowed("sender", "providers", &["providers::headers"]));
    assert!(!is_allowed("sender", "providers::headers_of", &["providers::headers"]));
}
