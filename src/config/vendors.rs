//! Finds settings that cannot work, or hardly will, with the vendors' known addresses and limits.

use std::collections::BTreeMap;

use http::Uri;
use secrecy::ExposeSecret;

use super::{Config, Destination, Problem};
use crate::kafka::settings::MASK;
use crate::providers::{self, headers::is_token};
use crate::units::RowsPerMinute;

/// The vendors' domains, from their pages; `vitally-eu.io` and `userpilot.com` are from their public documentation.
const DOMAINS: [(&str, &str); 5] = [
    ("vitally.io", "vitally"),
    ("vitally-eu.io", "vitally"),
    ("vibefollow.com", "vibefollow"),
    ("userpilot.io", "userpilot"),
    ("userpilot.com", "userpilot"),
];

/// The labels of Userpilot's hosts that serve people, scripts or exports. The list is not complete. The hosts that take users
/// cannot be listed instead, because an Enterprise environment has a host of its own.
const USERPILOT_OTHERS: [&str; 9] = ["", "app", "run", "www", "docs", "help", "js", "cdn", "appex"];

/// The endings of a path that the adapters add themselves.
const API_PATHS: [&str; 8] =
    ["/analytics/v1", "/analytics", "/api/v1", "/api", "/v1", "/users", "/identify", "/bulk_identify"];

/// Returns the fault of an address at a vendor's host. Returns `None` if the host belongs to no vendor, such as a proxy's.
pub(super) fn address_fault(destination: &Destination) -> Option<String> {
    let address: Uri = destination.provider.base_url()?.parse().ok()?;
    let vendor = destination.provider.type_name();
    let host = address.host()?.trim_end_matches('.').to_ascii_lowercase();
    let (label, owner) = DOMAINS.iter().find_map(|(domain, owner)| {
        let before = host.strip_suffix(domain)?;
        (before.is_empty() || before.ends_with('.')).then(|| (before.trim_end_matches('.').to_owned(), *owner))
    })?;
    let domain = host[label.len()..].trim_start_matches('.');
    let right = right_address(vendor, &label);
    if owner != vendor {
        return Some(format!("this is a host of {owner}, while type is {vendor}: write {right}"));
    }
    if !is_api_host(domain, &label) {
        return Some(format!(
            "this host of {vendor} serves people or another API, not the one that takes users: write {right}"
        ));
    }
    if address.scheme_str() == Some("http") {
        return Some(format!("http:// sends the token in clear text, and {vendor} redirects it: write https://{host}"));
    }
    if !matches!(address.path(), "" | "/") {
        return Some(format!("the path of the API is added by itself: write https://{host} alone"));
    }
    None
}

/// Returns true if the vendor takes users at this host. `label` is the part of the host before the vendor's domain.
fn is_api_host(domain: &str, label: &str) -> bool {
    match domain {
        // `rest.` is the REST API, which takes another token. A subdomain alone is the host at which people log in.
        "vitally.io" => label == "api" || label.ends_with(".api"),
        // No public page names the host of the EU's Analytics API.
        "vitally-eu.io" => !(label.is_empty() || label == "rest" || label.ends_with(".rest")),
        "vibefollow.com" => label == "api",
        "userpilot.io" => !USERPILOT_OTHERS.contains(&label),
        _ => false,
    }
}

fn right_address(vendor: &str, label: &str) -> String {
    match vendor {
        "vitally" => {
            let account =
                label.split('.').next().filter(|name| !matches!(*name, "" | "app" | "www" | "docs" | "rest" | "api"));
            format!("https://{}.api.vitally.io", account.unwrap_or("<subdomain>"))
        }
        "vibefollow" => "https://api.vibefollow.com".to_owned(),
        _ => "https://analytex.userpilot.io or https://analytex-eu.userpilot.io".to_owned(),
    }
}

/// Returns the reason for which a token is a placeholder: a template did not replace it, or an operator copied an example.
fn placeholder(token: &str) -> Option<&'static str> {
    const WORDS: [&str; 8] = ["changeme", "replaceme", "todo", "tbd", "fixme", "placeholder", "xxx", "secret"];
    let token = token.trim();
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let between = |open: &str, close: &str| token.len() > 2 && token.starts_with(open) && token.ends_with(close);
    let unexpanded = token.contains("${")
        || token.contains("$(")
        || token.contains("{{")
        || token.strip_prefix('$').is_some_and(is_name)
        || between("%", "%") && is_name(&token[1..token.len() - 1]);
    if unexpanded {
        return Some(
            "is a placeholder that nothing has replaced: variables in files are not expanded, set the variable \
                     SLUICEGATE__DESTINATIONS__<ID>__TOKEN or token_file",
        );
    }
    let bare: String = token.to_ascii_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
    let speaks = WORDS.contains(&bare.as_str())
        || bare.starts_with("your") && (bare.contains("token") || bare.contains("key") || bare.contains("secret"))
        || bare.bytes().all(|byte| byte == b'x');
    if between("<", ">") || between("[", "]") || token.contains("...") || speaks {
        return Some("is a placeholder from an example: put the provider's API token there");
    }
    None
}

/// Returns the settings that can work but are probably a mistake.
pub(super) fn warnings(config: &Config) -> Vec<Problem> {
    let mut found = Vec::new();
    for (id, destination) in config.enabled() {
        let Some(text) = destination.provider.base_url() else { continue };
        let Ok(address) = text.parse::<Uri>() else { continue };
        let host = address.host().unwrap_or_default();
        let path = format!("destinations.{id}.base_url");
        let ends = address.path().trim_end_matches('/');
        if !DOMAINS.iter().any(|(domain, _)| host.ends_with(domain))
            && API_PATHS.iter().any(|known| ends.ends_with(known))
        {
            let remedy =
                "ends like the API's own path, which is added to it: remove that part unless a proxy wants it twice";
            found.push(Problem::new(path, Some(text.to_owned()), remedy));
        } else if host == "example.com" || host.ends_with(".example.com") {
            let remedy = "is the placeholder of an example: write the provider's address";
            found.push(Problem::new(path, Some(text.to_owned()), remedy));
        }
        let most = known_limit(destination, id);
        let limit = destination.settings.limit.rows_per_minute;
        if !is_this_machine(host)
            && let Some(limit) = limit.filter(|limit| rows(*limit) > u64::from(most))
        {
            let remedy = format!(
                "is above the {most} a minute that {} is known to take in this mode, so rows will be refused (429): lower it, \
                 unless they have raised yours",
                destination.provider.type_name()
            );
            found.push(Problem::new(
                format!("destinations.{id}.limit.rows_per_minute"),
                Some(limit.to_string()),
                remedy,
            ));
        }
    }
    found
}

/// Returns the problems of destinations that share an account and together ask for more rows a minute than it has. Destinations
/// share an account if their vendor, host and token are equal. Other checks report a token file that cannot be read.
pub(super) fn shared_accounts(config: &Config) -> Vec<Problem> {
    type Account<'a> = (&'a str, String, String);
    let mut accounts: BTreeMap<Account<'_>, Vec<(&str, &Destination)>> = BTreeMap::new();
    for (id, destination) in config.enabled() {
        let settings = &destination.settings;
        let inline = settings.token.as_ref().map(|token| token.expose_secret().to_owned());
        let read = || std::fs::read_to_string(settings.token_file.as_ref()?).ok();
        let Some(token) = inline.or_else(read) else { continue };
        let address = destination.provider.base_url().and_then(|url| url.parse::<Uri>().ok());
        let host = address.as_ref().and_then(Uri::authority).map(|host| host.as_str().to_ascii_lowercase());
        let account = (destination.provider.type_name(), host.unwrap_or_default(), token.trim().to_owned());
        accounts.entry(account).or_default().push((id, destination));
    }
    accounts.into_iter().filter_map(|((vendor, ..), sharing)| too_much(vendor, &sharing)).collect()
}

fn too_much(vendor: &str, sharing: &[(&str, &Destination)]) -> Option<Problem> {
    let most = sharing.iter().map(|(id, destination)| known_limit(destination, id)).max().filter(|most| *most > 0)?;
    let limits = sharing.iter().map(|(_, destination)| destination.settings.limit.rows_per_minute);
    let sum = limits.flatten().map(rows).fold(0, u64::saturating_add);
    let [(first, destination), others @ ..] = sharing else { return None };
    if others.is_empty() || sum <= u64::from(most) {
        return None;
    }
    let others: Vec<String> = others.iter().map(|(id, _)| format!("destinations.{id}")).collect();
    let value = destination.settings.limit.rows_per_minute.map(|limit| limit.to_string());
    let remedy = format!(
        "{} has the same type, address and token, so both use one account, and {vendor} takes {most} rows a minute from it: \
         lower their rows_per_minute so that they add up to {most}, or remove one",
        others.join(" and ")
    );
    Some(Problem::new(format!("destinations.{first}.limit.rows_per_minute"), value, remedy))
}

/// Returns the rows a minute that the vendor takes in the destination's mode.
fn known_limit(destination: &Destination, id: &str) -> u32 {
    providers::build(&destination.provider, id).shape().default_rows_per_minute
}

fn rows(limit: RowsPerMinute) -> u64 {
    match limit {
        RowsPerMinute::Limited(rows) => u64::from(rows.get()),
        RowsPerMinute::Unlimited => u64::MAX,
    }
}

/// Returns true if a host is this machine, where simulated providers run.
fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Returns the fault of a token without showing the token. Returns `None` if a header can hold it.
pub(super) fn token_fault(token: &str) -> Option<&'static str> {
    if token.trim().is_empty() {
        return Some("holds no token: put the provider's API token there");
    }
    if token == MASK {
        return Some("is the mask that config print shows: put the provider's API token there");
    }
    if let Some(fault) = placeholder(token) {
        return Some(fault);
    }
    if !is_token(token) {
        return Some(
            "holds a character that an HTTP header does not take: give the bare token, in one line, without blanks and \
             without a word such as Basic or Bearer before it",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(destinations: &str) -> Result<Config, super::super::Problems> {
        Config::from_yaml(&format!("{{destinations: {{{destinations}}}}}"))
    }

    /// The right hosts and paths are from the vendors' pages. Vitally's page names its login host ("the URL used to log into
    /// Vitally"). Userpilot's documentation names its export host and its EU host.
    #[test]
    fn an_address_at_a_vendor_that_cannot_work_is_refused_with_the_right_one() {
        for (vendor, address, right) in [
            ("vibefollow", "http://api.vibefollow.com", "https://api.vibefollow.com"),
            ("vibefollow", "https://api.vibefollow.com/api/v1", "https://api.vibefollow.com alone"),
            ("vibefollow", "https://app.vibefollow.com", "https://api.vibefollow.com"),
            ("vibefollow", "https://vibefollow.com/", "https://api.vibefollow.com"),
            ("vibefollow", "https://docs.vibefollow.com", "https://api.vibefollow.com"),
            ("vitally", "https://acme.vitally.io", "https://acme.api.vitally.io"),
            ("vitally", "https://app.vitally.io", "https://<subdomain>.api.vitally.io"),
            ("vitally", "https://acme.rest.vitally.io", "https://acme.api.vitally.io"),
            ("vitally", "https://rest.vitally-eu.io", "https://<subdomain>.api.vitally.io"),
            ("vitally", "http://acme.api.vitally.io", "https://acme.api.vitally.io"),
            ("vitally", "https://acme.api.vitally.io/analytics/v1/user", "https://acme.api.vitally.io alone"),
            ("userpilot", "https://app.userpilot.io", "https://analytex.userpilot.io"),
            ("userpilot", "https://run.userpilot.io/", "https://analytex.userpilot.io"),
            ("userpilot", "https://userpilot.com", "https://analytex.userpilot.io"),
            ("userpilot", "https://ANALYTEX.userpilot.io/v1/identify", "https://analytex.userpilot.io alone"),
            ("userpilot", "http://analytex-eu.userpilot.io", "https://analytex-eu.userpilot.io"),
            ("userpilot", "https://api.vibefollow.com", "https://analytex.userpilot.io"),
        ] {
            let text = format!("d: {{type: {vendor}, token: t0, base_url: '{address}'}}");
            let problems = config(&text).expect_err(address);
            let [problem] = problems.0.as_slice() else { panic!("{address}: {problems}") };
            assert_eq!((problem.path.as_str(), problem.value.as_deref()), ("destinations.d.base_url", Some(address)));
            assert!(problem.remedy.contains(right), "{address}: {problem}");
        }
    }

    #[test]
    fn right_addresses_and_those_of_proxies_and_tests_are_taken() {
        for (vendor, address) in [
            ("vibefollow", "https://api.vibefollow.com"),
            ("vibefollow", "http://127.0.0.1:9470"),
            ("vibefollow", "http://proxy.internal/vibefollow"),
            ("vibefollow", "https://notvibefollow.com"),
            ("vitally", "https://acme.api.vitally.io/"),
            ("vitally", "https://api.vitally.io"),
            ("vitally", "https://acme.api.vitally-eu.io"),
            ("userpilot", "https://analytex-eu.userpilot.io"),
            ("userpilot", "https://analytex-enterprise.userpilot.io"),
        ] {
            let config = config(&format!("d: {{type: {vendor}, token: t0, base_url: '{address}'}}")).expect(address);
            assert_eq!(warnings(&config), [], "{address}");
        }
    }

    #[test]
    fn a_token_that_was_not_filled_in_is_refused_without_being_shown() {
        for token in [
            "${MARKED_TOKEN}",
            "$MARKED",
            "{{ MARKED }}",
            "{{MARKED}}",
            "Basic-${MARKED}",
            "<token>",
            "changeme",
            "CHANGE_ME",
            "change-me",
            "your-api-key",
            "YOUR_TOKEN",
            "sk_live_...",
            "xxxx",
            "[token]",
            "%MARKED%",
            "$(MARKED)",
            "TODO",
        ] {
            let problems = config(&format!("d: {{type: userpilot, token: '{token}'}}")).expect_err(token);
            let shown = problems.to_string();
            assert!(shown.starts_with("destinations.d.token: ") && !shown.contains("MARKED"), "{token}: {shown}");
        }
        for token in ["sk_live_51Hx", "t0", "a$b", "dG9rZW46", "p%40ss", "yourself", "$2b$10$abc"] {
            assert!(config(&format!("d: {{type: userpilot, token: '{token}'}}")).is_ok(), "{token}");
        }
    }

    #[test]
    fn what_hardly_is_meant_is_a_warning() {
        for (more, path) in [
            ("limit: {rows_per_minute: 5000}", "destinations.d.limit.rows_per_minute"),
            ("limit: {rows_per_minute: unlimited}", "destinations.d.limit.rows_per_minute"),
            ("mode: single, limit: {rows_per_minute: 1200}", "destinations.d.limit.rows_per_minute"),
            ("base_url: 'https://gateway.internal/userpilot/v1'", "destinations.d.base_url"),
            ("base_url: 'https://api.example.com'", "destinations.d.base_url"),
        ] {
            let config = config(&format!("d: {{type: userpilot, token: t0, {more}}}")).expect(more);
            let found = warnings(&config);
            assert_eq!(found.iter().map(|problem| problem.path.as_str()).collect::<Vec<_>>(), [path], "{more}");
        }
        let simulated = "base_url: 'http://127.0.0.1:9470', limit: {rows_per_minute: 60000}";
        let config = config(&format!("d: {{type: userpilot, token: t0, {simulated}}}")).expect("valid");
        assert_eq!(warnings(&config), []);
    }

    #[test]
    fn destinations_of_one_account_may_not_take_more_together_than_it_has() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("token");
        std::fs::write(&file, "t0\n").expect("written");
        let in_file = format!("token_file: {}", file.display());
        let shared = |first: &str, second: &str| {
            let text = format!("a: {{type: vibefollow, {first}}}, b: {{type: vibefollow, {second}}}");
            shared_accounts(&config(&text).expect("valid"))
        };
        let problems = shared("token: t0", &in_file);
        let [problem] = problems.as_slice() else { panic!("{problems:?}") };
        assert_eq!(problem.path, "destinations.a.limit.rows_per_minute");
        assert_eq!(problem.value.as_deref(), Some("1200"));
        assert!(problem.remedy.contains("destinations.b") && problem.remedy.contains("add up to 1200"), "{problem}");
        let half = "limit: {rows_per_minute: 600}";
        assert_eq!(shared(&format!("token: t0, {half}"), &format!("token: t0, {half}")), []);
        assert_eq!(shared(&format!("token: t0, {half}"), &format!("token: t0, {half}, enabled: false")), []);
        assert_eq!(shared("token: t0", "token: t1"), []);
        assert_eq!(shared("token: t0", "token: t0, base_url: 'https://proxy.internal'"), []);
        assert_eq!(shared("token: t0", "token: t0, limit: {rows_per_minute: unlimited}").len(), 1);
    }
}
