//! A PostgreSQL for the tests: one process with its children on a free port of 127.0.0.1, its data in a temporary folder.
//!
//! Installed by the system (Debian: `apt install postgresql`); its programs lie in a folder of their version, not on the
//! path. It refuses root, so root starts it as the user `postgres`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::probe::Stoppable;
use super::services::{
    PORT_TAKEN, STOP_LIMIT, Service, await_free, free_ports, mortal, retry_if_port_taken, signal, wait_until,
};

/// Where Debian's packages put the programs: `/usr/lib/postgresql/<version>/bin`.
const VERSIONS: &str = "/usr/lib/postgresql";

/// Whom it runs as if we are root.
const USER: &str = "postgres";

/// In its log once it takes connections.
const READY: &str = "database system is ready to accept connections";

/// After a crash, until the last of its children has noticed.
const STILL_THERE: &str = "is still in use";

/// Logical decoding for change data capture; no waiting for disks, as only the machine's own crash would lose what the
/// kernel has. Commits stay synchronous: what was acknowledged survives a SIGKILL.
const SETTINGS: [(&str, &str); 11] = [
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("wal_level", "logical"),
    ("max_wal_senders", "4"),
    ("max_replication_slots", "4"),
    ("shared_buffers", "32MB"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("lc_messages", "C"),
];

/// Whether a PostgreSQL can be started here; if not, why, with what to do about it.
pub fn are_there() -> Result<(), String> {
    let programs = programs()?;
    let Some(absent) = ["initdb", "postgres", "psql"].into_iter().find(|name| !programs.join(name).is_file())
    else {
        return Ok(());
    };
    Err(format!(
        "no {} in {}: install PostgreSQL (Debian: apt install postgresql)",
        absent,
        programs.display()
    ))
}

/// The folder of the newest version's programs.
fn programs() -> Result<PathBuf, String> {
    let versions = std::fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path())))
        .max_by_key(|(version, _)| *version);
    match newest {
        Some((_, path)) => Ok(path.join("bin")),
        None => Err(format!("no {VERSIONS}: install PostgreSQL (Debian: apt install postgresql)")),
    }
}

/// The user `id -u` tells, if it can be told.
fn is_root() -> bool {
    let output = Command::new("id").arg("-u").stdin(Stdio::null()).output();
    output.is_ok_and(|output| output.stdout.trim_ascii() == b"0")
}

/// An empty PostgreSQL with the databases every new one has, user `postgres`, and no password.
pub struct Postgres {
    service: Service,
    programs: PathBuf,
    is_root: bool,
    port: u16,
    url: String,
}

impl Postgres {
    /// Makes a new one, starts it and waits until it takes connections.
    pub fn start() -> Result<Postgres, String> {
        let programs = programs()?;
        let is_root = is_root();
        retry_if_port_taken(|| {
            let [port] = free_ports()?;
            let mut postgres = Postgres {
                service: Service::new("postgres")?,
                programs: programs.clone(),
                is_root,
                port,
                url: format!("postgresql://postgres@127.0.0.1:{port}/postgres"),
            };
            postgres.make()?;
            postgres.run()?;
            Ok(postgres)
        })
    }

    /// A database of it, for any client.
    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Runs statements with `psql` in one session, each a transaction of its own unless they say otherwise. Every row is
    /// a line, its columns separated by `|`.
    #[track_caller]
    pub fn sql(&self, statements: &str) -> Vec<String> {
        let mut command = self.psql();
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Dropped at the end of the statement, which is how `psql` learns that there is no more.
        child.stdin.take().unwrap().write_all(statements.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
    }

    /// A session that stays, with all that it has begun and locked, until it is dropped. `pg_stat_activity` has it by this
    /// name, which tells when a statement is done.
    pub fn session(&self, name: &str) -> Session {
        let mut command = self.psql();
        Session { child: command.env("PGAPPNAME", name).stdout(Stdio::null()).spawn().unwrap() }
    }

    /// It runs what it reads, and ends at the first error.
    fn psql(&self) -> Command {
        let mut command = Command::new(self.programs.join("psql"));
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.url.as_str(), "-f", "-"]);
        command.stdin(Stdio::piped());
        command
    }

    /// Its user has to own what is in it.
    fn home(&self) -> PathBuf {
        self.service.folder().join("home")
    }

    fn data(&self) -> PathBuf {
        self.home().join("data")
    }

    fn make(&self) -> Result<(), String> {
        let home = self.home();
        std::fs::create_dir(&home).map_err(|e| format!("cannot make the folder {}: {e}", home.display()))?;
        if self.is_root {
            finish(Command::new("chown").arg(USER).arg(&home))?;
        }
        let mut initdb = self.as_user(&self.programs.join("initdb"));
        initdb.args(["-U", "postgres", "-A", "trust", "-N", "-E", "UTF8", "--no-locale", "-D"]);
        finish(initdb.arg(self.data()))
    }

    /// A program of it under a user that it takes.
    fn as_user(&self, program: &Path) -> Command {
        if !self.is_root {
            return mortal(&program.to_string_lossy());
        }
        let mut setpriv = Command::new("setpriv");
        setpriv.arg(format!("--reuid={USER}")).arg(format!("--regid={USER}"));
        setpriv.args(["--clear-groups", "--reset-env"]);
        // The kernel forgets whom to kill when the user changes: it is told by the new one.
        setpriv.args(["setpriv", "--pdeathsig", "KILL"]);
        setpriv.arg(program);
        setpriv
    }

    fn run(&mut self) -> Result<(), String> {
        let mut postgres = self.as_user(&self.programs.join("postgres"));
        // It goes back to where it was started, which its user may not be allowed to.
        postgres.current_dir(self.home());
        postgres.arg("-D").arg(self.data()).arg("-p").arg(self.port.to_string());
        for (name, value) in SETTINGS {
            postgres.arg("-c").arg(format!("{name}={value}"));
        }
        self.service.run(postgres, |log| log.contains(READY))
    }
}

/// A session of `psql`.
pub struct Session {
    child: Child,
}

impl Session {
    /// Gives it a statement, and does not wait.
    #[track_caller]
    pub fn send(&mut self, statement: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{statement};").unwrap();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It may have ended already. The server rolls back what is open.
        if self.child.kill().is_ok() {
            self.child.wait().ok();
        }
    }
}

/// Runs a command to its end.
fn finish(command: &mut Command) -> Result<(), String> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).current_dir("/").output();
    let output = output.map_err(|e| format!("cannot run {shown}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    Err(format!("{shown} fails ({}):\n{out}{err}", output.status))
}

impl Stoppable for Postgres {
    fn stop(&mut self) {
        // Its SIGTERM waits for all clients to go; SIGINT ends them.
        if let Some(process) = self.service.process()
            && signal(process, "INT")
        {
            self.service.await_end(Instant::now() + STOP_LIMIT);
        }
        self.service.kill();
    }

    fn kill(&mut self) {
        self.service.kill();
    }

    fn restart(&mut self) -> Result<(), String> {
        self.stop();
        await_free(&[self.port]);
        let mut started = Ok(());
        wait_until(Instant::now() + STOP_LIMIT, || {
            started = self.run();
            let is_passing = |why: &String| why.contains(PORT_TAKEN) || why.contains(STILL_THERE);
            !started.as_ref().err().is_some_and(is_passing)
        });
        started
    }
}
