//! Files that settings are read from or that settings name: encodings, certificates and tokens.

use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use secrecy::ExposeSecret;

use super::*;

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_line() {
    let missing = Config::load(&[PathBuf::from("/no/such/file.yaml")], [], &[]).expect_err("refused").to_string();
    assert!(missing.contains("/no/such/file.yaml: cannot be read"), "{missing}");
    for broken in ["kafka:\n  a: b: c\n", "kafka:\n  group: a\n  group: b\n", "- a", "a: 1\n---\nb: 2"] {
        let problems = refused(&[VALID, broken], &[]);
        assert_eq!(problems.0.len(), 1, "{problems}");
        assert!(problems.to_string().starts_with("1.yaml: cannot be read as YAML"), "{problems}");
    }
    assert!(refused(&["kafka:\n  a: b: c\n"], &[]).to_string().contains("line 2"));
}

#[test]
fn a_byte_order_mark_is_skipped_and_other_encodings_are_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let read = |bytes: &[u8]| {
        let file = folder.path().join("sluicegate.yaml");
        fs::write(&file, bytes).expect("written");
        Config::load(&[file], [], &[]).map(|config| config.enabled().count()).map_err(|problems| problems.to_string())
    };
    assert_eq!(read(&[b"\xef\xbb\xbf", VALID.as_bytes()].concat()), Ok(1));
    let wide = |encode: fn(u16) -> [u8; 2]| VALID.encode_utf16().flat_map(encode).collect::<Vec<u8>>();
    for (mark, text) in [
        (&b"\xff\xfe"[..], wide(u16::to_le_bytes)),
        (b"\xfe\xff", wide(u16::to_be_bytes)),
        (b"", wide(u16::to_le_bytes)),
        (b"", wide(u16::to_be_bytes)),
    ] {
        let refused = read(&[mark, &text].concat()).expect_err("UTF-16");
        assert!(refused.ends_with("sluicegate.yaml: is UTF-16 text: save it as UTF-8"), "{refused}");
    }
    let refused = read(b"# caf\xe9\n").expect_err("Latin-1");
    assert!(refused.contains("is not UTF-8 text"), "{refused}");
}

#[test]
fn unfit_certificates_are_refused_with_file_and_remedy() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("ca.pem");
    let yaml = format!("destinations: {{d: {{tls: {{ca_file: {}}}}}}}", file.display());
    let config = load(&[VALID, &yaml], &[], &[]).expect("valid");
    let missing = config.check_files().expect_err("no file").to_string();
    assert!(missing.starts_with(&format!("destinations.d.tls.ca_file = {}", file.display())), "{missing}");
    assert!(missing.contains("No such file") && missing.contains("correct the path"), "{missing}");
    fs::write(&file, "MARKED").expect("written");
    let unfit = config.check_files().expect_err("no certificate").to_string();
    assert!(unfit.contains("holds no certificate") && !unfit.contains("MARKED"), "{unfit}");
}

#[test]
fn a_token_file_is_read_without_its_newline_and_refused_where_it_holds_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    let yaml = format!("destinations: {{d: {{type: userpilot, token_file: {}}}}}", file.display());
    let config = load(&[&yaml], &[], &[]).expect("valid");
    let missing = config.check_files().expect_err("no file").to_string();
    assert!(missing.contains("destinations.d.token_file") && missing.contains("cannot be read"), "{missing}");

    fs::write(&file, "MARKED\n").expect("written");
    assert_eq!(
        config.destinations["d"].token_source("d").expect("read").current(Instant::now()).token.expose_secret(),
        "MARKED"
    );
    for content in ["", "\n", "MARKED MARKED", "MARKED\nMARKED", "MÄRKED MARKED"] {
        fs::write(&file, content).expect("written");
        let refused = config.check_files().expect_err(content).to_string();
        assert!(!refused.contains("MARKED"), "{refused}");
    }
}
