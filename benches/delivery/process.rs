//! The measured processes: each on a core of its own, with its CPU time and memory as Linux counts them.

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::ROLE;

/// The core of the measured process, and the core of everything else.
const CORE: &str = "1";
const OTHER_CORE: &str = "0";

/// The figures of one measurement.
#[derive(Clone, Copy)]
pub struct Figures {
    /// The events, requests or rows a second.
    pub rate: f64,
    /// The user and system CPU time of the process, per million of these.
    pub cpu_seconds_per_million: f64,
    /// The most memory that was resident at once.
    pub peak_mib: f64,
}

/// Moves a running process to the core of everything else.
pub fn pin(pid: &str) {
    let pinned = Command::new("taskset").args(["-acp", OTHER_CORE, pid]).stdout(Stdio::null()).status();
    assert!(pinned.is_ok_and(|status| status.success()), "cannot pin {pid}: is taskset installed?");
}

/// Returns a command for a program on the core of the measured process.
pub fn pinned(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", CORE, program]);
    command
}

/// Returns the user and system CPU time of a process so far; Linux counts in hundredths of a second.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<f64> = after_name.split_whitespace().map(|field| field.parse().unwrap_or(0.0)).collect();
    (fields[11] + fields[12]) / 100.0
}

/// Returns the most memory that has been resident at once.
pub fn peak_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    peak.and_then(|kib| kib.trim().parse::<f64>().ok()).expect("a number of KiB") / 1024.0
}

/// Runs this program in another role, in a process of its own, and returns the figures that it measures.
pub fn child(role: &str, arguments: &[(&str, &str)]) -> Figures {
    let program = std::env::current_exe().expect("a path");
    let output = pinned(&program.to_string_lossy())
        .env(ROLE, role)
        .envs(arguments.iter().copied())
        .output()
        .expect("taskset is installed");
    assert!(output.status.success(), "{role}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
    let mut next = || numbers.next().expect("three numbers");
    Figures { rate: next(), cpu_seconds_per_million: next(), peak_mib: next() }
}

/// Prints the figures that `child` reads.
pub fn print_figures(done: usize, began: Instant, cpu_before: f64) {
    let (took, pid) = (began.elapsed().as_secs_f64(), std::process::id());
    let cpu = cpu_seconds(pid) - cpu_before;
    println!("{} {} {}", done as f64 / took, cpu * 1e6 / done as f64, peak_mib(pid));
}

/// A process that is killed when a measurement fails.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
