//! Tests the result of reading each kind of payload.

use super::*;

const RULES: Rules =
    Rules { max_bytes: 1 << 20, use_anonymous_id: false, account_trait: None, refuse_user_ids: Vec::new() };

fn read(payload: &str) -> Result<Decoded<'_>, DecodeError> {
    decode(Some(payload.as_bytes()), &RULES)
}

fn event(payload: &str) -> Identify<'_> {
    match read(payload) {
        Ok(Decoded::Identify(event)) => event,
        other => panic!("not an event: {other:?}"),
    }
}

fn skipped(payload: &str) -> Option<SkipReason> {
    match read(payload) {
        Ok(Decoded::Skipped(reason)) => Some(reason),
        _ => None,
    }
}

fn error(payload: &str) -> Option<DecodeError> {
    read(payload).err()
}

fn account_of(payload: &str) -> Option<String> {
    event(payload).account.map(Cow::into_owned)
}

#[test]
fn a_plain_event_is_borrowed_from_its_payload() {
    let payload = r#"{"type":"identify","userId":"u1","messageId":"m1","timestamp":"2026-01-02","context":{"groupId":"g","traits":{"a":1}},
            "traits":{"b":2},"integrations":{"All":true}}"#;
    let event = event(payload);
    assert!(matches!(event.user_id, Cow::Borrowed("u1")));
    assert!(matches!(event.message_id, Some(Cow::Borrowed("m1"))));
    assert!(matches!(event.account, Some(Cow::Borrowed("g"))));
    assert_eq!(event.timestamp.as_deref(), Some("2026-01-02"));
    assert_eq!(event.integrations.map(RawValue::get), Some(r#"{"All":true}"#));
    let content = content(payload.as_bytes(), &RULES).expect("accepted");
    let texts = |list: &TraitList<'_>| list.0.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>();
    assert!(matches!(content.traits.0[..], [(Cow::Borrowed("b"), value)] if value.get() == "2"));
    assert_eq!(texts(&content.context_traits), ["a=1"]);
}

#[test]
fn a_null_payload_is_a_tombstone() {
    assert!(matches!(decode(None, &RULES), Ok(Decoded::Skipped(SkipReason::Tombstone))));
}

#[test]
fn nothing_and_white_space_are_empty() {
    assert_eq!(error(""), Some(DecodeError::Empty));
    assert_eq!(error(" \t\r\n"), Some(DecodeError::Empty));
}

#[test]
fn a_payload_of_exactly_max_bytes_is_taken_and_one_more_is_too_large() {
    let payload = br#"{"userId":"u"}"#;
    let rules = |max_bytes| Rules { max_bytes, ..RULES };
    assert!(decode(Some(payload), &rules(payload.len())).is_ok());
    assert_eq!(decode(Some(payload), &rules(payload.len() - 1)).err(), Some(DecodeError::TooLarge));
    assert_eq!(decode(Some(b"   "), &rules(2)).err(), Some(DecodeError::TooLarge));
}

#[test]
fn bytes_that_are_not_utf8_are_refused_also_in_unread_fields() {
    assert_eq!(decode(Some(b"{\"userId\":\"u\",\"x\":\"\xff\"}"), &RULES).err(), Some(DecodeError::NotUtf8));
}

#[test]
fn broken_json_is_not_json() {
    for payload in ["{", "x", "{\"userId\":\"u\"} x", "\0", "\0\0\0\0", "Object", "{\"userId\":\"u\"}\u{feff}"] {
        assert_eq!(error(payload), Some(DecodeError::NotJson), "{payload:?}");
    }
    assert_eq!(error("{\"userId\":\"u\",\"userId\":\"v\""), Some(DecodeError::NotJson));
}

#[test]
fn half_a_surrogate_pair_anywhere_is_not_json() {
    for half in [r"\ud83d", r"\uD83D x", r"\uDE00", r"\ud83d\ud83d", r"\ud83d\n", r"\\\udfff"] {
        for payload in [
            format!(r#"{{"userId":"u","traits":{{"a":{{"b":["{half}"]}}}}}}"#),
            format!(r#"{{"userId":"u","traits":{{"{half}":1}}}}"#),
            format!(r#"{{"userId":"{half}"}}"#),
            format!(r#"{{"userId":"u","unknown":"{half}"}}"#),
        ] {
            assert_eq!(error(&payload), Some(DecodeError::NotJson), "{payload}");
        }
    }
}

#[test]
fn whole_pairs_and_escaped_backslashes_are_fine() {
    assert_eq!(event(r#"{"userId":"\ud83d\ude00 \uD83D\uDE00"}"#).user_id, "😀 😀");
    assert_eq!(event(r#"{"userId":"\\ud83d \u00e9\\"}"#).user_id, r"\ud83d é\");
}

#[test]
fn nesting_of_128_levels_is_taken_and_129_are_too_deep() {
    let nested = |levels: usize| format!(r#"{{"userId":"u","x":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    assert!(read(&nested(127)).is_ok());
    assert_eq!(error(&nested(128)), Some(DecodeError::TooDeep));
}

#[test]
fn brackets_in_strings_and_beside_each_other_are_not_depth() {
    assert!(read(&format!(r#"{{"userId":"u","x":"\"{}"}}"#, "[{".repeat(500))).is_ok());
    assert!(read(&format!(r#"{{"userId":"u","x":[0{}]}}"#, ",[]".repeat(500))).is_ok());
}

#[test]
fn a_hundred_thousand_brackets_are_refused_without_a_crash() {
    let many = |bracket: &str| bracket.repeat(100_000);
    for payload in [
        many("["),
        many("]"),
        many("{\"a\":"),
        format!("{}{}", many("["), many("]")),
        format!(r#"{{"userId":"u","traits":{{"a":{}{}}}}}"#, many("["), many("]")),
        format!(r#"{{"userId":"u","traits":{}"#, many("{\"a\":[")),
        format!("\"{}", many("[")),
    ] {
        assert!(matches!(error(&payload), Some(DecodeError::TooDeep | DecodeError::NotJson)));
    }
}

#[test]
fn json_that_is_no_object_has_the_wrong_type() {
    for payload in ["[]", r#"["identify","u"]"#, "null", "1", "\"x\"", "true"] {
        assert_eq!(error(payload), Some(DecodeError::WrongType), "{payload}");
    }
}

#[test]
fn a_field_that_stands_twice_has_the_wrong_type_and_unknown_ones_may_repeat() {
    assert_eq!(error(r#"{"userId":"a","userId":"b"}"#), Some(DecodeError::WrongType));
    assert_eq!(error(r#"{"userId":"a","context":{"groupId":"a","groupId":"b"}}"#), Some(DecodeError::WrongType));
    assert!(read(r#"{"userId":"a","x":1,"x":2}"#).is_ok());
}

#[test]
fn an_absent_or_null_type_is_identify_and_any_other_text_is_skipped() {
    assert_eq!(event(r#"{"userId":"u"}"#).user_id, "u");
    assert_eq!(event(r#"{"type":null,"userId":"u"}"#).user_id, "u");
    assert_eq!(event(r#"{"type":"\u0069dentify","userId":"u"}"#).user_id, "u");
    for kind in ["track", "Identify", ""] {
        assert_eq!(skipped(&format!(r#"{{"type":"{kind}","userId":"u"}}"#)), Some(SkipReason::Type));
    }
    assert_eq!(error(r#"{"type":1,"userId":"u"}"#), Some(DecodeError::WrongType));
}

#[test]
fn a_record_of_another_type_is_skipped_whatever_its_fields_hold() {
    assert_eq!(skipped(r#"{"type":"page"}"#), Some(SkipReason::Type));
    assert_eq!(skipped(r#"{"type":"page","userId":{},"traits":1}"#), Some(SkipReason::Type));
}

#[test]
fn a_user_id_is_text_as_written_or_an_integer_s_exact_digits() {
    for (json, user_id) in [
        (r#"" u ""#, " u "),
        ("42", "42"),
        ("0", "0"),
        ("-5", "-5"),
        ("9007199254740993", "9007199254740993"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
    ] {
        assert_eq!(event(&format!(r#"{{"userId": {json} }}"#)).user_id, user_id);
    }
}

#[test]
fn a_user_id_of_another_type_is_bad_also_beside_an_anonymous_id() {
    for json in ["1.0", "1e3", "-1.5", "true", "{}", "[1]", "[]"] {
        let payload = format!(r#"{{"userId":{json},"anonymousId":"a"}}"#);
        assert_eq!(error(&payload), Some(DecodeError::BadUserId), "{payload}");
    }
}

#[test]
fn a_blank_user_id_is_bad_alone_and_as_good_as_absent_beside_an_anonymous_id() {
    for json in [r#""""#, r#"" \t\u00a0""#, r#""\u0020""#] {
        for no_anonymous_id in ["", r#","anonymousId":null"#, r#","anonymousId":"""#] {
            let payload = format!(r#"{{"userId":{json}{no_anonymous_id}}}"#);
            assert_eq!(error(&payload), Some(DecodeError::BadUserId), "{payload}");
        }
        let payload = format!(r#"{{"userId":{json},"anonymousId":"a1"}}"#);
        assert_eq!(skipped(&payload), Some(SkipReason::Anonymous), "{payload}");
        let rules = Rules { use_anonymous_id: true, ..RULES };
        let Ok(Decoded::Identify(event)) = decode(Some(payload.as_bytes()), &rules) else { panic!("not an event") };
        assert_eq!(event.user_id, "a1");
    }
}

#[test]
fn a_user_id_that_names_no_user_is_refused_in_any_case_in_quotes_and_as_a_number() {
    let refuse = ["undefined", "[object object]", "0", "Anonymous"].map(str::to_owned).to_vec();
    let rules = Rules { refuse_user_ids: refuse, ..RULES };
    let error = |payload: &str, rules: &Rules| decode(Some(payload.as_bytes()), rules).err();
    for json in [
        r#""undefined""#,
        r#""Undefined""#,
        r#"" undefined\n""#,
        r#""\"undefined\"""#,
        r#""'undefined'""#,
        r#""[object Object]""#,
        r#""0""#,
        "0",
        r#""ANONYMOUS""#,
    ] {
        let payload = format!(r#"{{"userId":{json},"anonymousId":"a1"}}"#);
        assert_eq!(error(&payload, &rules), Some(DecodeError::JunkUserId), "{payload}");
        assert_eq!(error(&payload, &RULES), None, "{payload}: an empty list refuses no id");
        let other = format!(r#"{{"userId":{json},"type":"track"}}"#);
        assert_eq!(error(&other, &rules), None, "{other}: a record of another type is skipped");
    }
    for json in [r#""undefined1""#, "10", r#""00""#, r#""object Object""#, r#""not undefined""#] {
        assert_eq!(error(&format!(r#"{{"userId":{json}}}"#), &rules), None, "{json}");
    }
    let rules = Rules { use_anonymous_id: true, ..rules };
    assert_eq!(error(r#"{"anonymousId":"undefined"}"#, &rules), Some(DecodeError::JunkUserId));
}

/// Confluent's encoding is in docs.confluent.io, "Wire format", and AWS Glue's is in `AWSSchemaRegistryConstants`. Avro's is in
/// its specification, "Object container files" and "Single-object encoding". The others are the magic numbers of RFC 1952, RFC
/// 8878, and LZ4's and Snappy's frame formats.
#[test]
fn another_encoding_is_distinguished_from_broken_json() {
    let event = br#"{"userId":"u"}"#;
    let behind = |start: &[u8]| [start, event].concat();
    let utf16 = |to: fn(u16) -> [u8; 2]| r#"{"userId":"u"}"#.encode_utf16().flat_map(to).collect::<Vec<u8>>();
    for payload in [
        behind(&[0, 0, 0, 0, 7]),
        behind(&[0, 0, 1, 0x86, 0xa0]),
        // Avro's binary, not UTF-8.
        vec![0, 0, 0, 0, 7, 0x02, 0x75, 0xff],
        behind(&[3, 0]),
        behind(&[3, 5]),
        b"Obj\x01\x04".to_vec(),
        vec![0xc3, 0x01, 1, 2, 3, 4],
        utf16(u16::to_le_bytes),
        utf16(u16::to_be_bytes),
        [&[0xff, 0xfe][..], &utf16(u16::to_le_bytes)].concat(),
        [&[0xfe, 0xff][..], &utf16(u16::to_be_bytes)].concat(),
        vec![0x1f, 0x8b, 8, 0, 0, 0],
        vec![0x28, 0xb5, 0x2f, 0xfd, 0],
        vec![0x04, 0x22, 0x4d, 0x18, 0],
        b"\xff\x06\0\0sNaPpY".to_vec(),
        b"\x82SNAPPY\0".to_vec(),
    ] {
        assert_eq!(decode(Some(&payload), &RULES).err(), Some(DecodeError::UnsupportedEncoding), "{payload:x?}");
    }
}

#[test]
fn a_mark_before_utf8_is_passed_over() {
    let marked = "\u{feff} {\"userId\":\"u\",\"traits\":{\"a\":1}}";
    assert_eq!(event(marked).user_id, "u");
    assert_eq!(content(marked.as_bytes(), &RULES).map(|content| content.traits.0.len()), Some(1));
    assert_eq!(error("\u{feff}"), Some(DecodeError::Empty));
    assert_eq!(error("\u{feff}\u{feff}{}"), Some(DecodeError::NotJson));
}

#[test]
fn an_anonymous_id_alone_is_skipped_or_used() {
    let payload = r#"{"userId":null,"anonymousId":"a1"}"#;
    assert_eq!(skipped(payload), Some(SkipReason::Anonymous));
    let rules = Rules { use_anonymous_id: true, ..RULES };
    let Ok(Decoded::Identify(event)) = decode(Some(payload.as_bytes()), &rules) else { panic!("not an event") };
    assert_eq!(event.user_id, "a1");
}

#[test]
fn neither_id_is_no_user_id() {
    for payload in ["{}", r#"{"userId":null}"#, r#"{"anonymousId":" "}"#, r#"{"anonymousId":1.5}"#] {
        assert_eq!(error(payload), Some(DecodeError::NoUserId), "{payload}");
    }
}

#[test]
fn traits_and_context_are_objects_empty_lists_or_null() {
    for payload in [
        r#"{"userId":"u","traits":null,"context":null}"#,
        r#"{"userId":"u","context":{"traits":null}}"#,
        r#"{"userId":"u","traits":[],"context":[ ]}"#,
        r#"{"userId":"u","traits":{},"context":{"traits":[]}}"#,
        r#"{"userId":"u","traits":[],"integrations":[]}"#,
    ] {
        assert!(event(payload).allows(&["vitally".to_owned()]), "{payload}");
        assert_eq!(event(payload).coverage, event(r#"{"userId":"u"}"#).coverage);
        let content = content(payload.as_bytes(), &RULES).expect("accepted");
        assert!(content.traits.0.is_empty() && content.context_traits.0.is_empty());
        let listing = Rules { account_trait: Some("org".to_owned()), ..RULES };
        assert!(matches!(decode(Some(payload.as_bytes()), &listing), Ok(Decoded::Identify(_))), "{payload}");
    }
    for field in [
        r#""traits":[0]"#,
        r#""traits":[[]]"#,
        r#""traits":[{"plan":"pro"}]"#,
        r#""traits":"x""#,
        r#""context":1"#,
        r#""context":[null]"#,
        r#""context":{"traits":[{}]}"#,
        r#""context":{"traits":true}"#,
    ] {
        assert_eq!(error(&format!(r#"{{"userId":"u",{field}}}"#)), Some(DecodeError::WrongType), "{field}");
    }
}

#[test]
fn a_message_id_is_text_or_an_integer_and_otherwise_as_good_as_absent() {
    assert_eq!(event(r#"{"userId":"u","messageId":12}"#).message_id.as_deref(), Some("12"));
    for json in ["\"\"", "null", "{}", "true", "1.5"] {
        assert_eq!(event(&format!(r#"{{"userId":"u","messageId":{json}}}"#)).message_id, None);
    }
}

#[test]
fn the_first_of_three_timestamps_that_is_an_event_s_time_counts() {
    let timestamp = |timestamp: &str, original: &str| {
        let fields = format!(r#""receivedAt":"2020-03-03","originalTimestamp":{original},"timestamp":{timestamp}"#);
        event(&format!(r#"{{"userId":"u",{fields}}}"#)).timestamp.map(Cow::into_owned).expect("receivedAt at least")
    };
    assert_eq!(timestamp(r#""2020-01-01""#, r#""2020-02-02""#), "2020-01-01");
    assert_eq!(timestamp("1577836800", r#""2020-02-02""#), "1577836800");
    for none in [
        "null",
        r#""""#,
        r#""soon""#,
        "{}",
        "true",
        "17",
        "-1",
        "0",
        "1e300",
        // The seconds of 2020 read as milliseconds, Go's zero time, and the last date of SQL.
        r#""1970-01-19T06:17:16.800Z""#,
        r#""0001-01-01T00:00:00Z""#,
        r#""9999-12-31T23:59:59Z""#,
    ] {
        assert_eq!(timestamp(none, r#""2020-02-02""#), "2020-02-02", "{none}");
        assert_eq!(timestamp(none, none), "2020-03-03", "{none}");
    }
    assert_eq!(event(r#"{"userId":"u","receivedAt":{}}"#).timestamp, None);
}

#[test]
fn the_account_is_the_group_then_the_company() {
    let both = r#"{"userId":"u","context":{"groupId":"g"},"traits":{"company":{"id":"c"}}}"#;
    assert_eq!(account_of(both).as_deref(), Some("g"));
    for group in ["null", "\" \"", "{}", "1.5"] {
        let payload =
            format!(r#"{{"userId":"u","context":{{"groupId":{group}}},"traits":{{"c\u006fmpany":{{"id":77}}}}}}"#);
        assert_eq!(account_of(&payload).as_deref(), Some("77"));
    }
    assert_eq!(account_of(r#"{"userId":"u","traits":{"company":"Acme","x":{"company":{"id":1}}}}"#), None);
}

#[test]
fn a_company_that_the_user_leaves_is_no_account() {
    let leaves = |remove: &str| format!(r#"{{"userId":"u","traits":{{"company":{{"id":"B","remove":{remove}}}}}}}"#);
    assert_eq!(account_of(&leaves("true")), None);
    for stays in ["false", "null", "\"true\""] {
        assert_eq!(account_of(&leaves(stays)).as_deref(), Some("B"), "{stays}");
    }
    let other = r#"{"userId":"u","context":{"groupId":"A"},"traits":{"company":{"id":"B","remove":true}}}"#;
    assert_eq!(account_of(other).as_deref(), Some("A"));
}

#[test]
fn the_company_of_traits_hides_that_of_context_traits() {
    let context = r#""context":{"traits":{"company":{"id":"old"}}}"#;
    assert_eq!(account_of(&format!(r#"{{"userId":"u",{context}}}"#)).as_deref(), Some("old"));
    assert_eq!(account_of(&format!(r#"{{"userId":"u",{context},"traits":{{"company":null}}}}"#)), None);
    let payload = format!(r#"{{"userId":"u",{context},"traits":{{"company":{{"id":1}},"company":{{"id":2}}}}}}"#);
    assert_eq!(account_of(&payload).as_deref(), Some("2"));
}

#[test]
fn the_configured_trait_names_the_account_where_nothing_else_does() {
    let rules = Rules { account_trait: Some("org/id".to_owned()), ..RULES };
    let account = |payload: &str| match decode(Some(payload.as_bytes()), &rules) {
        Ok(Decoded::Identify(event)) => event.account.map(Cow::into_owned),
        other => panic!("not an event: {other:?}"),
    };
    assert_eq!(account(r#"{"userId":"u","traits":{"org/id":5}}"#).as_deref(), Some("5"));
    assert_eq!(account(r#"{"userId":"u","context":{"traits":{"org\/id":"x"}}}"#).as_deref(), Some("x"));
    assert_eq!(account(r#"{"userId":"u","traits":{"org/id":5,"company":{"id":6}}}"#).as_deref(), Some("6"));
    assert_eq!(account(r#"{"userId":"u","traits":{"org/id":[5]}}"#), None);
}
