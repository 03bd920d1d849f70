//! A provider that takes every row and answers at once.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A provider that takes every row and answers at once, on a thread of this process.
pub struct Provider {
    url: String,
    tally: Arc<Mutex<Tally>>,
}

#[derive(Default)]
struct Tally {
    /// True for each user whose row has arrived, by the user's number.
    has_arrived: Vec<bool>,
    missing: usize,
    rows: usize,
    last_at: Option<Instant>,
    body: Vec<u8>,
}

impl Tally {
    fn note(&mut self, body: &[u8]) {
        const USER: &str = "\"userId\":\"user-";
        let text = std::str::from_utf8(body).expect("JSON is UTF-8");
        for (at, _) in text.match_indices(USER) {
            let digits = at + USER.len();
            let user: usize = text[digits..digits + 8].parse().expect("a user's number");
            self.rows += 1;
            self.missing -= usize::from(!std::mem::replace(&mut self.has_arrived[user], true));
        }
        self.last_at = Some(Instant::now());
        if self.body.is_empty() {
            self.body = body.to_vec();
        }
    }
}

impl Provider {
    pub fn start() -> Provider {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let tally = Arc::new(Mutex::new(Tally::default()));
        let book = Arc::clone(&tally);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        std::thread::spawn(move || {
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).expect("a socket");
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream, Arc::clone(&book)));
                }
            });
        });
        Provider { url, tally }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets the rows so far, and expects rows of this many users.
    pub fn expect(&self, users: usize) {
        *self.tally() = Tally { has_arrived: vec![false; users], missing: users, ..Tally::default() };
    }

    pub fn rows(&self) -> usize {
        self.tally().rows
    }

    /// Returns the first body that came.
    pub fn body(&self) -> String {
        String::from_utf8(self.tally().body.clone()).expect("JSON is UTF-8")
    }

    /// Returns the time of the last row, once there is one of every user.
    pub fn all_arrived(&self) -> Option<Instant> {
        let tally = self.tally();
        tally.last_at.filter(|_| tally.missing == 0)
    }
}

/// Answers one connection's requests. It parses HTTP by hand, so that the core that it shares with the broker has time
/// to spare.
async fn answer(mut stream: TcpStream, tally: Arc<Mutex<Tally>>) -> io::Result<()> {
    const REPLY: &[u8] =
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 22\r\n\r\n{\"message\":\"Success.\"}";
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(256 * 1024);
    loop {
        let head = loop {
            if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let text = String::from_utf8_lossy(&buffer[..head]);
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let end = head + length.expect("a request with a body");
        while buffer.len() < end {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        tally.lock().unwrap_or_else(PoisonError::into_inner).note(&buffer[head..end]);
        buffer.drain(..end);
        stream.write_all(REPLY).await?;
    }
}
