//! One connection of the worker: its requests, the provider's replies, and the faults between them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::TcpStream;

use super::{End, Endless, Fault, Seen, Shared};

/// Holds one connection until it ends. After a freeze the proxy only discards what the worker sends.
pub(super) async fn hold(mut client: TcpStream, shared: &Shared) {
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

/// Passes requests and replies until the connection ends, each with the fault that it meets.
async fn converse(client: &mut TcpStream, shared: &Shared) -> io::Result<()> {
    loop {
        if client.peek(&mut [0]).await? == 0 {
            return Ok(());
        }
        let under_way = UnderWay::begin(shared);
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
        if !pass_reply(client, &reply_head, &reply_body, fault, under_way).await? {
            return Ok(());
        }
    }
}

/// Passes a reply with the fault that it meets, and returns true if the connection goes on.
async fn pass_reply(
    client: &mut TcpStream,
    head: &str,
    body: &[u8],
    fault: Fault,
    under_way: UnderWay<'_>,
) -> io::Result<bool> {
    let shared = under_way.0;
    let reply = [head.as_bytes(), body].concat();
    match fault {
        Fault::CutAfterApply(cut, how) => {
            write(client, &reply[..cut.of(head.len(), reply.len())], shared).await?;
            end(client, how)?;
            return Ok(false);
        }
        Fault::SlowLoris(pause) => {
            for byte in &reply {
                write(client, &[*byte], shared).await?;
                tokio::time::sleep(pause).await;
            }
        }
        Fault::Dress(dress) => write(client, &dress.on(head, body), shared).await?,
        Fault::IdleClose(how) => {
            write(client, &reply, shared).await?;
            end(client, how)?;
            return Ok(false);
        }
        Fault::CloseAtNext(how) => {
            write(client, &reply, shared).await?;
            drop(under_way);
            client.peek(&mut [0]).await?;
            end(client, how)?;
            return Ok(false);
        }
        _ => write(client, &reply, shared).await?,
    }
    Ok(true)
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
