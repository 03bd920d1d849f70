//! The connections of the ops endpoint: bounded in number and in time, so that idle ones keep no client out.
//!
//! A connection shows that it is of use by the answers it gets. The listener closes one that gets none for long. When it has
//! the most connections that it may have, the one without an answer for the longest time makes room for the next.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

/// The most connections at once. A guess: two Prometheus servers, probes and people need a tenth of it, and a process has 1,024
/// file descriptors by default.
pub(super) const MOST: usize = 64;

/// The time that a connection may go without an answer. It is longer than Prometheus' default interval of a minute, so that its
/// connection is kept.
const LONGEST_WITHOUT_ANSWER: Duration = Duration::from_secs(65);

/// The wait after the listener closed a connection because the process has no file descriptor left. A guess: the connection's
/// task ends within microseconds.
const OUT_OF_DESCRIPTORS: Duration = Duration::from_millis(10);

/// A listener whose connections are bounded.
pub(super) struct Bounded {
    listener: TcpListener,
    began: Instant,
    open: Vec<Open>,
}

/// The listener's hold on a connection.
struct Open {
    /// The milliseconds from `began` to the last answer, or to the opening.
    answered_ms: Arc<AtomicU64>,
    close: oneshot::Sender<()>,
}

impl Bounded {
    pub fn new(listener: TcpListener) -> Bounded {
        Bounded { listener, began: Instant::now(), open: Vec::new() }
    }

    /// Closes the connection that has gone longest without an answer.
    fn close_one(&mut self) {
        let idle = (0..self.open.len()).min_by_key(|&index| self.open[index].answered_ms.load(Ordering::Relaxed));
        if let Some(index) = idle {
            // The connection may have ended meanwhile.
            let _ = self.open.swap_remove(index).close.send(());
        }
    }

    fn connection(&mut self, stream: TcpStream) -> Connection {
        self.open.retain(|open| !open.close.is_closed());
        if self.open.len() >= MOST {
            self.close_one();
        }
        let (close, closed) = oneshot::channel();
        let answered_ms = Arc::new(AtomicU64::new(millis(self.began.elapsed())));
        self.open.push(Open { answered_ms: Arc::clone(&answered_ms), close });
        let overdue = Box::pin(tokio::time::sleep(LONGEST_WITHOUT_ANSWER));
        Connection { stream, began: self.began, answered_ms, closed: Some(closed), overdue }
    }
}

impl Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => return (self.connection(stream), from),
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => {
                    self.close_one();
                    tokio::time::sleep(OUT_OF_DESCRIPTORS).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Returns true if the error is about the connection that was to be accepted, so that the next one may be good.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A connection that ends when it goes too long without an answer, or when another needs its place.
pub(super) struct Connection {
    stream: TcpStream,
    began: Instant,
    answered_ms: Arc<AtomicU64>,
    /// The listener's order to close, until it has come or the listener is gone.
    closed: Option<oneshot::Receiver<()>>,
    overdue: Pin<Box<Sleep>>,
}

impl Connection {
    fn answered(&mut self) {
        self.answered_ms.store(millis(self.began.elapsed()), Ordering::Relaxed);
        self.overdue.as_mut().reset(Instant::now() + LONGEST_WITHOUT_ANSWER);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(closed) = &mut self.closed
            && let Poll::Ready(word) = Pin::new(closed).poll(context)
        {
            self.closed = None;
            // A listener that is gone is no reason to end, because requests in flight then have a second.
            if word.is_ok() {
                return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
            }
        }
        if self.overdue.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.answered();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        self.answered();
        Poll::Ready(Ok(written))
    }
}
