//! `status` and `healthcheck`: ask a running process over HTTP how it stands.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{StatusCode, Url};

use super::{Ask, Exit, block_on, complain, environment, refuse, say};
use crate::config::Config;
use crate::ops::{LaneStatus, Status};

/// How long a process may take to answer. It answers from memory, at worst after the 200 ms that it waits for its lanes,
/// and a container's health check is given 30 s by default.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn status(ask: &Ask, json: bool, files: &[PathBuf]) -> Exit {
    let url = match url(ask, "/status", files) {
        Ok(url) => url,
        Err(exit) => return exit,
    };
    let body = match get(&url) {
        Ok((StatusCode::OK, body)) => body,
        Ok((code, _)) => return unusable(&url, &code.to_string()),
        Err(exit) => return exit,
    };
    match serde_json::from_slice::<Status>(&body) {
        Err(error) => unusable(&url, &error.to_string()),
        Ok(_) if json => say(&format!("{}\n", String::from_utf8_lossy(&body).trim_end())),
        Ok(status) => say(&table(&status)),
    }
}

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

/// Where to ask: the address given, `path` added where it has none, or else the address of `http.listen`.
fn url(ask: &Ask, path: &str, files: &[PathBuf]) -> Result<Url, Exit> {
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

/// Where a socket that listens on `listen` can be reached from the same machine.
pub(super) fn on_this_machine(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// The address as it may be shown: what stands before the host may be a password.
fn shown(url: &Url) -> Url {
    let mut url = url.clone();
    // An address that takes none has none.
    if url.set_username("").is_ok() {
        let _ = url.set_password(None);
    }
    url
}

fn get(url: &Url) -> Result<(StatusCode, Bytes), Exit> {
    let answer = block_on(async {
        // A proxy of the environment does not know this machine's ports.
        let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_TIMEOUT).build()?;
        let response = client.get(url.clone()).send().await?;
        Ok::<_, reqwest::Error>((response.status(), response.bytes().await?))
    })?;
    answer.map_err(|error| {
        complain(&format!(
            "no answer from {}: {}; is sluicegate running there? name its http.listen with --url or -c\n",
            shown(url),
            cause(&error)
        ));
        Exit::Unavailable
    })
}

/// The innermost reason, such as `Connection refused`, which reqwest's own text leaves out.
fn cause(error: &reqwest::Error) -> String {
    let mut innermost: &dyn Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn unusable(url: &Url, text: &str) -> Exit {
    let url = shown(url);
    complain(&format!("{url} does not answer like sluicegate: {text}; correct --url\n"));
    Exit::Unavailable
}

const HEAD: [&str; 9] = ["LANE", "STATE", "FOR", "PENDING", "OLDEST", "BUDGET", "DRAIN", "LAG", "LAST ERROR"];

/// One line per lane below a head, in columns.
fn table(status: &Status) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(status.lanes.iter().map(|lane| row(lane, status.now_ms)));
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(lane: &LaneStatus, now_ms: i64) -> [String; HEAD.len()] {
    let since = |at_ms: i64| u64::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(0) as f64 / 1000.0;
    let budget = match lane.budget.rows_per_minute {
        Some(rows) => format!("{}/{rows}", lane.budget.window_rows),
        None => "unlimited".to_owned(),
    };
    let error = match &lane.last_error {
        // A line end or an escape sequence must not break the table.
        Some(error) => format!("{} ago: {}", span(since(error.at_ms)), error.what.replace(char::is_control, " ")),
        None => "-".to_owned(),
    };
    [
        lane.destination.clone(),
        format!("{}{}", lane.state, if lane.stale { " (stale)" } else { "" }),
        span(since(lane.state_since_ms)),
        lane.pending_rows.to_string(),
        span(lane.oldest_age_seconds),
        budget,
        lane.drain_eta_seconds.map_or("-".to_owned(), span),
        lane.lag.to_string(),
        error,
    ]
}

/// A time as people say it, in its two largest units: `2h 5m`.
fn span(seconds: f64) -> String {
    let whole = Duration::from_secs(seconds.max(0.0) as u64);
    let text = humantime::format_duration(whole).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Budget, LastError};

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

    #[test]
    fn a_table_has_one_line_per_lane_and_keeps_its_columns() {
        let lane = LaneStatus {
            destination: "vitally".to_owned(),
            state: "limited".to_owned(),
            state_since_ms: 1_000,
            pending_rows: 812,
            oldest_age_seconds: 7_512.4,
            budget: Budget { rows_per_minute: Some(1_200), window_rows: 1_190 },
            drain_eta_seconds: Some(40.6),
            last_error: Some(LastError { at_ms: 61_000, what: "503\n\u{1b}[2J".to_owned() }),
            lag: 5,
            ..LaneStatus::default()
        };
        let idle = LaneStatus { destination: "userpilot".to_owned(), stale: true, ..LaneStatus::default() };
        let text = table(&Status { version: "1".to_owned(), now_ms: 63_000, lanes: vec![lane, idle] });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        let cells: Vec<&str> = lines[1].split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect();
        let expected = ["vitally", "limited", "1m 2s", "812", "2h 5m", "1190/1200", "40s", "5", "2s ago: 503  [2J"];
        assert_eq!(cells[..8], expected[..8], "{text}");
        assert!(lines[1].ends_with(expected[8]), "{text}");
        assert!(lines[2].contains("(stale)") && lines[2].contains("unlimited"), "{text}");
        assert_eq!(lines[0].find("PENDING"), lines[1].find("812"), "{text}");
    }
}
