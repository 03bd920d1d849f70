//! The commands of the binary: their arguments, and the codes that they exit with.

mod ask;
mod check;
mod generate;
mod simulate;
mod status;

use std::ffi::OsString;
use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::app;
use crate::config::{self, Config, Problems};
use crate::demo::run as demo;
use crate::units::HumanDuration;

/// The code that a process exits with, from BSD's `sysexits.h`. An outage of a provider or a broker never ends a
/// process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Success, also after SIGTERM.
    Ok = 0,
    /// The arguments are wrong.
    Usage = 64,
    /// Something that the command needs is not there, such as a port or, for a check, a broker.
    Unavailable = 69,
    /// A bug of Sluicegate.
    Bug = 70,
    /// The lanes were not drained within the time given.
    NotYet = 75,
    /// The configuration is wrong.
    Config = 78,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Delivers identify events from Kafka to Vitally, VibeFollow and Userpilot at the rate each takes.
#[derive(Debug, Parser)]
#[command(name = "sluicegate", version, max_term_width = 110)]
pub struct Cli {
    /// Configuration file; of several, a later one overrides an earlier one.
    ///
    /// Environment variables override the files: SLUICEGATE__KAFKA__BROKERS sets kafka.brokers.
    #[arg(short, long = "config", value_name = "FILE", global = true)]
    pub config: Vec<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Deliver until stopped.
    Run(Run),
    /// Show the whole worker in action, with a broker and providers inside the process.
    Demo(Demo),
    /// Serve the three providers on one port, with their limits, for rehearsals.
    Simulate(Simulate),
    /// Write realistic identify events to a topic.
    Generate(Generate),
    /// Say what is wrong with the configuration and what to do about it.
    Check(Check),
    /// Show the effective configuration or its schema.
    #[command(subcommand)]
    Config(Show),
    /// Show the state of the lanes of a running process.
    Status(Status),
    /// Exit 0 if a running process is alive (/livez), else 69; for containers.
    Healthcheck(Ask),
    /// Print the completions of a shell.
    Completions { shell: clap_complete::Shell },
    /// Print the version.
    Version {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub struct Run {
    /// Only these destinations, separated by commas.
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub destinations: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Events to generate [default: as many as fit the duration].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub events: Option<u64>,
    /// Users that the events are about [default: as many as fit the duration].
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    pub users: Option<u64>,
    /// Rough length of the run, which ends when everything is delivered.
    #[arg(long, default_value = "90s")]
    pub duration: HumanDuration,
    /// Equal seeds generate equal events.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// A fault during the run.
    #[arg(long)]
    pub fault: Option<DemoFault>,
    /// Write all events before the lanes start, then show how long it takes until every user is current.
    ///
    /// By default it writes 60,000 events of 6,000 users. They take five minutes, and 50 minutes for a sender that does
    /// not merge.
    #[arg(long, conflicts_with_all = ["duration", "input"])]
    pub backlog: bool,
    /// Write the time at which each user was current to this file.
    #[arg(long, value_name = "FILE", requires = "backlog")]
    pub csv: Option<PathBuf>,
    /// Deliver these events instead, one JSON object a line; - reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["events", "users", "seed"])]
    pub input: Option<PathBuf>,
    /// Address of /metrics and /status.
    #[arg(long, default_value = "127.0.0.1:9464")]
    pub listen: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DemoFault {
    /// A provider answers 503 for a while.
    Outage,
    /// A provider answers 429 with Retry-After.
    Throttle,
    /// A provider refuses the token for a while.
    WrongToken,
    /// A lane is killed and started again.
    Crash,
}

#[derive(Debug, Args)]
pub struct Simulate {
    /// Address of the providers; /state shows what they hold.
    #[arg(long, default_value = "127.0.0.1:9470")]
    pub listen: SocketAddr,
}

#[derive(Debug, Args)]
pub struct Generate {
    /// Brokers to write to [default: kafka.brokers of the configuration, or localhost:9092].
    #[arg(long, value_name = "HOST:PORT")]
    pub brokers: Option<String>,
    /// The topic [default: the first of kafka.topics, or identify].
    #[arg(long)]
    pub topic: Option<String>,
    /// Events to write.
    #[arg(long, default_value_t = 100_000)]
    pub events: u64,
    /// Users that the events are about.
    // Each user costs 4 bytes; no product has more users than this bound.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub users: u64,
    /// Equal seeds generate equal events.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Events a second; 0 writes as fast as it goes.
    #[arg(long, value_name = "PER_SECOND", default_value_t = 0)]
    pub rate: u32,
}

#[derive(Debug, Args)]
pub struct Check {
    /// Also ask the broker: reachable, topics, partitions, dead-letter topics.
    #[arg(long)]
    pub online: bool,
}

#[derive(Debug, Subcommand)]
pub enum Show {
    /// The effective settings as YAML, without secrets.
    Print,
    /// The JSON Schema of the configuration file.
    Schema,
}

#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub ask: Ask,
    /// As JSON, the way the process reports it.
    #[arg(long)]
    pub json: bool,
    /// Show the table again and again, in place on a terminal.
    #[arg(long, conflicts_with = "json")]
    pub watch: bool,
    /// Time between two looks of --watch.
    #[arg(long, default_value = "2s", requires = "watch")]
    pub every: HumanDuration,
    /// Wait until nothing is pending on any lane and all lag is known to be 0, for scripts.
    ///
    /// Exits 0 then, and 75 when --timeout is over. Lag that is not known counts as not drained.
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub wait_drained: bool,
    /// Longest wait of --wait-drained.
    #[arg(long, default_value = "1h", requires = "wait_drained")]
    pub timeout: HumanDuration,
}

#[derive(Debug, Args)]
pub struct Ask {
    /// The process to ask [default: the address of http.listen, on this machine].
    #[arg(long)]
    pub url: Option<String>,
}

/// Parses the arguments and does what they say.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    perform(args).into()
}

fn perform(args: impl IntoIterator<Item = OsString>) -> Exit {
    match Cli::try_parse_from(args) {
        Ok(cli) => dispatch(cli),
        Err(error) => {
            // A closed pipe must not turn --help into a panic.
            drop(error.print());
            if error.use_stderr() { Exit::Usage } else { Exit::Ok }
        }
    }
}

fn dispatch(cli: Cli) -> Exit {
    match cli.command {
        Command::Run(run) => with_config(&cli.config, &run.destinations, |config| {
            // The log is dropped last, so that it writes the last lines.
            let _log = crate::log::start(&config.log);
            config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
            match config.check_files() {
                Ok(()) => run_worker(&config),
                Err(problems) => refuse(&problems),
            }
        }),
        Command::Demo(args) => run_demo(args),
        Command::Simulate(args) => simulate::simulate(&args),
        Command::Generate(args) => generate::generate(&args, &cli.config),
        Command::Check(args) => with_config(&cli.config, &[], |config| check::check(&config, args.online)),
        Command::Config(Show::Print) => with_config(&cli.config, &[], |config| say(&config.to_yaml())),
        Command::Config(Show::Schema) => say(&format!("{:#}\n", config::json_schema())),
        Command::Status(status) => status::status(&status, &cli.config),
        Command::Healthcheck(args) => ask::healthcheck(&args, &cli.config),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sluicegate", &mut script);
            say(&String::from_utf8_lossy(&script))
        }
        Command::Version { json } => say(&version(json)),
    }
}

fn run_worker(config: &Config) -> Exit {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start threads: {error}\n"));
            return Exit::Unavailable;
        }
    };
    match runtime.block_on(crate::app::run(config)) {
        Ok(()) => Exit::Ok,
        Err(error) => {
            complain(&format!("{error}\n"));
            match error {
                app::Error::Panicked => Exit::Bug,
                app::Error::Lane(_) => Exit::Config,
                app::Error::Listen { .. } | app::Error::Signals(_) => Exit::Unavailable,
            }
        }
    }
}

fn run_demo(arguments: Demo) -> Exit {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("cannot start threads: {error}\n"));
            return Exit::Unavailable;
        }
    };
    let settings = demo::Settings {
        events: arguments.events,
        users: arguments.users,
        duration: arguments.duration.0,
        seed: arguments.seed,
        fault: arguments.fault.map(|fault| match fault {
            DemoFault::Outage => demo::Fault::Outage,
            DemoFault::Throttle => demo::Fault::Throttle,
            DemoFault::WrongToken => demo::Fault::WrongToken,
            DemoFault::Crash => demo::Fault::Crash,
        }),
        backlog: arguments.backlog,
        csv: arguments.csv,
        input: arguments.input,
        listen: arguments.listen,
    };
    match runtime.block_on(demo::run(settings)) {
        Ok(summary) if !summary.passed() => Exit::Bug,
        Ok(summary) if summary.is_without_events() => Exit::Usage,
        Ok(summary) if summary.interrupted || summary.stalled => Exit::Unavailable,
        Ok(_) => Exit::Ok,
        Err(error) => {
            complain(&format!("{error}\n"));
            match error {
                demo::Error::Line { .. } | demo::Error::Backlog(_) => Exit::Usage,
                demo::Error::Config(_) => Exit::Bug,
                _ => Exit::Unavailable,
            }
        }
    }
}

fn with_config(files: &[PathBuf], only: &[String], then: impl FnOnce(Config) -> Exit) -> Exit {
    match Config::load(files, environment(), only) {
        Ok(config) => then(config),
        Err(problems) => refuse(&problems),
    }
}

/// Returns the variables of the process.
fn environment() -> impl Iterator<Item = (String, String)> {
    let lossy = |text: OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(move |(name, value)| (lossy(name), lossy(value)))
}

/// Runs a command's future on a runtime of its own.
fn block_on<T>(future: impl Future<Output = T>) -> Result<T, Exit> {
    match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => {
            let result = runtime.block_on(future);
            // A host name that is still being looked up must not delay the end.
            runtime.shutdown_background();
            Ok(result)
        }
        Err(error) => {
            complain(&format!("cannot start the runtime: {error}\n"));
            Err(Exit::Unavailable)
        }
    }
}

/// Returns the version. The revision comes from the build's environment; a plain `cargo build` knows none.
fn version(json: bool) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let revision = option_env!("SLUICEGATE_REVISION").unwrap_or("unknown");
    if json {
        format!("{}\n", serde_json::json!({ "version": version, "revision": revision }))
    } else {
        format!("sluicegate {version} ({revision})\n")
    }
}

fn refuse(problems: &Problems) -> Exit {
    complain(&format!("{problems}\n"));
    Exit::Config
}

/// Prints to stdout; a reader that has gone away is no error.
fn say(text: &str) -> Exit {
    drop(std::io::stdout().write_all(text.as_bytes()));
    Exit::Ok
}

fn complain(text: &str) {
    drop(std::io::stderr().write_all(text.as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definitions_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn config_files_may_stand_before_and_after_the_command() {
        let files = |line: &str| parse(line).expect("parses").config;
        assert_eq!(files("sluicegate -c a.yaml -c b.yaml check"), [PathBuf::from("a.yaml"), PathBuf::from("b.yaml")]);
        assert_eq!(files("sluicegate check --config a.yaml -c b.yaml"), files("sluicegate -c a.yaml -c b.yaml check"));
    }

    #[test]
    fn destinations_are_separated_by_commas() {
        let cli = parse("sluicegate run --destinations vitally,userpilot").expect("parses");
        assert!(matches!(cli.command, Command::Run(Run { destinations }) if destinations == ["vitally", "userpilot"]));
    }

    #[test]
    fn the_demo_takes_generated_events_or_the_users_own_but_not_both() {
        assert!(parse("sluicegate demo --events 5000 --seed 7 --fault wrong-token --duration 30s").is_ok());
        assert!(parse("sluicegate demo --input -").is_ok());
        assert!(parse("sluicegate demo --input - --events 5").is_err());
        assert!(parse("sluicegate demo --duration 30").is_err());
        assert!(parse("sluicegate demo --backlog --events 600 --users 60 --csv users.csv").is_ok());
        assert!(parse("sluicegate demo --backlog --duration 30s").is_err());
        assert!(parse("sluicegate demo --csv users.csv").is_err());
    }

    #[test]
    fn wrong_arguments_end_with_64_and_a_wrong_configuration_with_78() {
        let exit = |line: &str| perform(line.split_whitespace().map(OsString::from)) as u8;
        assert_eq!(exit("sluicegate run --bogus"), 64);
        assert_eq!(exit("sluicegate"), 64);
        assert_eq!(exit("sluicegate --version"), 0);
        assert_eq!(exit("sluicegate check -c /no/such/file.yaml"), 78);
        assert_eq!(exit("sluicegate config schema"), 0);
        let documented = concat!(env!("CARGO_MANIFEST_DIR"), "/config/sluicegate.yaml");
        assert_eq!(exit(&format!("sluicegate config print -c {documented}")), 0);
    }

    #[test]
    fn the_version_is_one_json_object_on_request() {
        let json: serde_json::Value = serde_json::from_str(&version(true)).expect("JSON");
        assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    }
}
