//! The worker's binary as a child process in a tight place: limits, an unwritable directory, a log without a reader.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::support::{DEADLINE, metric};

/// Returns the binary under test: `SLUICEGATE_TEST_BINARY`, or the one built with the tests.
fn binary() -> String {
    std::env::var("SLUICEGATE_TEST_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_sluicegate").to_owned())
}

/// A running `sluicegate run`. Dropping it kills the process.
pub struct Confined {
    child: Child,
    address: String,
    log: Arc<Log>,
    _config: tempfile::NamedTempFile,
}

#[derive(Default)]
struct Log {
    text: Mutex<String>,
    is_held: AtomicBool,
    released: Condvar,
}

impl Confined {
    /// Runs `prepare` in a shell that then becomes the worker, and waits until the worker serves its metrics.
    pub fn start(yaml: &str, prepare: &str, directory: &Path) -> Confined {
        let config = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(config.path(), yaml).expect("written");
        let mut child = Command::new("sh")
            .args(["-c", &format!("{prepare}\nexec \"$@\""), "sh", &binary(), "run", "-c"])
            .arg(config.path())
            .current_dir(directory)
            .envs(["HOME", "TMPDIR"].map(|name| (name, directory)))
            .stdin(Stdio::null())
            // No thread reads this pipe.
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process");
        let log = Arc::new(Log::default());
        let (kept, stderr) = (Arc::clone(&log), child.stderr.take().expect("a pipe"));
        std::thread::spawn(move || kept.fill(stderr));
        let mut confined = Confined { child, address: String::new(), log, _config: config };
        let deadline = Instant::now() + DEADLINE;
        confined.address = loop {
            let ended = confined.child.try_wait().expect("a child");
            assert!(ended.is_none() && Instant::now() < deadline, "it does not start:\n{}", confined.log());
            let log = confined.log();
            let rest = log.split_once("address=").map(|(_, rest)| rest.to_owned());
            if let Some(rest) = rest.filter(|rest| rest.contains(char::is_whitespace)) {
                break rest.split_whitespace().next().expect("an address").to_owned();
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        confined
    }

    pub fn log(&self) -> String {
        self.log.text.lock().expect("no panic").clone()
    }

    /// Leaves the log's pipe unread from now on.
    pub fn hold_log(&self) {
        self.log.is_held.store(true, Ordering::SeqCst);
    }

    pub fn release_log(&self) {
        self.log.is_held.store(false, Ordering::SeqCst);
        self.log.released.notify_all();
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    pub async fn metrics(&self) -> String {
        let reply = reqwest::get(format!("http://{}/metrics", self.address)).await;
        let reply = reply.unwrap_or_else(|error| panic!("no metrics: {error}\n{}", self.log()));
        reply.text().await.expect("text")
    }

    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        metric(&self.metrics().await, name, labels)
    }

    /// Returns a value of `/proc/PID/status`, in MiB.
    pub fn memory(&self, name: &str) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running worker");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let kib: f64 = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).expect("a number");
        kib / 1024.0
    }

    /// Returns the user and system time so far, in seconds. Linux counts in hundredths of a second.
    pub fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("a running worker");
        let (_, fields) = stat.rsplit_once(')').expect("a name in parentheses");
        let fields: Vec<f64> = fields.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
        (fields[11] + fields[12]) / 100.0
    }

    /// Returns the targets of the process's open file descriptors.
    pub fn open_files(&self) -> Vec<PathBuf> {
        let links = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a running worker");
        links.filter_map(|link| std::fs::read_link(link.ok()?.path()).ok()).collect()
    }

    /// Asks the process to end and returns its exit code.
    pub async fn stop(&mut self) -> i32 {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("the kill command").success());
        let deadline = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code().unwrap_or_else(|| panic!("{status}\n{}", self.log()));
            }
            assert!(Instant::now() < deadline, "still running\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Log {
    fn fill(&self, stderr: std::process::ChildStderr) {
        // The buffer is small, so that the thread reads little ahead when the log is to be held.
        let mut lines = BufReader::with_capacity(256, stderr);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            let mut text = self.text.lock().expect("no panic");
            text.push_str(&String::from_utf8_lossy(&line));
            line.clear();
            while self.is_held.load(Ordering::SeqCst) {
                let (waited, _) = self.released.wait_timeout(text, Duration::from_millis(50)).expect("no panic");
                text = waited;
            }
        }
        drop(lines.read_to_end(&mut line));
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        let _ = (self.child.kill(), self.child.wait());
    }
}

/// A memory control group. Dropping it removes the group.
pub struct MemoryGroup {
    path: PathBuf,
}

impl MemoryGroup {
    /// Creates a group with this limit, or returns `None` if this process may not create one.
    pub fn new(bytes: u64) -> Option<MemoryGroup> {
        let (parent, limit) = match Path::new("/sys/fs/cgroup/memory").is_dir() {
            true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            false => ("/sys/fs/cgroup", "memory.max"),
        };
        let path = Path::new(parent).join(format!("sluicegate-load-{}", std::process::id()));
        std::fs::create_dir(&path).ok()?;
        let group = MemoryGroup { path };
        std::fs::write(group.path.join(limit), bytes.to_string()).ok()?;
        Some(group)
    }

    /// Returns the shell command that joins the group.
    pub fn join(&self) -> String {
        format!("echo $$ > {}", self.path.join("cgroup.procs").display())
    }

    /// Returns how often the kernel has ended a process for want of memory.
    pub fn kills(&self) -> u64 {
        let files = ["memory.oom_control", "memory.events"].map(|name| self.path.join(name));
        let text: String = files.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        let kills = text.lines().filter_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
        kills.sum()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Only an empty group can be removed, and a failed test may leave its child a moment longer.
        for _ in 0..50 {
            if std::fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
