//! Connections of those who watch: few, and closed when nothing comes of them. Whoever holds them open for nothing must not
//! use up the files that sinks need.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};

/// Open at the same time; more wait to be accepted. Two Prometheus servers, probes and a few browsers are ten.
pub const CONNECTIONS_MAX: usize = 64;

/// How long a connection may take for what it does.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the first byte of a request, or from the beginning, to the first byte of the answer.
    pub request: Duration,
    /// To take an answer.
    pub answer: Duration,
    /// Between an answer and the next request.
    pub idle: Duration,
    /// Over this age a connection is closed as soon as it is idle.
    pub whole: Duration,
}

impl Limits {
    /// A request is a few hundred bytes, an answer is there within the three seconds that brokers are given for it, and
    /// Prometheus gives a scrape ten. Idle is longer than the usual minute between two scrapes.
    pub const USUAL: Self = Self {
        request: Duration::from_secs(10),
        answer: Duration::from_secs(30),
        idle: Duration::from_secs(90),
        whole: Duration::from_secs(600),
    };
}

/// A listener with bounds.
pub struct Connections {
    listener: TcpListener,
    limits: Limits,
    room: Arc<Semaphore>,
}

impl Connections {
    pub fn new(listener: TcpListener, limits: Limits) -> Self {
        Self { listener, limits, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // Closed only when this is dropped.
        let room = self.room.clone().acquire_owned().await.ok();
        let (stream, address) = <TcpListener as Listener>::accept(&mut self.listener).await;
        let pace = Pace::new(self.limits, Instant::now());
        (Connection { stream, timer: Box::pin(sleep_until(pace.deadline())), pace, _room: room }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// What a connection is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A request comes, or is being answered.
    Request,
    /// The answer goes out.
    Answer,
    Idle,
}

/// What a connection is at, since when, and how long it may be. Reads no clock.
#[derive(Debug, Clone, Copy)]
struct Pace {
    limits: Limits,
    opened: Instant,
    stage: Stage,
    since: Instant,
}

impl Pace {
    fn new(limits: Limits, now: Instant) -> Self {
        Self { limits, opened: now, stage: Stage::Request, since: now }
    }

    fn enter(&mut self, stage: Stage, now: Instant) {
        (self.stage, self.since) = (stage, now);
    }

    /// Bytes have come. Many small ones are no more time than one large one.
    fn has_read(&mut self, now: Instant) {
        if self.stage == Stage::Idle {
            self.enter(Stage::Request, now);
        }
    }

    fn has_written(&mut self, now: Instant) {
        if self.stage != Stage::Answer {
            self.enter(Stage::Answer, now);
        }
    }

    /// Everything that was to be written is. `true` if an answer ends here.
    fn has_flushed(&mut self, now: Instant) -> bool {
        let is_over = self.stage == Stage::Answer;
        if is_over {
            self.enter(Stage::Idle, now);
        }
        is_over
    }

    /// When the connection is closed if nothing changes.
    fn deadline(&self) -> Instant {
        let Limits { request, answer, idle, whole } = self.limits;
        let age_max = self.opened + whole;
        match self.stage {
            Stage::Idle => age_max.min(self.since + idle),
            // Begun before it was too old: the answer is not cut off.
            Stage::Request => (self.since + request).min(age_max + request),
            Stage::Answer => (self.since + answer).min(age_max + request + answer),
        }
    }
}

pub struct Connection {
    stream: TcpStream,
    pace: Pace,
    timer: Pin<Box<Sleep>>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// An error once the time is over; until then whoever waits is woken by it.
    fn poll_time(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let deadline = self.pace.deadline();
        if self.timer.deadline() != deadline {
            self.timer.as_mut().reset(deadline);
        }
        self.timer.as_mut().poll(context).map(|()| io::ErrorKind::TimedOut.into())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Before the bytes are taken: who sends one at a time is never waited for.
        if let Poll::Ready(error) = self.poll_time(context) {
            return Poll::Ready(Err(error));
        }
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_ready() {
            self.pace.has_read(Instant::now());
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.pace.has_written(Instant::now());
        if let Poll::Ready(error) = self.poll_time(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        // Who waits for the next request may have been told the time of the answer.
        if flushed.is_ready() && self.pace.has_flushed(Instant::now()) && self.poll_time(context).is_ready() {
            context.waker().wake_by_ref();
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_request_has_its_time_however_its_bytes_come() {
        let opened = Instant::now();
        let mut pace = Pace::new(Limits::USUAL, opened);
        assert_eq!(pace.deadline(), opened + seconds(10));
        for second in 1..10 {
            pace.has_read(opened + seconds(second));
            pace.has_flushed(opened + seconds(second));
            assert_eq!(pace.deadline(), opened + seconds(10));
        }
        pace.has_written(opened + seconds(9));
        assert_eq!(pace.deadline(), opened + seconds(39));
        // Who takes it byte by byte has no longer.
        pace.has_written(opened + seconds(30));
        assert_eq!(pace.deadline(), opened + seconds(39));
        pace.has_flushed(opened + seconds(30));
        assert_eq!(pace.deadline(), opened + seconds(120));
        // The next one begins when its first byte is there.
        pace.has_read(opened + seconds(100));
        assert_eq!(pace.deadline(), opened + seconds(110));
    }

    #[test]
    fn an_old_connection_ends_when_it_is_idle() {
        let opened = Instant::now();
        let mut pace = Pace::new(Limits::USUAL, opened);
        pace.has_written(opened + seconds(500));
        pace.has_flushed(opened + seconds(590));
        assert_eq!(pace.deadline(), opened + seconds(600));
        pace.has_read(opened + seconds(599));
        assert_eq!(pace.deadline(), opened + seconds(609));
        pace.has_written(opened + seconds(608));
        assert_eq!(pace.deadline(), opened + seconds(638));
        pace.has_flushed(opened + seconds(637));
        assert_eq!(pace.deadline(), opened + seconds(600));
    }
}
