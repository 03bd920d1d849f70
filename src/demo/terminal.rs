//! The terminal in which a demo is shown, and the signals that end it.

use std::io::{IsTerminal, Write, stderr, stdout};

use tokio::sync::oneshot;

use super::view::{RESTORE, View};
use crate::app;
use crate::log::{is_colorless, is_dumb};

/// Opens a view on standard output, or on standard error if results go to standard output.
pub(super) fn open_view(results_on_stdout: bool) -> View {
    let (color, capable) = (!is_colorless(), !is_dumb());
    match results_on_stdout {
        true => View::new(Box::new(stderr()), capable && stderr().is_terminal(), color),
        false => View::new(Box::new(stdout()), capable && stdout().is_terminal(), color),
    }
}

/// Returns a receiver for the first SIGINT or SIGTERM; the second signal ends the process at once.
pub(super) fn watch_signals(terminal: bool) -> oneshot::Receiver<()> {
    let (first, interrupted) = oneshot::channel();
    tokio::spawn(async move {
        // Without handlers a signal ends the demo as it ends any program.
        let Ok(mut signals) = app::Signals::new() else { return std::future::pending().await };
        signals.next().await;
        // The receiver is gone if the run is over.
        let _ = first.send(());
        signals.next().await;
        if terminal {
            drop(stdout().write_all(RESTORE));
            drop(stdout().flush());
        }
        std::process::exit(app::SECOND_SIGNAL);
    });
    interrupted
}
