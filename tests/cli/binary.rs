//! Runs the binary to its end or in the background, with configuration files of its own.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::DEADLINE;

/// Returns a command for the binary, without the variables of the process that runs the tests.
pub fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluicegate"));
    command.env_clear().stdin(Stdio::null());
    command
}

/// The exit code and the output of a run.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn run(args: &[&str]) -> Ended {
    ended(binary().args(args))
}

pub fn ended(command: &mut Command) -> Ended {
    let output = command.output().expect("the binary starts");
    Ended {
        code: output.status.code().expect("no signal"),
        stdout: String::from_utf8(output.stdout).expect("text"),
        stderr: String::from_utf8(output.stderr).expect("text"),
    }
}

/// A configuration file in a folder of its own.
pub struct ConfigFile {
    pub folder: TempDir,
}

impl ConfigFile {
    pub fn new(yaml: &str) -> ConfigFile {
        let file = ConfigFile { folder: tempfile::tempdir().expect("a folder") };
        fs::write(file.path(), yaml).expect("written");
        file
    }

    /// Writes the documented file, with tokens that exist.
    pub fn documented() -> ConfigFile {
        let documented = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/sluicegate.yaml");
        let text = fs::read_to_string(documented).expect("the documented file");
        let file = ConfigFile::new("");
        let secrets = file.folder.path();
        for id in ["vitally", "vibefollow", "userpilot"] {
            fs::write(secrets.join(id), "MARKED\n").expect("written");
        }
        fs::write(file.path(), text.replace("/run/secrets", &secrets.display().to_string())).expect("written");
        file
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("sluicegate.yaml")
    }

    pub fn run(&self, args: &[&str]) -> Ended {
        ended(binary().arg("-c").arg(self.path()).args(args))
    }
}

/// Writes a configuration with one destination that reads `identify` from these brokers.
pub fn reading_from(brokers: &str) -> ConfigFile {
    ConfigFile::new(&format!(
        "{{kafka: {{brokers: '{brokers}'}}, destinations: {{userpilot: {{type: userpilot, token: t0}}}}}}"
    ))
}

/// Returns an address that nothing listens on.
pub fn closed_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").to_string()
}

/// A process that is killed if the test fails.
pub struct Running(pub Child);

impl Running {
    pub fn terminate(&self) {
        let kill = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        assert!(kill.expect("kill starts").success());
    }

    /// Returns the exit code, once the process has ended.
    pub fn wait(&mut self) -> i32 {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().expect("a child") {
                return status.code().expect("no signal");
            }
            assert!(started.elapsed() < DEADLINE, "still running");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After a pass the process is already gone.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
