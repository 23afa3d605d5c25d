//! The real program, in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine: what hangs, fails.
const DEADLINE: Duration = Duration::from_secs(120);

const PROGRAM: &str = env!("CARGO_BIN_EXE_sidestream");

/// A working directory with a routes file.
pub struct Workplace {
    pub dir: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Workplace {
    pub fn new(routes: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("routes.yaml"), routes).unwrap();
        Self { dir, variables: Vec::new() }
    }

    /// The program sees these variables.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(arguments);
        self.placed(command)
    }

    fn placed(&self, mut command: Command) -> Command {
        command.current_dir(self.dir.path()).env("RUST_LOG", "info");
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        finished(self.command(arguments), arguments)
    }

    /// As [`Workplace::run`], with one more variable.
    pub fn run_with(&self, (name, value): (&str, &str), arguments: &[&str]) -> Finished {
        let mut command = self.command(arguments);
        command.env(name, value);
        finished(command, arguments)
    }

    /// As [`Workplace::run`] on a terminal, where the log is text. What is printed and what is logged come as one.
    pub fn run_on_terminal(&self, arguments: &[&str]) -> Finished {
        let words = [PROGRAM].into_iter().chain(arguments.iter().copied());
        let line: Vec<String> = words.map(|word| format!("'{word}'")).collect();
        // Of util-linux, as `setpriv` is.
        let mut command = Command::new("script");
        command.args(["-q", "-e", "-c", &line.join(" "), "/dev/null"]).stdin(Stdio::null());
        finished(self.placed(command), arguments)
    }

    /// Starts the program as a service; its log goes to a file.
    pub fn start(&self, arguments: &[&str]) -> Service {
        let log = self.path("service.log");
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = self.command(arguments).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Service { child, log }
    }
}

/// Lets a program run to its end.
pub fn finished(mut command: Command, arguments: &[&str]) -> Finished {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = child.id();
    let (done_tx, done_rx) = std::sync::mpsc::channel();
    std::thread::spawn(move || done_tx.send(child.wait_with_output()));
    match done_rx.recv_timeout(DEADLINE) {
        Ok(output) => Finished::from(output.unwrap()),
        Err(_) => {
            signal(id, "KILL");
            let output = done_rx.recv().unwrap().unwrap();
            panic!("{arguments:?} did not end in time: {}", Finished::from(output).stderr);
        }
    }
}

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Finished {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Finished {
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self
    }
}

/// A running program; killed when dropped.
pub struct Service {
    child: Child,
    log: PathBuf,
}

impl Service {
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal: `STOP` freezes it, `CONT` lets it go on.
    pub fn send(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// SIGTERM, and the exit code.
    pub fn terminate(&mut self) -> Option<i32> {
        signal(self.child.id(), "TERM");
        let mut code = None;
        eventually("the service ends", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.and_then(|status| status.code())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have ended already.
        if self.child.kill().is_ok() {
            self.child.wait().unwrap();
        }
    }
}

fn signal(id: u32, name: &str) {
    Command::new("kill").args([&format!("-{name}"), &id.to_string()]).status().unwrap();
}

/// Waits until `is_so`; the only sleep of the tests.
#[track_caller]
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        pause(Duration::from_millis(20));
    }
}

/// Lets the program run for a while before it is disturbed: what happens then must hold at any moment.
pub fn pause(time: Duration) {
    #[expect(clippy::disallowed_methods, reason = "the one place where tests wait")]
    std::thread::sleep(time);
}

/// The files below a directory whose names end in `suffix`.
pub fn files(dir: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.to_string_lossy().ends_with(suffix) {
                found.push(path);
            }
        }
    }
    found
}
