//! A proxy between worker and provider that breaks requests, replies and connections as a test asks.
//!
//! It understands HTTP/1.1 messages with a length, so that a fault meets a whole request. `Proxy::raw` passes bytes on
//! without understanding them, for TLS.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// The fault that one request meets, or one connection of a raw proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The proxy passes request and reply.
    None,
    /// The proxy reads the request, does not pass it on, and ends the connection.
    Error(End),
    /// The provider gets the request and answers. The proxy passes this part of the reply and ends the connection.
    CutAfterApply(Cut, End),
    /// The proxy passes the request on after this time.
    Delay(Duration),
    /// The proxy takes bytes, never answers, and keeps the connection.
    BlackHole,
    /// The proxy reads nothing, so the worker's writes fill the buffers.
    Deaf,
    /// The proxy passes the request, and the reply byte by byte with this pause between two.
    SlowLoris(Duration),
    /// The proxy sends this reply instead of the provider's.
    Answer(String),
    /// The proxy sends this reply to requests whose body holds these words, and passes the others.
    Block { words: &'static str, answer: String },
    /// The proxy sends a reply without an end instead of the provider's.
    Endless(Endless),
    /// The proxy passes request and reply, but gives a success another form with the same meaning.
    Dress(Dress),
    /// The proxy passes request and reply, then ends the connection at once, like a server that keeps none.
    IdleClose(End),
    /// The proxy passes request and reply, and ends the connection when the next request on it begins. A server's idle
    /// limit leads to this race.
    CloseAtNext(End),
}

/// The forms of a success that have the same meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dress {
    Gzip,
    Deflate,
    Zstd,
    /// Another status of the class, 300 header lines of 64 KiB together, another content type, a byte order mark and
    /// blanks around the body.
    Surplus,
}

impl Dress {
    fn on(self, head: &str, body: &[u8]) -> Vec<u8> {
        if !head.starts_with("HTTP/1.1 2") {
            return [head.as_bytes(), body].concat();
        }
        let level = flate2::Compression::default();
        let (status, more, body) = match self {
            Dress::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(body).expect("memory");
                ("200 OK", "content-encoding: gzip\r\n".to_owned(), encoder.finish().expect("memory"))
            }
            Dress::Deflate => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(body).expect("memory");
                ("200 OK", "content-encoding: deflate\r\n".to_owned(), encoder.finish().expect("memory"))
            }
            Dress::Zstd => {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                let body = ruzstd::encoding::compress_to_vec(body, level);
                ("200 OK", "content-encoding: zstd\r\n".to_owned(), body)
            }
            Dress::Surplus => {
                let lines = (0..300).map(|n| format!("x-more-{n}: {}\r\n", "m".repeat(200))).collect::<String>();
                let body = [b"\xef\xbb\xbf \r\n", body, b"\r\n"].concat();
                ("203 Non-Authoritative Information", format!("content-type: text/html\r\n{lines}"), body)
            }
        };
        let head = format!("HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n", body.len());
        [head.as_bytes(), &body].concat()
    }
}

/// A way in which a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Close,
    Reset,
}

/// The part of a reply that the proxy passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Nothing,
    HalfTheHead,
    TheHead,
    HalfTheBody,
    AllButOneByte,
}

impl Cut {
    pub const ALL: [Cut; 5] = [Cut::Nothing, Cut::HalfTheHead, Cut::TheHead, Cut::HalfTheBody, Cut::AllButOneByte];

    fn of(self, head: usize, whole: usize) -> usize {
        match self {
            Cut::Nothing => 0,
            Cut::HalfTheHead => head / 2,
            Cut::TheHead => head,
            Cut::HalfTheBody => head + (whole - head) / 2,
            Cut::AllButOneByte => whole - 1,
        }
    }
}

/// The part of a reply that does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endless {
    Body,
    Chunks,
    Headers,
    /// 100 Continue, again and again.
    Informational,
}

impl Endless {
    fn parts(self) -> (&'static str, String) {
        const BEGIN: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
        let long = " ".repeat(16 * 1024);
        match self {
            Endless::Body => ("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n", long),
            Endless::Chunks => (
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
                format!("4000\r\n{long}\r\n"),
            ),
            Endless::Headers => (BEGIN, format!("x-more: {}\r\n", "m".repeat(1000))),
            Endless::Informational => ("", "HTTP/1.1 100 Continue\r\n\r\n".repeat(100)),
        }
    }
}

/// A request as the worker sent it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The fault that the request met.
    pub fault: Fault,
    pub head: String,
    pub body: Vec<u8>,
}

impl Seen {
    /// Returns the value of a header, whatever the case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// The counts of the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: u64,
    /// The connections that neither side has ended.
    pub open: u64,
    pub requests: u64,
    /// The requests in progress now.
    pub under_way: u64,
    /// The most requests in progress at once since `forget_peak`.
    pub peak: u64,
    pub bytes_from_worker: u64,
    pub bytes_to_worker: u64,
    /// The most bytes that the proxy wrote of one reply before the worker hung up.
    pub longest_reply: u64,
}

#[derive(Default)]
struct Plan {
    script: VecDeque<Fault>,
    standing: Option<Fault>,
    counts: Counts,
    seen: Vec<Seen>,
}

struct Shared {
    upstream: SocketAddr,
    is_raw: bool,
    plan: Mutex<Plan>,
    /// The number of freezes. A connection that began before the last freeze is dead.
    freezes: watch::Sender<u64>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_fault(&self) -> Fault {
        let mut plan = self.lock();
        plan.script.pop_front().or_else(|| plan.standing.clone()).unwrap_or(Fault::None)
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.lock().counts);
    }
}

/// A proxy of one test. Dropping it ends all its connections.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    door: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy that passes HTTP/1.1 requests on to `upstream`.
    pub async fn start(upstream: SocketAddr) -> Proxy {
        Proxy::at(SocketAddr::from(([127, 0, 0, 1], 0)), upstream, false).await.expect("a free port")
    }

    /// Starts a proxy that passes bytes on to `upstream`.
    pub async fn raw(upstream: SocketAddr) -> Proxy {
        Proxy::at(SocketAddr::from(([127, 0, 0, 1], 0)), upstream, true).await.expect("a free port")
    }

    /// Starts a proxy on this address.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn at(address: SocketAddr, upstream: SocketAddr, is_raw: bool) -> io::Result<Proxy> {
        let listener = TcpListener::bind(address).await?;
        let shared = Arc::new(Shared { upstream, is_raw, plan: Mutex::default(), freezes: watch::Sender::new(0) });
        let address = listener.local_addr()?;
        let door = Some(tokio::spawn(accept(listener, Arc::clone(&shared))));
        Ok(Proxy { shared, address, door })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Makes every request from now on meet this fault.
    pub fn set(&self, fault: Fault) {
        let mut plan = self.shared.lock();
        plan.script.clear();
        plan.standing = Some(fault);
    }

    /// Makes the next requests meet these faults, one each. After them the fault of `set` applies again.
    pub fn script(&self, faults: impl IntoIterator<Item = Fault>) {
        self.shared.lock().script.extend(faults);
    }

    pub fn script_left(&self) -> usize {
        self.shared.lock().script.len()
    }

    /// Makes every current connection dead, and neither side notices. New connections work.
    pub fn freeze(&self) {
        self.shared.freezes.send_modify(|freezes| *freezes += 1);
    }

    /// Takes the host away: connections break, and new ones are refused.
    pub async fn close(&mut self) {
        if let Some(door) = self.door.take() {
            door.abort();
            // The task ends as cancelled. It matters only that it has ended and that the port is free.
            let _ = door.await;
        }
        self.shared.count(|counts| counts.open = 0);
    }

    /// Brings the host back on the same address.
    pub async fn open(&mut self) {
        let listener = TcpListener::bind(self.address).await.expect("the port is still free");
        self.door = Some(tokio::spawn(accept(listener, Arc::clone(&self.shared))));
    }

    pub fn counts(&self) -> Counts {
        self.shared.lock().counts
    }

    /// Restarts the count of the most requests at once.
    pub fn forget_peak(&self) {
        self.shared.count(|counts| counts.peak = counts.under_way);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(door) = &self.door {
            door.abort();
        }
    }
}

/// Accepts connections and owns them, so that they end with this task.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        shared.count(|counts| {
            counts.connections += 1;
            counts.open += 1;
        });
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            connection(client, &shared).await;
            shared.count(|counts| counts.open = counts.open.saturating_sub(1));
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connection(mut client: TcpStream, shared: &Shared) {
    client.set_nodelay(true).ok();
    let mut freezes = shared.freezes.subscribe();
    let born = *freezes.borrow();
    let is_frozen = tokio::select! {
        // An IO error ends the connection, whichever side it came from.
        _ = converse(&mut client, shared) => false,
        _ = freezes.wait_for(|freezes| *freezes > born) => true,
    };
    if is_frozen {
        swallow(&mut client).await.ok();
    }
}

/// A request in progress, until this is dropped.
struct UnderWay<'a>(&'a Shared);

impl UnderWay<'_> {
    fn begin(shared: &Shared) -> UnderWay<'_> {
        shared.count(|counts| {
            counts.requests += 1;
            counts.under_way += 1;
            counts.peak = counts.peak.max(counts.under_way);
        });
        UnderWay(shared)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.count(|counts| counts.under_way -= 1);
    }
}

async fn converse(client: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        if client.peek(&mut [0]).await? == 0 {
            return Ok(());
        }
        let _under_way = UnderWay::begin(shared);
        let fault = shared.next_fault();
        match fault {
            Fault::Deaf => return ignore(client).await,
            Fault::BlackHole => return swallow(client).await,
            _ if shared.is_raw => return pass_bytes(client, &fault, shared).await,
            _ => {}
        }
        let (head, body) = read_message(client).await?;
        {
            let mut plan = shared.lock();
            plan.counts.bytes_from_worker += (head.len() + body.len()) as u64;
            plan.seen.push(Seen { fault: fault.clone(), head: head.clone(), body: body.clone() });
        }
        match &fault {
            Fault::Error(how) => return end(client, *how),
            Fault::Answer(text) => {
                write(client, text.as_bytes(), shared).await?;
                continue;
            }
            Fault::Block { words, answer } if String::from_utf8_lossy(&body).contains(words) => {
                write(client, answer.as_bytes(), shared).await?;
                continue;
            }
            Fault::Endless(part) => return write_forever(client, *part, shared).await,
            Fault::Delay(time) => tokio::time::sleep(*time).await,
            _ => {}
        }
        let Ok((reply_head, reply_body)) = ask(shared.upstream, &head, &body).await else {
            // If the provider breaks the proxy's connection, the proxy breaks the worker's.
            return end(client, End::Reset);
        };
        let reply = [reply_head.as_bytes(), &reply_body].concat();
        match fault {
            Fault::CutAfterApply(cut, how) => {
                write(client, &reply[..cut.of(reply_head.len(), reply.len())], shared).await?;
                return end(client, how);
            }
            Fault::SlowLoris(pause) => {
                for byte in &reply {
                    write(client, &[*byte], shared).await?;
                    tokio::time::sleep(pause).await;
                }
            }
            Fault::Dress(dress) => write(client, &dress.on(&reply_head, &reply_body), shared).await?,
            Fault::IdleClose(how) => {
                write(client, &reply, shared).await?;
                return end(client, how);
            }
            Fault::CloseAtNext(how) => {
                write(client, &reply, shared).await?;
                drop(_under_way);
                client.peek(&mut [0]).await?;
                return end(client, how);
            }
            _ => write(client, &reply, shared).await?,
        }
    }
}

/// Returns the provider's reply to one request, over a connection of its own.
async fn ask(upstream: SocketAddr, head: &str, body: &[u8]) -> io::Result<(String, Vec<u8>)> {
    let mut provider = TcpStream::connect(upstream).await?;
    provider.set_nodelay(true).ok();
    provider.write_all(&[head.as_bytes(), body].concat()).await?;
    read_message(&mut provider).await
}

/// Reads the head and the body of a message. The head names the body's length; without a length there is no body.
async fn read_message(stream: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = bytes.split_off(head_end);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let length = head
        .to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length:").and_then(|value| value.trim().parse::<usize>().ok()));
    while body.len() < length.unwrap_or(0) {
        if stream.read_buf(&mut body).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((head, body))
}

async fn write(client: &mut TcpStream, bytes: &[u8], shared: &Shared) -> io::Result<()> {
    client.write_all(bytes).await?;
    shared.count(|counts| {
        counts.bytes_to_worker += bytes.len() as u64;
        counts.longest_reply = counts.longest_reply.max(bytes.len() as u64);
    });
    Ok(())
}

async fn write_forever(client: &mut TcpStream, part: Endless, shared: &Shared) -> io::Result<()> {
    let (begin, again) = part.parts();
    write(client, begin.as_bytes(), shared).await?;
    let mut total = 0;
    loop {
        write(client, again.as_bytes(), shared).await?;
        total += again.len() as u64;
        shared.count(|counts| counts.longest_reply = counts.longest_reply.max(total));
        if part == Endless::Informational {
            // Interim replies cost only time, and this pause leaves that time to other tests.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

async fn pass_bytes(client: &mut TcpStream, fault: &Fault, shared: &Shared) -> io::Result<()> {
    if let Fault::Error(how) = fault {
        return end(client, *how);
    }
    let mut provider = TcpStream::connect(shared.upstream).await?;
    provider.set_nodelay(true).ok();
    let (from_worker, to_worker) = tokio::io::copy_bidirectional(client, &mut provider).await?;
    shared.count(|counts| {
        counts.bytes_from_worker += from_worker;
        counts.bytes_to_worker += to_worker;
    });
    Ok(())
}

/// Prepares the end of a connection. The caller drops the stream, and a zero linger turns that into a reset.
fn end(client: &TcpStream, how: End) -> io::Result<()> {
    match how {
        End::Close => Ok(()),
        End::Reset => client.set_zero_linger(),
    }
}

/// Reads and discards bytes until the worker hangs up.
async fn swallow(client: &mut TcpStream) -> io::Result<()> {
    let mut bytes = [0; 4096];
    while client.read(&mut bytes).await? > 0 {}
    Ok(())
}

/// Reads nothing until the worker hangs up.
async fn ignore(client: &TcpStream) -> io::Result<()> {
    while !client.ready(Interest::READABLE).await?.is_read_closed() {
        // Unread bytes keep the connection readable, so there is no event to wait for.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
