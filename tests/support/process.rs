//! The worker's binary as a child process of a test, which starts, queries, signals and kills it.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The longest session of Kafka's new protocol here, which is the mock cluster's. A member that did not leave blocks
/// the next one for as long.
pub const SESSION: Duration = Duration::from_secs(30);

/// A running `sluicegate run`. Dropping it kills the process.
pub struct Process {
    child: std::process::Child,
    log: Arc<Mutex<Vec<String>>>,
    reads: Arc<AtomicBool>,
    _config: tempfile::NamedTempFile,
}

impl Process {
    pub fn start(yaml: &str, arguments: &[&str]) -> Process {
        Process::start_with(yaml, arguments, &[])
    }

    /// Starts the binary with these variables in addition to the test's own environment.
    pub fn start_with(yaml: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Process {
        let config = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(config.path(), yaml).expect("written");
        // The variable names another build for a test that takes minutes and measures the shipped program.
        let binary = std::env::var_os("SLUICEGATE_TEST_BINARY");
        let mut child = Command::new(binary.unwrap_or_else(|| env!("CARGO_BIN_EXE_sluicegate").into()))
            .arg("run")
            .arg("-c")
            .arg(config.path())
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process");
        let log = Arc::new(Mutex::new(Vec::new()));
        let reads = Arc::new(AtomicBool::new(true));
        let (lines, stderr) = (Arc::clone(&log), child.stderr.take().expect("a pipe"));
        let goes_on = Arc::clone(&reads);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                lines.lock().expect("no panic").push(line);
                if !goes_on.load(Ordering::Acquire) {
                    break;
                }
            }
        });
        Process { child, log, reads, _config: config }
    }

    pub fn log(&self) -> String {
        self.log.lock().expect("no panic").join("\n")
    }

    /// Stops reading the log, as if its collector had ended. The next line meets a pipe without a reader.
    pub fn stop_reading_the_log(&self) {
        self.reads.store(false, Ordering::Release);
    }

    pub async fn wait_log(&mut self, text: &str) {
        let started = Instant::now();
        while !self.log().contains(text) {
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none() && started.elapsed() < SESSION * 2, "no line with {text:?} in\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the address on which the process serves, from its log in either format.
    pub async fn address(&mut self) -> String {
        self.wait_log("serving ").await;
        let log = self.log();
        let rest = log.split("address=").nth(1).or_else(|| log.split("\"address\":\"").nth(1)).expect("an address");
        rest.split(|c: char| c == '"' || c.is_whitespace()).next().unwrap_or_default().to_owned()
    }

    pub async fn get(&mut self, path: &str) -> (u16, String) {
        let address = self.address().await;
        let reply = reqwest::get(format!("http://{address}{path}")).await.expect("an answer");
        (reply.status().as_u16(), reply.text().await.expect("text"))
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    /// Returns the exit code if the process has ended, and not by a signal.
    pub fn ended_with(&mut self) -> Option<i32> {
        self.child.try_wait().expect("a child")?.code()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").arg(format!("-{name}")).arg(pid).status().expect("the kill command");
        assert!(status.success(), "kill -{name}: {status}");
    }

    /// Waits for the exit code. Panics if the process takes longer than `limit`, or if it died of a signal.
    pub async fn exit(&mut self, limit: Duration) -> i32 {
        let started = Instant::now();
        loop {
            if !self.is_running() {
                // The thread that reads the last lines may be a moment behind.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return self.ended_with().unwrap_or_else(|| panic!("it died of a signal\n{}", self.log()));
            }
            assert!(started.elapsed() < limit, "still running after {limit:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills the process, as the kernel's memory killer or a lost node would.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
