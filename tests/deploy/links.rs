//! The links of all pages, alerts and dashboards: each leads to a file of this repository, and to a heading where it names one.

use std::fs;
use std::path::{Path, PathBuf};

use crate::rules::root;

/// The address of this repository's files in alerts and dashboards.
const REPOSITORY: &str = "https://github.com/sluicegate/sluicegate/blob/main/";

/// Returns the repository's files with this extension, each with its text.
fn files(extension: &str) -> Vec<(PathBuf, String)> {
    let (mut folders, mut files) = (vec![root().to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of a checkout can be listed") {
            let path = entry.expect("an entry of a folder can be read").path();
            let is_foreign = [".git", "target", "node_modules"].iter().any(|name| path.ends_with(name));
            if path.is_dir() && !is_foreign {
                folders.push(path);
            } else if path.is_file() && path.extension().is_some_and(|found| found == extension) {
                let text = fs::read_to_string(&path).expect("pages and settings are text");
                files.push((path, text));
            }
        }
    }
    files
}

/// Returns the lines of a page outside its code blocks.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// Returns the targets of a page's links that have no address of their own.
fn links(page: &str) -> Vec<&str> {
    let targets = prose(page).flat_map(|line| line.split("](").skip(1)).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://")).collect()
}

/// Returns the anchor that GitHub makes from a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Returns true if a link on a page leads to a file that exists, and to one of its headings if the link names one.
fn leads_somewhere(page: &Path, target: &str) -> bool {
    let (file, heading) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { page.to_owned() } else { page.parent().unwrap_or(root()).join(file) };
    let has_heading = |text: String| {
        prose(&text).filter(|line| line.starts_with('#')).any(|line| anchor(line.trim_start_matches('#')) == heading)
    };
    path.exists() && (heading.is_empty() || fs::read_to_string(path).is_ok_and(has_heading))
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_exist() {
    for (page, text) in files("md") {
        let broken: Vec<&str> = links(&text).into_iter().filter(|target| !leads_somewhere(&page, target)).collect();
        assert!(broken.is_empty(), "{}: {broken:?}", page.display());
    }
    for (path, text) in files("yaml").into_iter().chain(files("json")) {
        let targets = text.split(REPOSITORY).skip(1).filter_map(|rest| rest.split(['"', '\n']).next());
        let broken: Vec<&str> = targets.filter(|target| !leads_somewhere(&root().join("README.md"), target)).collect();
        assert!(broken.is_empty(), "{}: {broken:?}", path.display());
    }
}

#[test]
fn a_broken_link_and_a_missing_heading_are_found() {
    let page = "[a](no-file.md)\n```\n[b](skipped.md)\n```\n[c](#x) [d](https://x.org/y)";
    assert_eq!(links(page), ["no-file.md", "#x"]);
    assert_eq!(anchor(" What it *is*, in 2 lines"), "what-it-is-in-2-lines");
    let leads = |target: &str| leads_somewhere(&root().join("README.md"), target);
    assert!(leads("src") && leads("#license") && leads("deploy/RUNBOOK.md#sluicegatedown"));
    assert!(!leads("no-file.md") && !leads("#no-heading") && !leads("deploy/RUNBOOK.md#no-alert"));
}

#[test]
fn the_readme_has_at_most_200_lines() {
    let lines = fs::read_to_string(root().join("README.md")).expect("a README").lines().count();
    assert!(lines <= 200, "{lines} lines: move some next to what they describe");
}
