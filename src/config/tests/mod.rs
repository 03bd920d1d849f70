//! Tables of settings that are refused or taken, and tests that secrets are never shown.

mod files;
mod layers;
mod refusals;
mod shown;

use super::*;

/// The settings that every table row starts from: one valid destination.
const VALID: &str = "destinations: {d: {type: userpilot, token: t0}}";

fn env(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// Loads texts as if they were files, in this order.
fn load(texts: &[&str], variables: &[(&str, &str)], only: &[&str]) -> Result<Config, Problems> {
    let layers = texts.iter().enumerate().map(|(index, text)| (format!("{index}.yaml"), (*text).to_owned())).collect();
    let only: Vec<String> = only.iter().map(|id| (*id).to_owned()).collect();
    Config::from_layers(layers, env(variables), &only)
}

fn refused(texts: &[&str], variables: &[(&str, &str)]) -> Problems {
    load(texts, variables, &[]).expect_err("must be refused")
}

/// Asserts that the settings have exactly this one problem.
fn assert_one(yaml: &str, path: &str, remedy: &str) {
    let problems = refused(&[VALID, yaml], &[]);
    let [problem] = problems.0.as_slice() else { panic!("{yaml}\nhas these problems:\n{problems}") };
    assert_eq!(problem.path, path, "{yaml}: {problem}");
    assert!(problem.to_string().contains(remedy), "{yaml}: {problem}");
}
