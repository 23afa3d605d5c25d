//! A child process, and what it cost by the kernel's own count.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// Longer than any child takes: what hangs, fails.
const LIMIT: Duration = Duration::from_secs(1800);

/// How often a child is looked at: as far off may a wall time be.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Lines of a failed child's stderr that are shown.
const LOG_LINES: usize = 20;

/// What a process used from its start to its end.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// Seconds of all its threads, user and system.
    pub cpu: f64,
    /// Seconds.
    pub wall: f64,
    /// At least that of the process that started it, as the kernel counts: so that one has to stay small.
    pub peak_mib: f64,
}

/// A process that was started here. Dropped before its end, it is killed.
pub struct Running {
    child: Child,
    started: Instant,
    is_reaped: bool,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// What it prints goes into files of `dir`.
    pub fn start(command: &mut Command, dir: &Path) -> anyhow::Result<Self> {
        let (stdout, stderr) = (dir.join("stdout"), dir.join("stderr"));
        command.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let started = Instant::now();
        let child = command.spawn().context("failed to start a child")?;
        Ok(Self { child, started, is_reaped: false, stdout, stderr })
    }

    /// Waits for its end, which has to be a good one: its cost and what it printed.
    pub fn wait(mut self) -> anyhow::Result<(Cost, String)> {
        loop {
            if let Some((status, cost)) = self.reap()? {
                ensure!(status.success(), "a child ended with {status}:\n{}", self.log());
                return Ok((cost, fs::read_to_string(&self.stdout)?));
            }
            self.look_again_later()?;
        }
    }

    /// Waits until `is_so`; the seconds since the start.
    pub fn wait_until(&mut self, mut is_so: impl FnMut() -> io::Result<bool>) -> anyhow::Result<f64> {
        while !is_so()? {
            if let Some((status, _)) = self.reap()? {
                bail!("a child ended early with {status}:\n{}", self.log());
            }
            self.look_again_later()?;
        }
        Ok(self.started.elapsed().as_secs_f64())
    }

    /// SIGTERM, after which it has to end well.
    #[expect(unsafe_code, reason = "std sends no other signal than SIGKILL")]
    pub fn terminate(self) -> anyhow::Result<()> {
        // SAFETY: two numbers, no memory. The child has not been reaped, so the id is still its own.
        let sent = unsafe { libc::kill(self.child.id() as libc::pid_t, libc::SIGTERM) };
        ensure!(sent == 0, "failed to end a child: {}", io::Error::last_os_error());
        self.wait()?;
        Ok(())
    }

    fn reap(&mut self) -> io::Result<Option<(ExitStatus, Cost)>> {
        let Some((status, usage)) = wait4(self.child.id())? else {
            return Ok(None);
        };
        self.is_reaped = true;
        let cost = Cost {
            cpu: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            wall: self.started.elapsed().as_secs_f64(),
            peak_mib: usage.ru_maxrss as f64 / MAXRSS_PER_MIB,
        };
        Ok(Some((status, cost)))
    }

    fn look_again_later(&self) -> anyhow::Result<()> {
        if self.started.elapsed() > LIMIT {
            bail!("a child did not come to its end in {} s:\n{}", LIMIT.as_secs(), self.log());
        }
        #[expect(clippy::disallowed_methods, reason = "the one place where the benchmark waits")]
        std::thread::sleep(LOOK_EVERY);
        Ok(())
    }

    /// The end of its stderr.
    fn log(&self) -> String {
        let log = fs::read(&self.stderr).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_reaped {
            // Both fail only if it has just ended by itself.
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// Linux counts in KiB, macOS in bytes.
const MAXRSS_PER_MIB: f64 = if cfg!(target_os = "macos") { 1024.0 * 1024.0 } else { 1024.0 };

fn seconds(time: libc::timeval) -> f64 {
    time.tv_sec as f64 + time.tv_usec as f64 / 1e6
}

/// `None` while the child lives. Afterwards its id is free, and nothing may be done by it.
#[expect(unsafe_code, reason = "std tells no usage of a single child")]
fn wait4(id: u32) -> io::Result<Option<(ExitStatus, libc::rusage)>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to memory of ours, of the types that the kernel fills in.
    let reaped = unsafe { libc::wait4(id as libc::pid_t, &mut status, libc::WNOHANG, usage.as_mut_ptr()) };
    match reaped {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        // SAFETY: it was zeroed, and zeros are numbers.
        _ => Ok(Some((ExitStatus::from_raw(status), unsafe { usage.assume_init() }))),
    }
}
