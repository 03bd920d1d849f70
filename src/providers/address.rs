//! Checks a provider's base address and joins paths to it.

use http::Uri;

use super::Problem;

/// Returns the problem of `base_url`, if it has one. A path is allowed, so that a proxy may be in front of the provider.
pub fn problem(base_url: &str, example: &str) -> Option<Problem> {
    let problem = |why: &str| {
        let remedy = format!("{why}; write an address like {example}");
        Some(Problem { field: "base_url", value: without_secrets(base_url), remedy })
    };
    let Ok(uri) = base_url.parse::<Uri>() else {
        return problem("this is not an address");
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return problem("the address does not begin with https:// or http://");
    }
    if host(base_url).is_none() {
        return problem("the address names no host");
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return problem("the address holds a user name or password, which would be logged");
    }
    // `Uri` drops a fragment, so the text is searched for one.
    if uri.query().is_some() || base_url.contains('#') {
        return problem("the address holds a query or a fragment");
    }
    None
}

/// Returns the host of an address in lower case.
pub fn host(base_url: &str) -> Option<String> {
    let uri = base_url.parse::<Uri>().ok()?;
    uri.host().filter(|host| !host.is_empty()).map(str::to_ascii_lowercase)
}

/// Returns the address of `path` (which starts with a slash) below `base_url`.
///
/// # Panics
/// If `base_url` has a [`problem`] or `path` holds characters that are not allowed in an address.
pub fn join(base_url: &str, path: &str) -> Uri {
    format!("{}{path}", base_url.trim_end_matches('/')).parse().expect("the base address was checked")
}

/// Returns the address without what may be a secret: user info, query, fragment.
fn without_secrets(base_url: &str) -> String {
    let end = base_url.find(['?', '#']).unwrap_or(base_url.len());
    let shown = &base_url[..end];
    let Some((before, host)) = shown.rsplit_once('@') else {
        return shown.to_owned();
    };
    let scheme = before.split_once("://").map_or("", |(scheme, _)| scheme);
    format!("{scheme}://***@{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remedy(base_url: &str) -> Option<String> {
        problem(base_url, "https://api.example.com").map(|problem| problem.remedy)
    }

    #[test]
    fn plain_addresses_with_or_without_a_path_are_accepted() {
        for good in ["https://api.example.com", "http://127.0.0.1:8080/", "https://proxy.example.com/vendor/"] {
            assert_eq!(remedy(good), None, "{good}");
        }
    }

    #[test]
    fn an_address_that_cannot_work_is_refused_with_an_example() {
        for bad in [
            "",
            "api.example.com",
            "ftp://api.example.com",
            "https://",
            "https://<subdomain>.example.com",
            "https://a b.example.com",
            "https://api.example.com?region=eu",
            "https://api.example.com#top",
        ] {
            let remedy = remedy(bad).unwrap_or_else(|| panic!("{bad} was accepted"));
            assert!(remedy.contains("https://api.example.com"), "{remedy}");
        }
    }

    #[test]
    fn a_problem_never_repeats_a_password_or_a_query() {
        let with_password = problem("https://me:s3cret@api.example.com/x?key=s3cret", "x").expect("refused");
        assert_eq!(with_password.value, "https://***@api.example.com/x");
    }

    #[test]
    fn a_path_is_joined_with_one_slash() {
        assert_eq!(join("https://a.example/p/", "/v1/x"), "https://a.example/p/v1/x");
        assert_eq!(join("https://a.example", "/v1/x"), "https://a.example/v1/x");
    }
}
