//! The English of comments and documents, read from the files: words that readers had to decode, and openings without a noun.

use std::fs;
use std::path::{Path, PathBuf};

/// Words and turns that comments and documents avoid, and what to write instead.
const AVOIDED: &[(&str, &str)] = &[
    ("mend", "fix"),
    ("mends", "fixes"),
    ("mended", "fixed"),
    ("leave off", "stop"),
    ("leaves off", "stops"),
    ("came of", "result, outcome"),
    ("come of", "result, outcome"),
    ("comes of", "result, outcome"),
    ("became of", "what happened to"),
    ("become of", "what happens to"),
    ("becomes of", "what happens to"),
    ("of late", "recent"),
    ("for ever", "forever"),
    ("amid", "during"),
    ("ails", "is wrong with"),
    ("any more", "no longer"),
    ("whoever", "the noun"),
    ("somebody", "the noun"),
    ("anybody", "the noun"),
];

/// Openings of a documentation comment that name neither what it describes nor what it does.
const HEADLESS: &[&str] = &["What", "How", "Whether", "Where", "When", "Why", "Who", "Whom", "Which"];

/// The most documentation comments of a hundred that may open so.
const HEADLESS_PERCENT: usize = 2;

/// Names of documents that are not in the repository.
const ELSEWHERE: &[&str] = &["providers.md", "design.md", "design, section", "the task's"];

struct File {
    path: PathBuf,
    text: String,
}

impl File {
    /// Its lines of English with their numbers: comments of code, and all of a document.
    fn english(&self) -> impl Iterator<Item = (usize, &str)> {
        let is_document = self.path.extension().is_some_and(|extension| extension == "md");
        let is_rust = self.path.extension().is_some_and(|extension| extension == "rs");
        let lines = self.text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
        lines.filter(move |(_, line)| is_document || line.starts_with(if is_rust { "//" } else { "#" }))
    }
}

fn files(folders: &[&str], extensions: &[&str]) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut files = Vec::new();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = fs::read_dir(&path).expect("a folder that can be listed");
            paths.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else if path.extension().is_some_and(|extension| extensions.iter().any(|known| extension == *known)) {
            let text = fs::read_to_string(&path).expect("UTF-8");
            files.push(File { path: path.strip_prefix(root).expect("below the root").to_owned(), text });
        }
    }
    files
}

/// Returns true if the words stand in the line by themselves.
fn has_words(line: &str, words: &str) -> bool {
    let line = line.to_ascii_lowercase();
    let is_edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    line.match_indices(words)
        .any(|(at, _)| is_edge(line[..at].chars().next_back()) && is_edge(line[at + words.len()..].chars().next()))
}

/// The first lines of documentation comments.
fn summaries(file: &File) -> impl Iterator<Item = (usize, &str)> {
    let lines: Vec<&str> = file.text.lines().map(str::trim).collect();
    let opens = move |(number, line): (usize, &str)| {
        ["///", "//!"].iter().any(|mark| line.starts_with(mark) && (number < 2 || !lines[number - 2].starts_with(mark)))
    };
    file.english().filter(move |line| opens(*line))
}

#[test]
fn comments_and_documents_use_plain_words_and_name_no_document_that_is_elsewhere() {
    let all = files(
        &["src", "tests", "benches", "deploy", "config", "README.md", "Cargo.toml"],
        &["rs", "md", "yaml", "toml", "tpl"],
    );
    assert!(all.len() > 200, "only {} files found", all.len());
    let mut faults = Vec::new();
    // This file holds the list.
    for file in all.iter().filter(|file| !file.path.ends_with("english.rs")) {
        for (number, line) in file.english() {
            let place = || format!("{}:{number}", file.path.display());
            let avoided = AVOIDED.iter().filter(|(words, _)| has_words(line, words));
            faults.extend(avoided.map(|(words, instead)| format!("{}: {words:?} ({instead}): {line}", place())));
            let elsewhere = ELSEWHERE.iter().filter(|name| line.contains(*name));
            faults.extend(elsewhere.map(|name| format!("{}: {name} is not in the repository: {line}", place())));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn documentation_comments_open_with_a_noun_or_a_verb() {
    let files = files(&["src", "tests", "benches"], &["rs"]);
    let (mut count, mut headless) = (0, Vec::new());
    for file in &files {
        for (number, line) in summaries(file) {
            count += 1;
            let first = line[3..].split_whitespace().next().unwrap_or_default();
            if HEADLESS.contains(&first) {
                headless.push(format!("{}:{number}: {line}", file.path.display()));
            }
        }
    }
    assert!(count > 2_000, "only {count} documentation comments found");
    assert!(headless.len() * 100 <= count * HEADLESS_PERCENT, "{} of {count}\n{}", headless.len(), headless.join("\n"));
}

#[test]
fn a_word_counts_by_itself_and_in_any_case() {
    assert!(has_words("// Amid a rebalance", "amid") && !has_words("// a pyramid", "amid"));
    assert!(has_words("/// is gone for ever.", "for ever") && !has_words("for every user", "for ever"));
}
