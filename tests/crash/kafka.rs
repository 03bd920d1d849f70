//! A Kafka of a seed's own, which can be killed and started again.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A broker that the script of `SLUICEGATE_TEST_KAFKA` runs: `start`, `kill` and `wipe`, each with a port. Its data goes when
/// this is dropped.
pub struct OwnKafka {
    script: PathBuf,
    home: PathBuf,
    port: u16,
}

impl OwnKafka {
    /// Starts it and waits until it answers. `home` is for the jars and the data of all brokers of a run.
    pub fn start(script: PathBuf, home: PathBuf) -> OwnKafka {
        let kafka = OwnKafka { script, home, port: two_free_ports() };
        kafka.up();
        kafka
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn up(&self) {
        self.run("start");
    }

    /// As a power cut ends it.
    pub fn kill(&self) {
        self.run("kill");
    }

    fn run(&self, command: &str) {
        let status = Command::new(&self.script)
            .arg(command)
            .arg(self.port.to_string())
            .env("KAFKA_HOME_DIR", &self.home)
            // Sessions of the new protocol are the broker's to choose.
            .env("KAFKA_EXTRA", "group.consumer.session.timeout.ms=3000;group.consumer.heartbeat.interval.ms=300")
            .stdout(Stdio::null())
            .status()
            .expect("the script runs");
        assert!(status.success(), "{} {command} {}: {status}", self.script.display(), self.port);
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        self.run("wipe");
    }
}

/// A port whose follower is free too: the script takes both. Below the range that the system gives to clients, one of which
/// could take it while the broker is down.
fn two_free_ports() -> u16 {
    let first = 21_000 + (std::process::id() % 1_000) as u16 * 8;
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (first..32_000).step_by(2).find(|port| is_free(*port) && is_free(port + 1)).expect("two free ports")
}
