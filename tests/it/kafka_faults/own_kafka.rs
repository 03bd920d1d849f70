//! A real Kafka that a test may stop and kill, started by the script that `SLUICEGATE_TEST_KAFKA` names.
//!
//! Its data is in a temporary folder. The script takes `start PORT`, `stop PORT`, `kill PORT`, `wipe PORT` and
//! `configs PORT ARGS...`. It obeys `KAFKA_HOME_DIR` and `KAFKA_EXTRA` (further lines of server.properties, separated
//! by `;`).

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

pub struct OwnKafka {
    script: PathBuf,
    home: TempDir,
    port: u16,
    extra: String,
}

impl OwnKafka {
    /// Starts a broker, or returns `None` if no script is named.
    pub async fn start(extra: &str) -> Option<OwnKafka> {
        let Ok(script) = std::env::var("SLUICEGATE_TEST_KAFKA") else {
            println!("skipped: SLUICEGATE_TEST_KAFKA names no script that starts a Kafka");
            return None;
        };
        let home = tempfile::tempdir().expect("a folder");
        // All brokers share the files that the script downloads.
        let shared = std::env::var_os("KAFKA_HOME_DIR")
            .map_or_else(|| std::env::temp_dir().join("sluicegate-kafka"), PathBuf::from);
        for entry in std::fs::read_dir(shared).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with("libs-") {
                std::os::unix::fs::symlink(entry.path(), home.path().join(entry.file_name())).expect("a link");
            }
        }
        let kafka = OwnKafka { script: script.into(), home, port: free_port(), extra: extra.to_owned() };
        kafka.up().await;
        Some(kafka)
    }

    /// Starts the broker, and tries again up to twice. On a loaded machine it takes longer than the script waits. One
    /// of 64 random cluster ids begins with a dash, which the formatting tool takes for an option.
    pub async fn up(&self) {
        for _ in 0..2 {
            let mut command = self.command(&["start"]);
            let done = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
            if done.expect("the script runs").status.success() {
                return;
            }
        }
        self.run(&["start"]).await;
    }

    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Runs a command of the script to its end.
    ///
    /// # Panics
    /// If the command fails.
    pub async fn run(&self, arguments: &[&str]) {
        let mut command = self.command(arguments);
        let done = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let output = done.expect("the script runs");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {}{text}", String::from_utf8_lossy(&output.stdout));
    }

    /// Runs a tool of Kafka's own that the script does not offer, by its class, to its end.
    ///
    /// # Panics
    /// If the tool fails.
    pub async fn tool(&self, class: &str, arguments: &[&str]) {
        let jars = std::fs::read_dir(self.home.path()).into_iter().flatten().flatten().map(|entry| entry.path());
        let jars = jars.filter(|path| path.to_string_lossy().contains("/libs-")).map(|path| path.join("*"));
        let jars = std::env::join_paths(jars).expect("no colon in a folder's name");
        let mut command = Command::new("java");
        command.arg("-cp").arg(jars).arg(class).args(arguments).stdin(Stdio::null());
        let done = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let output = done.expect("java is there, or no broker would run");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{class} {arguments:?}: {}{text}", String::from_utf8_lossy(&output.stdout));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.script);
        command.arg(arguments[0]).arg(self.port.to_string()).args(&arguments[1..]);
        command.env("KAFKA_HOME_DIR", self.home.path()).env("KAFKA_EXTRA", &self.extra).stdin(Stdio::null());
        command
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        // SIGKILL comes first, because no test needs the data that an orderly end would write.
        for command in ["kill", "wipe"] {
            let _ = self.command(&[command]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    }
}

/// Returns a free port whose successor, on which the controller listens, is free too. Both are below the ports that
/// systems assign by themselves.
fn free_port() -> u16 {
    let seed = u16::try_from(std::process::id() % 1_000).expect("small");
    let taken = std::sync::atomic::Ordering::Relaxed;
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    loop {
        let port = 20_000 + seed * 10 + NEXT.fetch_add(2, taken) % 2_000;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 1) {
            return port;
        }
    }
}
