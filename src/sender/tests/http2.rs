//! Tests requests that an HTTP/2 server gives back.

use super::*;

/// Speaks just enough HTTP/2 to answer the first request with `frame`. Counts the requests until the client closes the
/// connection.
fn answer_over_http2(stream: &mut TcpStream, frame: &[u8]) -> usize {
    // The preface comes first, then frames: length (3 bytes), type, flags, stream (4 bytes), payload. RFC 9113 sections 3.4 and
    // 4.1.
    stream.read_exact(&mut [0; 24]).expect("the preface");
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).expect("empty settings are read");
    let mut requests = 0;
    let mut head = [0; 9];
    while stream.read_exact(&mut head).is_ok() {
        let mut payload = vec![0; usize::from(head[1]) * 256 + usize::from(head[2])];
        if stream.read_exact(&mut payload).is_err() {
            break;
        }
        const HEADERS: u8 = 1;
        if head[3] == HEADERS {
            requests += 1;
            if requests == 1 {
                stream.write_all(frame).expect("the frame is read");
                // The server then ends its side, so that requests without a reply end there.
                stream.shutdown(std::net::Shutdown::Write).expect("a socket");
            }
        }
    }
    requests
}

const REFUSED_STREAM: [u8; 13] = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
const CANCELLED_STREAM: [u8; 13] = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 8];

/// Returns a GOAWAY that names this last stream and this reason, with a text of the server's.
fn go_away(last: u8, reason: u8) -> Vec<u8> {
    [&[0, 0, 14, 7, 0, 0, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, reason][..], b"marked"].concat()
}

/// Returns a sender that speaks HTTP/2 at once, as it does after TLS has agreed on it.
fn http2_sender() -> Sender {
    let client = builder(SenderSettings { timeout: PATIENT }, &Tls::default()).no_proxy().http2_prior_knowledge();
    let client = client.build().expect("a client");
    Sender { proxied: client.clone(), direct: client, ..sender(PATIENT) }
}

#[tokio::test]
async fn an_http2_request_that_the_server_declares_untouched_says_so_and_is_not_sent_again() {
    // Streams above the last one of a GOAWAY are untouched, whatever its reason, and so are refused ones (RFC 9113, section
    // 8.7). No others are. The server closes the connection after the frame.
    for (frame, untouched) in [
        (REFUSED_STREAM.to_vec(), true),
        (CANCELLED_STREAM.to_vec(), false),
        (go_away(0, 0), true),
        (go_away(0, 11), true),
        (go_away(1, 0), false),
        (go_away(1, 11), false),
    ] {
        let (url, server) = server(move |stream| {
            let requests = answer_over_http2(stream, &frame);
            (requests, frame)
        });
        let sender = http2_sender();
        let failure = sender.send(request(&url), Instant::now()).await.expect_err("no reply");
        assert_eq!(failure.outage, Outage::Reset, "{failure:?}");
        assert!(!failure.text.contains("marked"), "{failure:?}");
        drop(sender);
        let ((requests, frame), listener) = join(server).await;
        assert_eq!((failure.untouched, requests), (untouched, 1), "{frame:?}: {failure:?}");
        assert!(!another_connection(&listener));
    }
}

#[tokio::test]
async fn a_server_that_gives_back_every_request_is_an_outage_in_the_end() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    // The thread ends with the process, because it waits for connections that do not come.
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            thread::spawn(move || answer_over_http2(&mut stream, &go_away(0, 0)));
        }
    });
    let sender = http2_sender();
    let send = || sender.send(request(&url), Instant::now());
    // Requests that are in flight together count once.
    let (one, two) = tokio::join!(send(), send());
    assert!(one.expect_err("no reply").untouched && two.expect_err("no reply").untouched);
    let mut untouched = Vec::new();
    for _ in 0..4 {
        untouched.push(send().await.expect_err("no reply").untouched);
    }
    assert_eq!(untouched, [true, true, false, false]);
}

#[tokio::test]
async fn a_connection_that_ends_before_its_first_request_has_left_it_untouched() {
    // The GOAWAY may come before hyper has written the request or after.
    for _ in 0..20 {
        let (url, server) = server(|stream| {
            let settings_and_end = [&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], &go_away(0, 0)].concat();
            stream.write_all(&settings_and_end).expect("the frames are read");
            let _ = stream.read_to_end(&mut Vec::new());
        });
        let sender = http2_sender();
        let failure = sender.send(request(&url), Instant::now()).await.expect_err("no reply");
        assert!(failure.untouched, "{failure:?}");
        drop(sender);
        join(server).await;
    }
}

#[tokio::test]
async fn a_head_of_64_kib_is_read_over_http2_too() {
    // The block has status 200 from the table, then lines without indexing and compression (RFC 7541, section 6.2.2).
    let mut block = vec![0x88];
    for n in 0..500 {
        let name = format!("x-{n:03}");
        block.extend([&[0, 5][..], name.as_bytes(), &[120], &[b'v'; 120]].concat());
    }
    // HEADERS end the stream, and CONTINUATION frames go on to the end of the head (RFC 9113, sections 6.2 and 6.10).
    let chunks: Vec<&[u8]> = block.chunks(16_000).collect();
    let mut frames = Vec::new();
    for (n, chunk) in chunks.iter().enumerate() {
        let kind = if n == 0 { [1, 1] } else { [9, if n + 1 == chunks.len() { 4 } else { 0 }] };
        let length = u32::try_from(chunk.len()).expect("a short chunk").to_be_bytes();
        frames.extend([&length[1..], &kind, &[0, 0, 0, 1], chunk].concat());
    }
    let (url, server) = server(move |stream| answer_over_http2(stream, &frames));
    let sender = http2_sender();
    let reply = sender.send(request(&url), Instant::now()).await.expect("a reply");
    assert_eq!((reply.status, reply.headers.len()), (StatusCode::OK, 500));
    drop(sender);
    join(server).await;
}
