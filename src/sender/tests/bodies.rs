//! Tests bodies and heads of any size, coded or not.

use super::*;
use crate::sender::coding::tests::gzip;

#[tokio::test]
async fn an_endless_body_of_a_success_is_cut_off_at_the_cap_and_not_believed() {
    let (url, server) = server(|stream| {
        read_request(stream);
        write(stream, "HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 64 * 1024]).is_ok() {}
    });
    let failure = failure(PATIENT, &url).await;
    assert_eq!((failure.outage, failure.status), (Outage::UnreadableSuccess, Some(200)));
    assert_eq!(failure.text, "body of a reply with status 200: longer than 1048576 bytes");
    join(server).await;
}

#[tokio::test]
async fn an_announced_body_over_the_cap_is_not_waited_for() {
    let (url, server) = server(|stream| {
        read_request(stream);
        write(stream, &format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MAX_BODY + 1));
        wait_for_close(stream);
    });
    assert_eq!(failure(PATIENT, &url).await.outage, Outage::UnreadableSuccess);
    join(server).await;
}

#[tokio::test]
async fn a_body_over_the_cap_leaves_what_the_head_of_a_refusal_says() {
    let (url, server) = server(|stream| {
        read_request(stream);
        write(stream, "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 7\r\n\r\n");
        while stream.write_all(&[b'x'; 64 * 1024]).is_ok() {}
    });
    let reply = sender(PATIENT).send(request(&url), Instant::now()).await.expect("a reply");
    assert_eq!(
        (reply.status.as_u16(), &reply.headers["retry-after"], reply.body.len()),
        (429, &"7".parse().expect("text"), 0)
    );
    join(server).await;
}

/// Answers one request with this status, coding and body. Returns the request.
fn answer_coded(stream: &mut TcpStream, status: &str, coding: &str, body: &[u8]) -> String {
    let request = read_request(stream);
    write(
        stream,
        &format!("HTTP/1.1 {status}\r\nContent-Encoding: {coding}\r\nContent-Length: {}\r\n\r\n", body.len()),
    );
    stream.write_all(body).expect("the client reads");
    request
}

#[tokio::test]
async fn a_reply_is_asked_for_uncompressed_and_decoded_all_the_same() {
    let (url, server) = server(|stream| answer_coded(stream, "200 OK", "gzip", &gzip(b"hello")));
    let reply = sender(PATIENT).send(request(&url), Instant::now()).await.expect("a reply");
    assert_eq!(&reply.body[..], b"hello");
    let (seen, _) = join(server).await;
    assert!(seen.contains("accept-encoding: identity\r\n"), "{seen}");
}

#[tokio::test]
async fn a_success_that_does_not_decode_is_unreadable_and_a_refusal_keeps_its_status() {
    let bomb = gzip(&vec![b' '; MAX_BODY + 1]);
    for (body, text) in [(b"marked".to_vec(), "is not in the coding"), (bomb, "decodes to more than the cap")] {
        let coded = body.clone();
        let (url, other) = server(move |stream| answer_coded(stream, "200 OK", "gzip", &coded));
        let failure = failure(PATIENT, &url).await;
        assert_eq!((failure.outage, failure.status), (Outage::UnreadableSuccess, Some(200)), "{failure:?}");
        assert!(failure.text.contains(text) && !failure.untouched, "{failure:?}");
        join(other).await;
        let (url, other) = server(move |stream| answer_coded(stream, "400 Bad Request", "gzip", &body));
        let reply = sender(PATIENT).send(request(&url), Instant::now()).await.expect("a reply");
        assert_eq!((reply.status, reply.body.len()), (StatusCode::BAD_REQUEST, 0));
        join(other).await;
    }
}

#[tokio::test]
async fn headers_in_any_number_do_not_matter() {
    for (lines, length) in [(2_000, 8), (64, 1_000)] {
        let (url, server) = server(move |stream| {
            read_request(stream);
            let more: String = (0..lines).map(|n| format!("X-{n}: {}\r\n", "v".repeat(length))).collect();
            write(stream, &format!("HTTP/1.1 200 OK\r\n{more}Content-Length: 5\r\n\r\nhello"));
        });
        let reply = sender(PATIENT).send(request(&url), Instant::now()).await.expect("a reply");
        assert_eq!((&reply.body[..], reply.headers.len()), (&b"hello"[..], lines + 1));
        join(server).await;
    }
}

#[tokio::test]
async fn a_body_of_exactly_the_cap_is_read() {
    let (url, server) = server(|stream| {
        read_request(stream);
        write(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
        stream.write_all(&vec![b'x'; MAX_BODY]).expect("the client reads");
    });
    let reply = sender(PATIENT).send(request(&url), Instant::now()).await.expect("a reply");
    assert_eq!(reply.body.len(), MAX_BODY);
    join(server).await;
}
