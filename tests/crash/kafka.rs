//! A Kafka of one seed's own, which the test can kill and start again.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

/// A broker that the script of `SLUICEGATE_TEST_KAFKA` runs with `start`, `kill` and `wipe`, each with a port. Its data
/// is deleted when this is dropped.
pub struct OwnKafka {
    script: PathBuf,
    home: PathBuf,
    port: u16,
}

impl OwnKafka {
    /// Starts the broker and waits until it answers. `home` is for the jars and the data of all brokers of a run.
    /// `ports` is the next port to look at for a free one.
    pub fn start(script: PathBuf, home: PathBuf, ports: &AtomicU16) -> OwnKafka {
        let kafka = OwnKafka { script, home, port: two_free_ports(ports) };
        kafka.up();
        kafka
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts the broker, and tries again up to twice. One of 64 random cluster ids begins with a dash, which the formatting
    /// tool takes for an option.
    pub fn up(&self) {
        if !(0..2).any(|_| self.is_done("start")) {
            self.run("start");
        }
    }

    /// Ends the broker as a power cut would.
    pub fn kill(&self) {
        self.run("kill");
    }

    fn run(&self, command: &str) {
        assert!(self.is_done(command), "{} {command} {} fails", self.script.display(), self.port);
    }

    fn is_done(&self, command: &str) -> bool {
        let status = Command::new(&self.script)
            .arg(command)
            .arg(self.port.to_string())
            .env("KAFKA_HOME_DIR", &self.home)
            // In the new protocol the broker chooses the session timeout.
            .env("KAFKA_EXTRA", "group.consumer.session.timeout.ms=3000;group.consumer.heartbeat.interval.ms=300")
            .stdout(Stdio::null())
            .status();
        status.expect("the script runs").success()
    }
}

impl Drop for OwnKafka {
    fn drop(&mut self) {
        self.run("wipe");
    }
}

/// Returns the first port that a run tries. It is below the range that the system gives to clients. One of these could
/// otherwise take a broker's port while the broker is down.
pub fn first_port() -> AtomicU16 {
    AtomicU16::new(21_000 + (std::process::id() % 1_000) as u16 * 8)
}

/// Returns a port whose successor is free too, since the script takes both.
fn two_free_ports(ports: &AtomicU16) -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    loop {
        let port = ports.fetch_add(2, Ordering::Relaxed);
        if is_free(port) && is_free(port + 1) {
            return port;
        }
    }
}
