//! A proxy of TCP connections that loses a reply when told to: what was asked for has arrived and was carried out, and the
//! client never learns that. It can also be away.
//!
//! One thread accepts, each connection has one for each direction. Fewer than a dozen are open at the same time: those of
//! one run of the program.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crate::support::program::eventually;

/// Ends with its last connection when dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    acceptor: RefCell<Option<Acceptor>>,
}

struct Shared {
    /// The port of what is behind it.
    upstream: u16,
    /// The reply that is to be lost.
    loss: Mutex<Option<Loss>>,
    /// Replies that were lost.
    lost: AtomicUsize,
    /// Connections so far.
    count: AtomicUsize,
    /// Both ends of each connection that is open.
    open: Mutex<BTreeMap<usize, [TcpStream; 2]>>,
}

/// A request, and how its reply is known.
#[derive(Debug, Clone, Copy)]
struct Loss {
    request: &'static [u8],
    reply: &'static [u8],
    /// Requests until the one whose reply is lost, that one counted.
    left: usize,
}

/// The thread that accepts; gone while connections are refused.
struct Acceptor {
    is_ending: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Proxy {
    /// In front of what listens at this port of 127.0.0.1.
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            upstream,
            loss: Mutex::default(),
            lost: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            open: Mutex::default(),
        });
        let acceptor = Acceptor::start(listener, &shared);
        Self { shared, port, acceptor: RefCell::new(Some(acceptor)) }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Loses the reply to the nth request from now on: it is known by bytes in it, as the reply is. The connection ends
    /// with it.
    pub fn lose(&self, nth: usize, request: &'static [u8], reply: &'static [u8]) {
        *locked(&self.shared.loss) = Some(Loss { request, reply, left: nth });
    }

    /// How many replies were lost.
    pub fn lost(&self) -> usize {
        self.shared.lost.load(Ordering::SeqCst)
    }

    /// Ends all connections, and lets nobody in.
    pub fn refuse(&self) {
        let Some(acceptor) = self.acceptor.borrow_mut().take() else {
            return;
        };
        acceptor.is_ending.store(true, Ordering::SeqCst);
        // It waits for a connection; this one is its last.
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok();
        acceptor.thread.join().ok();
        for [client, server] in std::mem::take(&mut *locked(&self.shared.open)).into_values() {
            end(&client, &server);
        }
    }

    /// Is there again, at the same port.
    pub fn accept(&self) {
        let mut acceptor = self.acceptor.borrow_mut();
        if acceptor.is_some() {
            return;
        }
        // A connection of somebody else may have got the port meanwhile.
        let mut listener = None;
        eventually("the proxy's port is free", || {
            listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).ok();
            listener.is_some()
        });
        *acceptor = listener.map(|listener| Acceptor::start(listener, &self.shared));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.refuse();
    }
}

impl Acceptor {
    fn start(listener: TcpListener, shared: &Arc<Shared>) -> Self {
        let is_ending = Arc::new(AtomicBool::new(false));
        let (ending, shared) = (is_ending.clone(), shared.clone());
        let thread = thread::spawn(move || serve(&listener, &shared, &ending));
        Self { is_ending, thread }
    }
}

fn serve(listener: &TcpListener, shared: &Arc<Shared>, is_ending: &AtomicBool) {
    for client in listener.incoming() {
        if is_ending.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else {
            continue;
        };
        // If nobody is behind the proxy, the client's connection ends here.
        let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, shared.upstream)) else {
            continue;
        };
        let number = shared.count.fetch_add(1, Ordering::SeqCst);
        // Before the next one is accepted: whoever ends this thread also ends what it has let in.
        if shared.remember(number, &client, &server).is_ok() {
            let shared = shared.clone();
            thread::spawn(move || shared.carry(number, &client, &server));
        }
    }
}

impl Shared {
    fn remember(&self, number: usize, client: &TcpStream, server: &TcpStream) -> io::Result<()> {
        let ends = [client.try_clone()?, server.try_clone()?];
        locked(&self.open).insert(number, ends);
        Ok(())
    }

    /// Carries bytes in both directions until one end is gone.
    fn carry(&self, number: usize, client: &TcpStream, server: &TcpStream) {
        // Set once the request has come whose reply is to be lost.
        let awaited = Mutex::new(None);
        thread::scope(|scope| {
            scope.spawn(|| self.requests(client, server, &awaited));
            self.replies(server, client, &awaited);
        });
        locked(&self.open).remove(&number);
    }

    fn requests(
        &self,
        mut client: &TcpStream,
        mut server: &TcpStream,
        awaited: &Mutex<Option<&'static [u8]>>,
    ) {
        let mut buffer = [0; 16 << 10];
        let mut rest = Vec::new();
        while let Ok(count) = client.read(&mut buffer)
            && count > 0
        {
            let bytes = &buffer[..count];
            if let Some(reply) = self.awaited(&mut rest, bytes) {
                *locked(awaited) = Some(reply);
            }
            if server.write_all(bytes).is_err() {
                break;
            }
        }
        end(client, server);
    }

    fn replies(
        &self,
        mut server: &TcpStream,
        mut client: &TcpStream,
        awaited: &Mutex<Option<&'static [u8]>>,
    ) {
        let mut buffer = [0; 16 << 10];
        let mut rest = Vec::new();
        while let Ok(count) = server.read(&mut buffer)
            && count > 0
        {
            let bytes = &buffer[..count];
            let reply = *locked(awaited);
            if reply.is_some_and(|reply| occurrences(&mut rest, bytes, reply) > 0) {
                self.lost.fetch_add(1, Ordering::SeqCst);
                break;
            }
            if client.write_all(bytes).is_err() {
                break;
            }
        }
        end(client, server);
    }

    /// The reply that is to be lost, if its request is among these bytes.
    fn awaited(&self, rest: &mut Vec<u8>, bytes: &[u8]) -> Option<&'static [u8]> {
        let mut loss = locked(&self.loss);
        let Loss { request, reply, left } = (*loss)?;
        let found = occurrences(rest, bytes, request);
        if found < left {
            *loss = Some(Loss { request, reply, left: left - found });
            return None;
        }
        *loss = None;
        Some(reply)
    }
}

fn end(client: &TcpStream, server: &TcpStream) {
    // Either may be gone.
    client.shutdown(Shutdown::Both).ok();
    server.shutdown(Shutdown::Both).ok();
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often `wanted` is in a stream of which `bytes` come next. `rest` is what came before, as far as it can still be a
/// beginning.
fn occurrences(rest: &mut Vec<u8>, bytes: &[u8], wanted: &[u8]) -> usize {
    rest.extend_from_slice(bytes);
    let found = rest.windows(wanted.len()).filter(|window| *window == wanted).count();
    let kept = rest.len().min(wanted.len() - 1);
    rest.drain(..rest.len() - kept);
    found
}

#[test]
fn what_is_cut_by_reads_is_found_once() {
    let mut rest = Vec::new();
    let found: Vec<usize> = [&b"POST /\r\nPO"[..], b"S", b"T /", b"POST POST "]
        .map(|bytes| occurrences(&mut rest, bytes, b"POST "))
        .into();
    assert_eq!(found, [1, 0, 1, 2]);
}

#[test]
fn the_reply_that_was_asked_for_is_lost_and_no_other() {
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let proxy = Proxy::start(upstream.local_addr().unwrap().port());
    // Answers each request of each connection, and counts them.
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    thread::spawn(move || {
        for stream in upstream.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4];
            while stream.read_exact(&mut request).is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
                if stream.write_all(b"done").is_err() {
                    break;
                }
            }
        }
    });
    let ask = |stream: &mut TcpStream| -> io::Result<()> {
        stream.write_all(b"ask!")?;
        stream.read_exact(&mut [0; 4])
    };
    let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port()));
    proxy.lose(2, b"ask!", b"done");
    let mut stream = connect().unwrap();
    ask(&mut stream).unwrap();
    assert_eq!(proxy.lost(), 0);
    assert!(ask(&mut stream).is_err());
    assert_eq!((proxy.lost(), taken.load(Ordering::SeqCst)), (1, 2));
    let mut stream = connect().unwrap();
    ask(&mut stream).unwrap();
    proxy.refuse();
    assert!(ask(&mut stream).is_err() && connect().is_err());
    proxy.accept();
    ask(&mut connect().unwrap()).unwrap();
    assert_eq!(proxy.lost(), 1);
}
