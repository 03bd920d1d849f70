//! A problem of a configuration: the setting, its value, and the remedy.

use std::fmt;

/// One problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, such as `destinations.vitally.batch.max_rows`, or the name of a file or a variable.
    pub path: String,
    /// The value of the setting. `None` for a secret, for a missing value, and for a value that would not help the operator.
    pub value: Option<String>,
    /// The action that fixes the problem.
    pub remedy: String,
}

/// The most characters of a value that are shown. A guess: they fit on a line next to the path.
const LONGEST_VALUE: usize = 80;

impl Problem {
    pub fn new(path: impl Into<String>, value: Option<String>, remedy: impl Into<String>) -> Self {
        Problem { path: path.into(), value, remedy: remedy.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)?;
        if let Some(value) = &self.value {
            let short: String = value.chars().take(LONGEST_VALUE).flat_map(char::escape_debug).collect();
            let cut = if value.chars().nth(LONGEST_VALUE).is_some() { "..." } else { "" };
            // Blanks are not visible without quotes.
            let quote = if short.is_empty() || short.trim() != short { "\"" } else { "" };
            write!(f, " = {quote}{}{cut}{quote}", without_userinfo(&short))?;
        }
        write!(f, ": {}", self.remedy)
    }
}

/// Masks the user info before the host of an address, because it may hold a password.
fn without_userinfo(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else {
        return text.to_owned();
    };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => text.to_owned(),
    }
}

/// All problems of a configuration, one per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_shows_setting_value_and_remedy_in_one_line() {
        let problem = Problem::new("kafka.group", Some("a\nb".to_owned()), "write it in one line");
        assert_eq!(problem.to_string(), "kafka.group = a\\nb: write it in one line");
        let long = Problem::new("x", Some("y".repeat(1000)), "shorten it").to_string();
        assert!(long.len() < 120 && long.contains("y..."), "{long}");
    }

    #[test]
    fn a_password_in_an_address_is_not_shown() {
        let problem = Problem::new("base_url", Some("https://me:MARKED@host/a".to_owned()), "remove it");
        assert_eq!(problem.to_string(), "base_url = https://***@host/a: remove it");
    }
}
