//! Asks a service that is being started whether it takes requests.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long one answer may take while waiting for a service to become ready.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), PROBE_LIMIT)?;
    stream.set_read_timeout(Some(PROBE_LIMIT))?;
    stream.set_write_timeout(Some(PROBE_LIMIT))?;
    Ok(stream)
}

/// Asks for the subjects of the registry whose API begins at `base`.
pub fn registry_is_ready(port: u16, base: &str) -> io::Result<bool> {
    let mut stream = connect(port)?;
    let request = format!("GET {base}/subjects HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer.starts_with(b"HTTP/1.1 200 "))
}

/// Asks for the metadata of all topics (API 3, version 2) and judges the answer.
pub fn kafka_is_ready(port: u16, cluster: &str) -> io::Result<bool> {
    const REQUEST: [u8; 18] = [
        0, 0, 0, 14, // length of the rest
        0, 3, 0, 2, // API and version
        0, 0, 0, 7, // correlation id
        0xff, 0xff, // no client id
        0xff, 0xff, 0xff, 0xff, // all topics
    ];
    const MAX_ANSWER: usize = 16 << 20;
    let mut stream = connect(port)?;
    stream.write_all(&REQUEST)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_ANSWER {
        return Ok(false);
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    Ok(Fields(&answer).describes_ready_broker(port, cluster).unwrap_or(false))
}

/// The rest of a Kafka message; `None` from a method means that it ends too early.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Whether this is our cluster (on our port may be another test's), with our broker in service and every partition
    /// led by it.
    fn describes_ready_broker(&mut self, port: u16, cluster: &str) -> Option<bool> {
        let mut good = self.int32()? == 7;
        let mut registered = false;
        for _ in 0..self.int32()? {
            let (_id, _host, broker_port, _rack) =
                (self.int32()?, self.string()?, self.int32()?, self.string()?);
            registered |= broker_port == i32::from(port);
        }
        good &= registered;
        good &= self.string()? == cluster.as_bytes();
        let _controller = self.int32()?;
        for _ in 0..self.int32()? {
            let (error, _name, _internal) = (self.int16()?, self.string()?, self.take(1)?);
            good &= error == 0;
            for _ in 0..self.int32()? {
                let (error, _partition, leader) = (self.int16()?, self.int32()?, self.int32()?);
                good &= error == 0 && leader >= 0;
                let (_replicas, _in_sync) = (self.int32s()?, self.int32s()?);
            }
        }
        Some(good && self.0.is_empty())
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn int16(&mut self) -> Option<i16> {
        Some(i16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn int32(&mut self) -> Option<i32> {
        Some(i32::from_be_bytes(self.take(4)?.try_into().ok()?))
    }

    /// Null is taken as empty.
    fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.int16()?;
        self.take(usize::try_from(length).unwrap_or(0))
    }

    fn int32s(&mut self) -> Option<&'a [u8]> {
        let count = usize::try_from(self.int32()?).ok()?;
        self.take(count.checked_mul(4)?)
    }
}

/// A service of a test's own, to be stopped in the middle. Dropping it ends it.
pub trait Stoppable: Send {
    /// Shuts it down in good order.
    fn stop(&mut self);
    /// Ends it at once, as a crash would (SIGKILL).
    fn kill(&mut self);
    /// Starts it again on the same port and data, having stopped it if it still ran, and waits until it takes requests.
    fn restart(&mut self) -> Result<(), String>;
}
