//! Events of SDKs that are more than a plain object of strings, each written by hand after the source that is named.

use super::*;

const RULES: Rules =
    Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None, refuse_user_ids: Vec::new() };

/// Returns the user, the account, the time, and the number of the event's traits.
fn read(json: &str) -> (String, Option<String>, Option<String>, usize) {
    let event = match decode(Some(json.as_bytes()), &RULES) {
        Ok(Decoded::Identify(event)) => event,
        other => panic!("{json}: {other:?}"),
    };
    assert!(event.allows(&["vitally".to_owned()]), "{json}: the event has no opt-out");
    let content = content(json.as_bytes(), &RULES).expect("accepted");
    let owned = |text: Option<Cow<'_, str>>| text.map(Cow::into_owned);
    let traits = content.traits.0.len() + content.context_traits.0.len();
    (event.user_id.into_owned(), owned(event.account), owned(event.timestamp), traits)
}

/// Events for a user without traits: the SDK, what it writes, the user and the time.
const WITHOUT_TRAITS: &[(&str, &str, &str, &str)] = &[
    (
        // segmentio/analytics-php pull requests 37 and 39: arrays for traits and context as the caller gave them, and
        // `date("c")`.
        "analytics-php 1",
        r#"{"userId":"19","traits":[],"context":[],"integrations":[],"timestamp":"2018-05-15T12:31:12+00:00","type":"identify"}"#,
        "19",
        "2018-05-15T12:31:12+00:00",
    ),
    (
        // Its lib/Client.php today casts only empty traits with `(object)`. User ids are as the caller has them, mostly
        // integers.
        "analytics-php 3",
        r#"{"userId":19,"traits":{},"context":{"library":{"name":"analytics-php"},"traits":[]},"integrations":[],"timestamp":"2018-05-15T12:31:12+00:00","type":"identify"}"#,
        "19",
        "2018-05-15T12:31:12+00:00",
    ),
    (
        // lib/segment/analytics/field_parser.rb writes every field, and nil for a field that was not given.
        "analytics-ruby",
        r#"{"anonymousId":null,"context":{"library":{"name":"analytics-ruby"}},"integrations":null,"messageId":null,"timestamp":"2018-05-15T12:31:12.123Z","userId":42,"options":null,"type":"identify","traits":{}}"#,
        "42",
        "2018-05-15T12:31:12.123Z",
    ),
    (
        // analytics/client.py writes `datetime.isoformat()`.
        "analytics-python",
        r#"{"integrations":{},"anonymousId":null,"timestamp":"2018-05-15T12:31:12.123456+00:00","context":{"library":{"name":"analytics-python"}},"type":"identify","userId":"u","traits":{},"messageId":"5f1c2d3e"}"#,
        "u",
        "2018-05-15T12:31:12.123456+00:00",
    ),
    (
        // fixtures/test-enqueue-identify.json leaves out empty fields and writes times as numbers.
        "analytics-go 3",
        r#"{"messageId":"I'm unique","timestamp":1257894000000,"type":"identify","userId":"B"}"#,
        "B",
        "1257894000000",
    ),
    (
        // Analytics/Model/BaseAction.cs writes `DateTime.ToString("o")`, with seven digits. Newtonsoft.Json writes nulls.
        "Analytics.NET",
        r#"{"traits":null,"type":"identify","messageId":"5f1c2d3e","timestamp":"2018-05-15T14:31:12.1234567+02:00","context":{"library":{"name":"Analytics.NET"}},"integrations":null,"anonymousId":null,"userId":"u"}"#,
        "u",
        "2018-05-15T14:31:12.1234567+02:00",
    ),
    (
        // core/.../Events.kt writes `Instant.toString()`, and every map as an object.
        "analytics-kotlin",
        r#"{"type":"identify","messageId":"5f1c2d3e","anonymousId":"a","integrations":{},"context":{},"userId":"u","traits":{},"timestamp":"2018-05-15T12:31:12.123Z"}"#,
        "u",
        "2018-05-15T12:31:12.123Z",
    ),
    (
        // rudder-transformer's samples of the courier destination have no `timestamp`, and an offset that is no whole hour.
        "RudderStack",
        r#"{"context":{"ip":"8.8.8.8","traits":{}},"integrations":{"All":true},"type":"identify","userId":"u","originalTimestamp":"2022-10-17T15:53:10.566+05:30"}"#,
        "u",
        "2022-10-17T15:53:10.566+05:30",
    ),
];

#[test]
fn what_each_sdk_writes_for_a_user_without_traits_is_an_event() {
    for &(sdk, json, user, time) in WITHOUT_TRAITS {
        assert_eq!(read(json), (user.to_owned(), None, Some(time.to_owned()), 0), "{sdk}");
    }
}

#[test]
fn an_empty_company_of_php_names_no_account() {
    let json = r#"{"userId":"u","context":{"groupId":null},"traits":{"company":[],"address":[]}}"#;
    assert_eq!(read(json), ("u".to_owned(), None, None, 2));
}

/// Events.kt of analytics-kotlin has an empty `userId` until the first identify with one. client.py of analytics-python takes
/// numbers for either id (`ID_TYPES`).
#[test]
fn what_each_sdk_writes_for_an_unknown_user_is_anonymous() {
    for json in [
        r#"{"type":"identify","userId":"","anonymousId":"5f0c2f1e","traits":{},"context":{},"integrations":{}}"#,
        r#"{"type":"identify","userId":null,"anonymousId":"5f0c2f1e","traits":{}}"#,
        r#"{"type":"identify","userId":null,"anonymousId":1234,"traits":{}}"#,
        r#"{"type":"identify","anonymousId":"5f0c2f1e","traits":[],"context":[]}"#,
    ] {
        let decoded = decode(Some(json.as_bytes()), &RULES);
        assert!(matches!(decoded, Ok(Decoded::Skipped(SkipReason::Anonymous))), "{json}: {decoded:?}");
    }
}
