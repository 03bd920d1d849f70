//! Tests names that do not resolve, that move, and that have several addresses.

use super::*;

#[tokio::test]
async fn a_name_that_does_not_resolve_is_recognized() {
    // RFC 6761 reserves `invalid`. The sender uses no proxy, which would have to resolve the name.
    let sender = Sender { proxied: sender(PATIENT).direct, ..sender(PATIENT) };
    let failure = sender.send(request("http://nothing.invalid"), Instant::now()).await.expect_err("no such name");
    assert_eq!(failure.outage, Outage::Dns, "{failure:?}");
    assert!(!failure.text.contains("marked"), "{failure:?}");
}

/// A replacement for the system's resolver. Each question takes the next answer, and the last one stays. An empty answer means
/// that there is no such name.
struct Resolver(std::sync::Mutex<Vec<Vec<std::net::SocketAddr>>>);

impl reqwest::dns::Resolve for Resolver {
    fn resolve(&self, _: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let mut answers = self.0.lock().expect("no panic");
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        Box::pin(async move {
            match answer.is_empty() {
                true => Err("no such name".into()),
                false => Ok(Box::new(answer.into_iter()) as reqwest::dns::Addrs),
            }
        })
    }
}

fn sender_with_names(answers: Vec<Vec<std::net::SocketAddr>>) -> Sender {
    let resolver = std::sync::Arc::new(Resolver(std::sync::Mutex::new(answers)));
    let client =
        builder(SenderSettings { timeout: PATIENT }, &Tls::default()).no_proxy().dns_resolver(resolver).build();
    let client = client.expect("a client");
    Sender { proxied: client.clone(), direct: client, ..sender(PATIENT) }
}

fn address(url: &str) -> std::net::SocketAddr {
    url.trim_start_matches("http://").parse().expect("an address")
}

fn answer_once(stream: &mut TcpStream) {
    read_request(stream);
    write(stream, "HTTP/1.1 204 No Content\r\n\r\n");
}

#[tokio::test]
async fn a_name_that_moves_is_asked_for_again_when_the_connection_to_its_old_address_has_ended() {
    let ((old, old_server), (new, new_server)) = (server(answer_once), server(answer_once));
    let sender = sender_with_names(vec![vec![address(&old)], vec![address(&new)]]);
    sender.send(request("http://moves.test"), Instant::now()).await.expect("a reply of the old address");
    join(old_server).await;
    sender.send(request("http://moves.test"), Instant::now()).await.expect("a reply of the new address");
    join(new_server).await;
}

#[tokio::test]
async fn a_name_that_did_not_resolve_is_asked_for_again() {
    let (url, server) = server(answer_once);
    let sender = sender_with_names(vec![vec![], vec![address(&url)]]);
    let failure = sender.send(request("http://late.test"), Instant::now()).await.expect_err("no such name yet");
    assert_eq!(failure.outage, Outage::Dns, "{failure:?}");
    sender.send(request("http://late.test"), Instant::now()).await.expect("a reply");
    join(server).await;
}

#[tokio::test]
async fn an_address_that_refuses_is_passed_over_for_the_next_of_the_name() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let gone = listener.local_addr().expect("an address");
    drop(listener);
    let (url, server) = server(answer_once);
    let sender = sender_with_names(vec![vec![gone, address(&url)]]);
    sender.send(request("http://two.test"), Instant::now()).await.expect("a reply of the second address");
    join(server).await;
}
