//! Sets up logging: text for people, JSON for machines, filtered by level.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, LogSettings};

/// Parses a level, or a filter such as `info,sluicegate=debug`.
///
/// # Errors
/// What to write instead. A misspelled level is an error here, while tracing takes it for the name of a target.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let remedy = || {
        format!("not a level or filter: use one of {}, or a filter such as info,sluicegate=debug", LEVELS.join(", "))
    };
    let is_level = |text: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(text));
    for directive in text.split(',') {
        let level = directive.rsplit('=').next().unwrap_or_default().trim();
        if !directive.contains('[') && !is_level(level) {
            return Err(remedy());
        }
    }
    EnvFilter::builder().parse(text).map_err(|_| remedy())
}

/// Starts logging for the process, once; later calls change nothing. Logs go to stderr: stdout belongs to what a
/// command prints.
pub fn start(settings: &LogSettings) {
    let Ok(filter) = filter(&settings.level) else { return };
    // A line that cannot be written is lost. Telling so on stderr, as is the default, would panic when stderr is a pipe that
    // nobody reads any more: delivering does not depend on somebody reading the log.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).log_internal_errors(false);
    let terminal = stderr().is_terminal();
    let json = match settings.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let started = if json {
        builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        builder.with_ansi(terminal).try_init()
    };
    // Only tests start it more than once in a process.
    drop(started);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters_are_taken() {
        for text in ["info", "WARN", "info,sluicegate=debug", "rdkafka=off,trace"] {
            assert!(filter(text).is_ok(), "{text}");
        }
    }

    #[test]
    fn a_misspelled_level_is_refused_with_the_choices() {
        for text in ["inof", "", "info,", "sluicegate=loud", "verbose,info"] {
            let error = filter(text).expect_err(text);
            assert!(error.contains("error, warn, info"), "{error}");
        }
    }
}
