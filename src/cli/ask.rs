//! Asks a running process over HTTP; the command `healthcheck` does no more than that.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{StatusCode, Url};

use super::{Ask, Exit, block_on, complain, environment, refuse, say};
use crate::config::Config;

/// The longest time for an answer. A process answers from memory, at worst after the 200 ms that it waits for its
/// lanes. A container's health check has 30 s by default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn healthcheck(ask: &Ask, files: &[PathBuf]) -> Exit {
    let url = match url(ask, "/livez", files) {
        Ok(url) => url,
        Err(exit) => return exit,
    };
    match get(&url) {
        Ok((StatusCode::OK, _)) => say("alive\n"),
        Ok((code, body)) => {
            complain(&format!("{} answered {code}: {}\n", shown(&url), String::from_utf8_lossy(&body)));
            Exit::Unavailable
        }
        Err(exit) => exit,
    }
}

/// Returns the address to ask. It is the one given, with `path` added if it has none, or else that of `http.listen`.
pub(super) fn url(ask: &Ask, path: &str, files: &[PathBuf]) -> Result<Url, Exit> {
    let base = match &ask.url {
        // `localhost:9464` would be read as an address with the scheme `localhost`.
        Some(url) if !url.contains("://") => format!("http://{url}"),
        Some(url) => url.clone(),
        None => {
            let listen = Config::listen(files, environment()).map_err(|problems| refuse(&problems))?;
            format!("http://{}", on_this_machine(listen))
        }
    };
    let Ok(mut url) = base.parse::<Url>() else {
        complain(&format!("--url {base}: not an address: write one such as http://127.0.0.1:9464\n"));
        return Err(Exit::Usage);
    };
    if matches!(url.path(), "" | "/") {
        url.set_path(path);
    }
    Ok(url)
}

/// Returns the address at which the same machine can reach a socket that listens on `listen`.
pub(super) fn on_this_machine(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// Returns the address as it may be shown: the part before the host may be a password.
fn shown(url: &Url) -> Url {
    let mut url = url.clone();
    // An address that cannot hold a user name or a password has none.
    if url.set_username("").is_ok() {
        let _ = url.set_password(None);
    }
    url
}

pub(super) fn get(url: &Url) -> Result<(StatusCode, Bytes), Exit> {
    try_get(url).map_err(|text| {
        complain(&format!(
            "no answer from {}: {text}; is sluicegate running there? name its http.listen with --url or -c\n",
            shown(url)
        ));
        Exit::Unavailable
    })
}

/// Returns the answer, or the reason why there is none.
pub(super) fn try_get(url: &Url) -> Result<(StatusCode, Bytes), String> {
    let answer = block_on(async {
        // A proxy of the environment does not know this machine's ports.
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build()?;
        let response = client.get(url.clone()).send().await?;
        Ok::<_, reqwest::Error>((response.status(), response.bytes().await?))
    });
    answer.map_err(|_| "no threads".to_owned())?.map_err(|error| cause(&error))
}

/// Returns the innermost reason, such as `Connection refused`, which reqwest's own text leaves out.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

pub(super) fn unusable(url: &Url, text: &str) -> Exit {
    let url = shown(url);
    complain(&format!("{url} does not answer like sluicegate: {text}; correct --url\n"));
    Exit::Unavailable
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: Option<&str>) -> String {
        let ask = Ask { url: text.map(str::to_owned) };
        url(&ask, "/status", &[]).expect("an address").to_string()
    }

    #[test]
    fn an_address_is_completed_where_it_has_no_path() {
        assert_eq!(asked(Some("http://host:1")), "http://host:1/status");
        assert_eq!(asked(Some("host:1")), "http://host:1/status");
        assert_eq!(asked(Some("http://host:1/behind/status")), "http://host:1/behind/status");
        assert!(matches!(url(&Ask { url: Some("http://".to_owned()) }, "/", &[]), Err(Exit::Usage)));
    }

    #[test]
    fn a_password_in_an_address_is_used_and_not_shown() {
        let url: Url = "http://me:MARKED@host:1/status".parse().expect("an address");
        assert_eq!(shown(&url).to_string(), "http://host:1/status");
    }

    #[test]
    fn a_process_that_listens_everywhere_is_asked_on_this_machine() {
        let reach = |text: &str| on_this_machine(text.parse().expect("an address")).to_string();
        assert_eq!(reach("0.0.0.0:9464"), "127.0.0.1:9464");
        assert_eq!(reach("[::]:9464"), "[::1]:9464");
        assert_eq!(reach("10.0.0.7:80"), "10.0.0.7:80");
    }
}
