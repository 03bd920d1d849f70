//! The binary as a child process of a test: started, asked, signalled, killed.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest session of Kafka's new protocol in use here: the mock's. A member that did not leave blocks the next for as long.
pub const SESSION: Duration = Duration::from_secs(30);

/// A running `sluicegate run`; killed when dropped.
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

    /// With these variables in its environment besides the test's own.
    pub fn start_with(yaml: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Process {
        let config = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(config.path(), yaml).expect("written");
        // Another build of it where a test takes minutes and is to measure what is shipped.
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

    /// As when the collector of the log has ended: the next line meets a pipe that nobody reads.
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

    /// Where it serves, as its log says in either format.
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

    /// The exit code if it has ended, and not of a signal.
    pub fn ended_with(&mut self) -> Option<i32> {
        self.child.try_wait().expect("a child")?.code()
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = Command::new("kill").arg(format!("-{name}")).arg(pid).status().expect("the kill command");
        assert!(status.success(), "kill -{name}: {status}");
    }

    /// The exit code; panics when it takes longer than `limit`, or the process died of a signal.
    pub async fn exit(&mut self, limit: Duration) -> i32 {
        let started = Instant::now();
        loop {
            if !self.is_running() {
                // The reader of its last lines may be a moment behind.
                tokio::time::sleep(Duration::from_millis(50)).await;
                return self.ended_with().unwrap_or_else(|| panic!("it died of a signal\n{}", self.log()));
            }
            assert!(started.elapsed() < limit, "still running after {limit:?}\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// As the kernel's memory killer or a lost node ends it.
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
