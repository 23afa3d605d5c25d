//! An S3-compatible server for the tests: versitygw, one process on a free port of 127.0.0.1, whose objects are files in a
//! temporary folder.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use super::probe::Stoppable;
use super::services::{
    SCRIPT, Service, await_free, free_ports, mortal, retry_if_port_taken, services_folder,
};

pub const ACCESS_KEY_ID: &str = "tests";

/// It must not be seen anywhere.
pub const SECRET_ACCESS_KEY: &str = "s3cr3t-canary";

pub const BUCKET: &str = "lake";

fn program() -> Result<PathBuf, String> {
    let program = services_folder()?.join("bin/versitygw");
    if program.is_file() {
        return Ok(program);
    }
    Err(format!("no {}: install Go, then run {SCRIPT}", program.display()))
}

/// Whether one can be started here; if not, why, with what to do about it.
pub fn are_there() -> Result<(), String> {
    program().map(drop)
}

/// A server with one empty bucket.
pub struct Objects {
    service: Service,
    program: PathBuf,
    port: u16,
}

impl Objects {
    pub fn start() -> Result<Self, String> {
        let program = program()?;
        retry_if_port_taken(|| {
            let [port] = free_ports()?;
            let mut objects = Self { service: Service::new("objects")?, program: program.clone(), port };
            let bucket = objects.bucket();
            std::fs::create_dir_all(&bucket)
                .map_err(|e| format!("cannot make the folder {}: {e}", bucket.display()))?;
            objects.run()?;
            Ok(objects)
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The bucket's objects, each a file at its key. Uploads that are not completed are in a hidden folder of it.
    pub fn bucket(&self) -> PathBuf {
        self.service.folder().join("data").join(BUCKET)
    }

    fn run(&mut self) -> Result<(), String> {
        let mut server = mortal(&self.program.to_string_lossy());
        server.env("ROOT_ACCESS_KEY", ACCESS_KEY_ID).env("ROOT_SECRET_KEY", SECRET_ACCESS_KEY);
        server.args(["--quiet", "--port", &format!("127.0.0.1:{}", self.port), "posix"]);
        server.arg(self.service.folder().join("data"));
        let port = self.port;
        self.service.run(server, |_| is_ready(port).unwrap_or(false))
    }
}

/// It refuses who does not log in, and says who it is.
fn is_ready(port: u16) -> io::Result<bool> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer.starts_with("HTTP/1.1 403") && answer.contains("VERSITYGW"))
}

impl Stoppable for Objects {
    fn stop(&mut self) {
        self.service.stop();
    }

    fn kill(&mut self) {
        self.service.kill();
    }

    fn restart(&mut self) -> Result<(), String> {
        self.stop();
        await_free(&[self.port]);
        self.run()
    }
}
