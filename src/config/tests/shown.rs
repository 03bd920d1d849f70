//! The form in which settings are shown: printed without secrets, hashed, and documented with their defaults.

use super::*;

#[test]
fn a_secret_is_shown_nowhere() {
    let secrets = "{kafka: {properties: {sasl.password: MARKED, ssl.key.password: MARKED}}, \
                   destinations: {d: {type: userpilot, token: MARKED}}}";
    let config = load(&[secrets], &[], &[]).expect("valid");
    let yaml = config.to_yaml();
    assert!(
        !yaml.contains("MARKED") && yaml.contains("token: '***'") && yaml.contains("sasl.password: '***'"),
        "{yaml}"
    );
    assert!(!format!("{config:?} {config:#?}").contains("MARKED"));

    // Each text puts the secret into a place where reading or checking fails.
    let slips = [
        "destinations: {d: {tokn: MARKED}}",
        "destinations: {d: {token: [MARKED]}}",
        "destinations: {d: {token: {a: MARKED}}}",
        "destinations: {d: {token: 'Bearer MARKED'}}",
        "destinations: {e: {type: userpilot, token_file: MARKED}}",
        "destinations: {d: {token_file: MARKED}}",
        "destinations: {d: {tls: {key_file: \"-----BEGIN PRIVATE KEY----- MARKED\"}}}",
        "kafka: {password_file: MARKED}",
        "destinations: {d: {token: *MARKED}}",
        "destinations: {d: {token: @MARKED}}",
        "destinations: {d: {token: %MARKED}}",
        "destinations: {d: {token: MARKED: MARKED}}",
        "destinations: {d: {token: \"MARKED\\q\"}}",
        "destinations: {d: {token: 'MARKED}}",
        "destinations: {d: {token: MARKED, token: MARKED}}",
        "destinations: {d: MARKED}",
        "destinations: MARKED",
        "kafka: {properties: {sasl.password: [MARKED]}}",
        "kafka: {properties: {sasl.pasword: MARKED}}",
        "kafka: {propertis: {sasl.password: MARKED}}",
        "MARKED",
        "password: MARKED",
    ];
    for slip in slips {
        let problems = refused(&[secrets, slip], &[]);
        let shown = format!("{problems} {problems:?}");
        assert!(!shown.contains("MARKED"), "{slip}: {shown}");
    }
}

#[test]
fn equal_settings_have_equal_hashes_whatever_their_secrets() {
    let hash = |yaml: &str| load(&[VALID, yaml], &[], &[]).expect("valid").hash().to_owned();
    assert_eq!(hash("{}"), hash("kafka: {group: sluicegate}"), "a default that is written out changes nothing");
    assert_eq!(hash("{}"), hash("destinations: {d: {token: other}}"));
    assert_ne!(hash("{}"), hash("kafka: {group: other}"));
    assert_eq!(hash("{}").len(), 12);
}

#[test]
fn processes_of_one_installation_have_one_hash_whichever_lanes_and_name_they_have() {
    let two = "destinations: {e: {type: vibefollow, token: t1}}";
    let hash =
        |properties: &str, only: &[&str]| load(&[VALID, two, properties], &[], only).expect("valid").hash().to_owned();
    let static_member = "kafka: {properties: {group.instance.id: replica-0}}";
    assert_eq!(hash("{}", &[]), hash(static_member, &["d"]));
    assert_eq!(hash("{}", &["d"]), hash("{}", &["e"]));
    assert_ne!(hash("{}", &[]), hash("destinations: {e: {enabled: false}}", &[]), "a setting of the installation");
}

#[test]
fn what_is_printed_reads_back_as_the_same_settings() {
    let config = load(&[VALID], &[], &[]).expect("valid");
    let again = load(&[&config.to_yaml()], &[("SLUICEGATE__DESTINATIONS__D__TOKEN", "t0")], &[]).expect("valid");
    assert_eq!(again.to_yaml(), config.to_yaml());
}

#[test]
fn the_documented_file_holds_the_defaults() {
    let documented = Config::load(&[documented_file()], [], &[]).expect("loads");
    let bare = "destinations:\n  \
        vitally: {type: vitally, token_file: /run/secrets/vitally, base_url: 'https://acme.api.vitally.io'}\n  \
        vibefollow: {type: vibefollow, token_file: /run/secrets/vibefollow}\n  \
        userpilot: {type: userpilot, token_file: /run/secrets/userpilot}\n";
    assert_eq!(documented.to_yaml(), Config::from_yaml(bare).expect("loads").to_yaml());
}
