//! `simulate`: serves the simulated providers until a signal comes, and prints the configuration that points to them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::ask::on_this_machine;
use super::{Exit, Simulate, block_on, complain, say};
use crate::app::Signals;
use crate::testbed::simulator::{Kind, Simulator, SimulatorSettings};

/// The longest time that open connections may delay the end; they are on this machine or near it (a guess).
const LAST_ANSWERS: Duration = Duration::from_secs(5);

pub(super) fn simulate(args: &Simulate) -> Exit {
    match block_on(serve(args.listen)) {
        Ok(exit) | Err(exit) => exit,
    }
}

async fn serve(listen: SocketAddr) -> Exit {
    let settings = SimulatorSettings::default();
    let started = async {
        // Before the address is printed, since a program that reads it may stop the process right away.
        let signals = Signals::new()?;
        Ok::<_, io::Error>((signals, Simulator::start(settings.clone(), listen).await?))
    };
    let (mut signals, simulator) = match started.await {
        Ok(started) => started,
        Err(error) => {
            complain(&format!("cannot listen on {listen}: {error}; choose another address with --listen\n"));
            return Exit::Unavailable;
        }
    };
    say(&configuration(&settings, on_this_machine(simulator.addr())));
    signals.next().await;
    tokio::select! {
        () = simulator.shutdown() => {}
        () = tokio::time::sleep(LAST_ANSWERS) => {}
        () = signals.next() => {}
    }
    Exit::Ok
}

/// Returns a configuration file that delivers to the simulator at `addr`.
fn configuration(settings: &SimulatorSettings, addr: SocketAddr) -> String {
    let mut text = format!(
        "# Serving the three providers on http://{addr} until stopped; http://{addr}/state shows what they hold.\n\
         # To deliver to them, save this as simulated.yaml and add -c simulated.yaml:\n\
         destinations:\n"
    );
    for kind in Kind::ALL {
        let (name, token) = (kind.name(), &settings.limits(kind).token);
        text.push_str(&format!("  {name}:\n    type: {name}\n    base_url: http://{addr}\n    token: {token}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_printed_is_a_configuration_of_the_three_providers() {
        let addr = "127.0.0.1:9470".parse().expect("an address");
        let config = Config::from_yaml(&configuration(&SimulatorSettings::default(), addr)).expect("valid");
        let ids: Vec<&str> = config.enabled().map(|(id, _)| id).collect();
        assert_eq!(ids, ["userpilot", "vibefollow", "vitally"]);
        assert!(config.check_files().is_ok());
    }
}
