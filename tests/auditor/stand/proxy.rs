//! An HTTP proxy in front of the schema registry that answers wrongly when told to.
//!
//! One thread accepts, each connection has one of its own and carries one request: with nothing kept alive, a fault
//! holds from the next request on.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::services::{STOP_LIMIT, free_ports, wait_until};

/// Longer than the program waits for an answer.
pub const SLOW: Duration = Duration::from_secs(30);

/// What a refusal asks for; shorter than the program's own longest pause, so that a test sees it obeyed or not.
pub const RETRY_AFTER: Duration = Duration::from_secs(3);

/// Bytes of an answer that no schema has.
const HUGE: usize = 50 << 20;

/// Connections at the same time; the program asks for 16 ids at most.
const CONNECTIONS_MAX: usize = 64;

/// Bytes of a request's head.
const HEAD_MAX: usize = 64 << 10;

/// Requests that are remembered.
const REMEMBERED_MAX: usize = 100_000;

/// How the proxy answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As the registry does.
    Pass,
    /// Connections are refused.
    Down,
    /// Status 500.
    Failing,
    /// Status 429, with `Retry-After`.
    Crowded,
    /// Status 401.
    Unauthorised,
    /// The right answer, after [`SLOW`].
    Slow,
    /// Status 200 and a page that is no JSON.
    Garbage,
    /// Status 200 and 50 MB of JSON.
    Huge,
    /// Status 404 for all schema ids: a follower of the registry that lags behind.
    Missing,
}

/// Ends with its last connection when dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    /// The path of the registry's API.
    base: String,
    acceptor: Option<Acceptor>,
}

struct Shared {
    /// The registry's host and port.
    upstream: String,
    mode: Mutex<Mode>,
    /// The paths that were asked for, oldest first.
    asked: Mutex<Vec<String>>,
    connections: AtomicUsize,
}

/// The thread that accepts; gone while connections are to be refused.
struct Acceptor {
    is_ending: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Proxy {
    /// A proxy of the registry whose API is at `url`, passing everything.
    pub fn start(url: &str) -> Result<Proxy, String> {
        let address = url.strip_prefix("http://").ok_or_else(|| format!("`{url}` is not http"))?;
        let (upstream, base) = match address.find('/') {
            Some(at) => address.split_at(at),
            None => (address, ""),
        };
        let [port] = free_ports()?;
        let shared = Shared {
            upstream: upstream.to_owned(),
            mode: Mutex::new(Mode::Pass),
            asked: Mutex::default(),
            connections: AtomicUsize::new(0),
        };
        let mut proxy = Proxy { shared: Arc::new(shared), port, base: base.to_owned(), acceptor: None };
        proxy.accept()?;
        Ok(proxy)
    }

    /// The base URL that stands for the registry's.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}{}", self.port, self.base)
    }

    /// From the next request on; those that are being answered slowly are cut off.
    pub fn set(&mut self, mode: Mode) -> Result<(), String> {
        *self.shared.mode.lock().unwrap_or_else(PoisonError::into_inner) = mode;
        if mode == Mode::Down {
            self.refuse();
            return Ok(());
        }
        self.accept()
    }

    /// Requests so far whose path ends in `end`, but for a query.
    pub fn asked(&self, end: &str) -> usize {
        let asked = self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |path: &&String| path.split('?').next().is_some_and(|path| path.ends_with(end));
        asked.iter().filter(is_it).count()
    }

    fn accept(&mut self) -> Result<(), String> {
        if self.acceptor.is_some() {
            return Ok(());
        }
        // A connection of somebody else may have got the port while nobody listened.
        let mut listener = Err(io::Error::other("not tried"));
        wait_until(Instant::now() + STOP_LIMIT, || {
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port));
            listener.is_ok()
        });
        let listener = listener.map_err(|e| format!("the proxy cannot listen at port {}: {e}", self.port))?;
        let is_ending = Arc::new(AtomicBool::new(false));
        let (shared, ending) = (self.shared.clone(), is_ending.clone());
        let thread = thread::spawn(move || serve(&listener, &shared, &ending));
        self.acceptor = Some(Acceptor { is_ending, thread });
        Ok(())
    }

    /// Closes the port.
    fn refuse(&mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            acceptor.is_ending.store(true, Ordering::SeqCst);
            // It waits for a connection; this one is its last.
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.port));
            TcpStream::connect_timeout(&address, STOP_LIMIT).ok();
            acceptor.thread.join().ok();
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        *self.shared.mode.lock().unwrap_or_else(PoisonError::into_inner) = Mode::Down;
        self.refuse();
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>, is_ending: &AtomicBool) {
    for stream in listener.incoming() {
        if is_ending.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else {
            continue;
        };
        if shared.connections.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            shared.connections.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let shared = shared.clone();
        thread::spawn(move || {
            // Clients that have given up are no concern of ours.
            shared.answer(stream).ok();
            shared.connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        *self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(SLOW))?;
        stream.set_write_timeout(Some(SLOW))?;
        let Some(request) = read_request(&mut stream)? else {
            return Ok(());
        };
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.len() < REMEMBERED_MAX {
                asked.push(request.path.clone());
            }
        }
        let mode = self.mode();
        match mode {
            Mode::Pass => return self.forward(&request, &mut stream),
            // The acceptor has let it in just before it was told.
            Mode::Down => {}
            Mode::Failing => refuse(&mut stream, "500 Internal Server Error", "", "oops")?,
            Mode::Crowded => {
                let header = format!("Retry-After: {}\r\n", RETRY_AFTER.as_secs());
                refuse(&mut stream, "429 Too Many Requests", &header, "slower, please")?;
            }
            Mode::Unauthorised => refuse(&mut stream, "401 Unauthorized", "", "who are you?")?,
            Mode::Slow => {
                if !wait_until(Instant::now() + SLOW, || self.mode() != mode) {
                    return self.forward(&request, &mut stream);
                }
            }
            Mode::Garbage => refuse(&mut stream, "200 OK", "", "<html>back soon</html>")?,
            Mode::Huge => huge(&mut stream)?,
            Mode::Missing if request.path.contains("/schemas/ids/") => {
                let body = r#"{"error_code":40403,"message":"Schema not found"}"#;
                refuse(&mut stream, "404 Not Found", "", body)?;
            }
            Mode::Missing => return self.forward(&request, &mut stream),
        }
        stream.shutdown(Shutdown::Both)
    }

    fn forward(&self, request: &Request, stream: &mut TcpStream) -> io::Result<()> {
        let mut upstream = TcpStream::connect(self.upstream.as_str())?;
        upstream.set_read_timeout(Some(SLOW))?;
        let host = &self.upstream;
        let head = format!("{}\r\nHost: {host}\r\nConnection: close\r\n", request.line);
        upstream.write_all(head.as_bytes())?;
        for header in &request.headers {
            upstream.write_all(format!("{header}\r\n").as_bytes())?;
        }
        upstream.write_all(b"\r\n")?;
        upstream.write_all(&request.body)?;
        io::copy(&mut upstream, stream)?;
        stream.shutdown(Shutdown::Both)
    }
}

/// A request, without the headers that are about the connection.
struct Request {
    line: String,
    path: String,
    headers: Vec<String>,
    body: Vec<u8>,
}

/// `None` if the connection ends before a request does.
fn read_request(stream: &mut TcpStream) -> io::Result<Option<Request>> {
    const END: &[u8] = b"\r\n\r\n";
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    let end = loop {
        if let Some(end) = bytes.windows(END.len()).position(|window| window == END) {
            break end;
        }
        let count = stream.read(&mut chunk)?;
        if count == 0 || bytes.len() > HEAD_MAX {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk[..count]);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut body = bytes.split_off(end + END.len());
    let mut lines = head.split("\r\n").map(str::to_owned);
    let line = lines.next().unwrap_or_default();
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = Vec::new();
    let mut length = 0;
    for header in lines {
        let (name, value) = header.split_once(':').unwrap_or((header.as_str(), ""));
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap_or(0);
        }
        if !name.eq_ignore_ascii_case("host") && !name.eq_ignore_ascii_case("connection") {
            headers.push(header);
        }
    }
    // Schemas are small; more than this is not one.
    let missing = usize::min(length, HUGE).saturating_sub(body.len());
    let mut rest = vec![0; missing];
    stream.read_exact(&mut rest)?;
    body.append(&mut rest);
    Ok(Some(Request { line, path, headers, body }))
}

fn refuse(stream: &mut TcpStream, status: &str, headers: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    let answer =
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}");
    stream.write_all(answer.as_bytes())
}

/// A schema that never ends; whoever has read enough hangs up.
fn huge(stream: &mut TcpStream) -> io::Result<()> {
    let (before, after) = (r#"{"schema":""#, r#""}"#);
    let length = before.len() + HUGE + after.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{before}");
    stream.write_all(head.as_bytes())?;
    let filling = vec![b'x'; 1 << 20];
    for _ in 0..HUGE / filling.len() {
        stream.write_all(&filling)?;
    }
    stream.write_all(after.as_bytes())
}
