//! Decides by an event's `integrations` if it may reach a destination.

use super::coverage::is_empty_list;
use super::{Identify, for_each_entry};

impl Identify<'_> {
    /// Returns true if `integrations` lets this event reach a destination that has these lower-case names.
    ///
    /// - An absent field, null and an empty list (PHP's empty map) mean yes.
    /// - A key that is one of the names decides: `true` or an object means yes, `false` means no. Any ASCII case matches, and
    ///   `_`, `-` and space are alike. If several keys match, one that says no decides.
    /// - Any other value of such a key leaves the decision to `All`.
    /// - `All` means yes if it is absent or `true`, else no.
    /// - In place of the object, `true` means yes and every other value means no.
    ///
    /// Sources are Segment's "Filtering with the integrations object", and RudderStack's `processor/integrations` for the types
    /// that Segment leaves open.
    pub fn allows(&self, names: &[String]) -> bool {
        let Some(integrations) = self.integrations else { return true };
        if !integrations.get().starts_with('{') {
            return integrations.get() == "true" || is_empty_list(integrations);
        }
        let mut named: Option<bool> = None;
        let mut all = true;
        for_each_entry(integrations, |key, value| {
            let value = value.get();
            if names.iter().any(|name| is_same_name(name, &key)) {
                let says = match value {
                    "true" => Some(true),
                    "false" => Some(false),
                    options if options.starts_with('{') => Some(true),
                    _ => None,
                };
                if let Some(says) = says {
                    named = Some(named.unwrap_or(true) && says);
                }
            } else if key.eq_ignore_ascii_case("all") {
                all = value == "true";
            }
        });
        named.unwrap_or(all)
    }
}

fn is_same_name(a: &str, b: &str) -> bool {
    let folded = |byte: u8| if matches!(byte, b'-' | b' ') { b'_' } else { byte.to_ascii_lowercase() };
    a.len() == b.len() && a.bytes().map(folded).eq(b.bytes().map(folded))
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::super::Coverage;
    use super::*;

    fn allows(integrations: &str) -> bool {
        let integrations: Option<&RawValue> = serde_json::from_str(integrations).expect("JSON");
        let event = Identify {
            user_id: "u".into(),
            message_id: None,
            account: None,
            timestamp: None,
            coverage: Coverage::new(Default::default(), false, false, false),
            integrations,
        };
        event.allows(&["vitally", "vitally cloud", "vitally_eu"].map(str::to_owned))
    }

    #[test]
    fn an_event_without_integrations_goes_everywhere() {
        assert!(allows("null"));
        assert!(allows("{}"));
        // An empty array of PHP, which analytics-php sends as it is.
        assert!(allows("[]") && allows("[ ]"));
        assert!(allows(r#"{"Userpilot": false}"#));
    }

    #[test]
    fn a_destination_s_own_key_overrides_all() {
        assert!(allows(r#"{"All": false, "Vitally": true}"#));
        assert!(!allows(r#"{"Vitally": false, "All": true}"#));
        assert!(!allows(r#"{"All": false}"#));
    }

    #[test]
    fn names_and_aliases_are_compared_in_any_case() {
        assert!(!allows(r#"{"VITALLY": false}"#));
        assert!(!allows(r#"{"vitally CLOUD": false}"#));
        assert!(!allows(r#"{"\u0056itally": false}"#));
        assert!(!allows(r#"{"ALL": false}"#));
    }

    #[test]
    fn a_name_of_several_words_is_the_same_with_any_sign_between_them() {
        for name in ["vitally_eu", "Vitally-EU", "Vitally EU"] {
            assert!(!allows(&format!(r#"{{"{name}": false}}"#)), "{name}");
            assert!(allows(&format!(r#"{{"All": false, "{name}": {{}}}}"#)), "{name}");
        }
        assert!(allows(r#"{"vitallyeu": false, "vitally_us": false}"#));
    }

    #[test]
    fn options_turn_a_destination_on() {
        assert!(allows(r#"{"All": false, "Vitally": {"accountId": "a"}}"#));
    }

    #[test]
    fn other_types_under_the_name_leave_it_to_all() {
        assert!(allows(r#"{"Vitally": null}"#));
        assert!(allows(r#"{"Vitally": "false"}"#));
        assert!(!allows(r#"{"All": false, "Vitally": 1}"#));
        assert!(!allows(r#"{"All": false, "Vitally": []}"#));
    }

    #[test]
    fn an_all_that_is_not_a_boolean_means_nowhere() {
        assert!(!allows(r#"{"All": "true"}"#));
        assert!(!allows(r#"{"All": null}"#));
        assert!(!allows(r#"{"All": {}}"#));
        assert!(allows(r#"{"All": "x", "Vitally": true}"#));
    }

    #[test]
    fn one_no_among_the_names_is_a_no() {
        assert!(!allows(r#"{"Vitally": false, "VITALLY": true}"#));
        assert!(!allows(r#"{"VITALLY": true, "Vitally": false}"#));
    }

    #[test]
    fn a_boolean_stands_for_all_and_other_types_mean_nowhere() {
        assert!(allows("true"));
        assert!(!allows("false"));
        assert!(!allows("[0]"));
        assert!(!allows(r#""true""#));
        assert!(!allows("1"));
    }
}
