//! Reads a destination's TLS files: authorities to trust in addition to the system's, and the worker's own certificate.

use std::fs;
use std::path::{Path, PathBuf};

use reqwest::{Certificate, Client, Identity};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most bytes of a file. A guess: the system's own bundle of all public authorities has about 220 KB.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// The files that TLS connections to a destination need. No setting turns verification off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// PEM certificates of authorities to trust in addition to the system's.
    pub ca_file: Option<PathBuf>,
    /// The worker's own certificate and its chain (PEM), for a server that asks for one.
    pub cert_file: Option<PathBuf>,
    /// The private key of `cert_file` (PEM, without a passphrase).
    pub key_file: Option<PathBuf>,
}

impl TlsSettings {
    /// Returns each setting's name, and the file if it is set.
    pub fn files(&self) -> [(&'static str, Option<&Path>); 3] {
        [
            ("ca_file", self.ca_file.as_deref()),
            ("cert_file", self.cert_file.as_deref()),
            ("key_file", self.key_file.as_deref()),
        ]
    }

    /// Reads the files and checks that a client takes them.
    ///
    /// # Errors
    /// Returns the fault of the first file that cannot be read or does not hold what it should.
    pub fn read(&self) -> Result<Tls, Error> {
        let authorities = self.ca_file.as_deref().map(authorities).transpose()?.unwrap_or_default();
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some(identity(cert, key)?),
            (Some(_), None) => return Err(error("key_file", "is missing: name the file with cert_file's private key")),
            (None, Some(_)) => return Err(error("cert_file", "is missing: name the file with key_file's certificate")),
            (None, None) => None,
        };
        Ok(Tls { authorities, identity })
    }
}

/// The certificates that were read. The default trusts the system's authorities and shows no certificate.
#[derive(Clone, Default)]
pub struct Tls {
    pub(super) authorities: Vec<Certificate>,
    pub(super) identity: Option<Identity>,
}

/// The fault of a file, without the file's content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{setting} {remedy}")]
pub struct Error {
    /// The setting within its block.
    pub setting: &'static str,
    /// The fault and the remedy.
    pub remedy: String,
}

fn error(setting: &'static str, remedy: impl Into<String>) -> Error {
    Error { setting, remedy: remedy.into() }
}

fn authorities(file: &Path) -> Result<Vec<Certificate>, Error> {
    let setting = "ca_file";
    let unfit = || {
        error(
            setting,
            "holds no certificate in PEM form: give the authority's, which begins with -----BEGIN CERTIFICATE-----",
        )
    };
    let text = read(setting, file)?;
    let found = Certificate::from_pem_bundle(text.as_bytes()).map_err(|_| unfit())?;
    // Only the building of a client looks into the certificates.
    let tried = Client::builder().tls_certs_only(found.clone()).build();
    if found.is_empty() || tried.is_err() { Err(unfit()) } else { Ok(found) }
}

fn identity(cert_file: &Path, key_file: &Path) -> Result<Identity, Error> {
    let mut text = read("cert_file", cert_file)?;
    if !text.contains("-----BEGIN CERTIFICATE-----") {
        return Err(error(
            "cert_file",
            "holds no certificate in PEM form: give the worker's, which begins with -----BEGIN CERTIFICATE-----",
        ));
    }
    if key_file != cert_file {
        let key = read("key_file", key_file)?;
        if key.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || key.contains("Proc-Type: 4,ENCRYPTED") {
            return Err(error(
                "key_file",
                "is encrypted: give the key without a passphrase (openssl pkey -in KEY -out PLAIN), readable by the worker alone",
            ));
        }
        text.push('\n');
        text.push_str(&key);
    }
    if !text.contains("PRIVATE KEY-----") {
        return Err(error(
            "key_file",
            "holds no private key in PEM form: give cert_file's, which begins with -----BEGIN PRIVATE KEY-----",
        ));
    }
    let unfit = || error("key_file", "is not the private key of cert_file: give the two that were made together");
    let identity = Identity::from_pem(text.as_bytes()).map_err(|_| unfit())?;
    match Client::builder().tls_certs_only([]).identity(identity.clone()).build() {
        Ok(_) => Ok(identity),
        Err(_) => Err(unfit()),
    }
}

fn read(setting: &'static str, file: &Path) -> Result<String, Error> {
    let cannot = |why: &dyn std::fmt::Display| {
        error(setting, format!("cannot be read ({why}): correct the path, or let this process read the file"))
    };
    let about = fs::metadata(file).map_err(|why| cannot(&why))?;
    if !about.is_file() || about.len() > MAX_BYTES {
        return Err(error(setting, "is not a file of certificates or keys: name one in PEM form"));
    }
    let bytes = fs::read(file).map_err(|why| cannot(&why))?;
    String::from_utf8(bytes)
        .map_err(|_| error(setting, "is not text: convert it to PEM (openssl x509 or pkey, -inform DER)"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;

    /// Makes a self-signed certificate and its key, as text.
    fn pair() -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(["worker".to_owned()]).expect("parameters");
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    }

    struct Folder(TempDir);

    impl Folder {
        fn file(&self, name: &str, text: impl AsRef<[u8]>) -> Option<PathBuf> {
            let path = self.0.path().join(name);
            fs::write(&path, text).expect("written");
            Some(path)
        }
    }

    fn folder() -> Folder {
        Folder(tempfile::tempdir().expect("a folder"))
    }

    fn refused(settings: &TlsSettings) -> Error {
        settings.read().err().unwrap_or_else(|| panic!("{settings:?} was taken"))
    }

    #[test]
    fn a_bundle_of_authorities_and_a_pair_in_two_files_or_one_are_taken() {
        let (folder, (cert, key), (other, _)) = (folder(), pair(), pair());
        let bundle = folder.file("ca.pem", format!("# ours\n{cert}\n{other}"));
        let cert_file = folder.file("cert.pem", &cert);
        let key_file = folder.file("key.pem", &key);
        let tls = TlsSettings { ca_file: bundle, cert_file, key_file }.read().unwrap_or_else(|error| panic!("{error}"));
        assert!(tls.authorities.len() == 2 && tls.identity.is_some());
        let both = folder.file("both.pem", format!("{key}{cert}"));
        assert!(TlsSettings { ca_file: None, cert_file: both.clone(), key_file: both }.read().is_ok());
        assert!(TlsSettings::default().read().is_ok());
    }

    #[test]
    fn an_unfit_file_of_authorities_is_refused_with_the_remedy() {
        let folder = folder();
        let junk = "-----BEGIN CERTIFICATE-----\nTUFSS0VE\n-----END CERTIFICATE-----\n";
        let (_, key) = pair();
        for (name, text, remedy) in [
            ("empty.pem", Vec::new(), "holds no certificate"),
            ("text.pem", b"MARKED".to_vec(), "holds no certificate"),
            ("junk.pem", junk.into(), "holds no certificate"),
            ("key.pem", key.into_bytes(), "holds no certificate"),
            ("binary.der", vec![0x30, 0x82, 0xff], "convert it to PEM"),
        ] {
            let error = refused(&TlsSettings { ca_file: folder.file(name, text), ..TlsSettings::default() });
            assert_eq!(error.setting, "ca_file");
            assert!(error.remedy.contains(remedy) && !error.remedy.contains("MARKED"), "{name}: {error}");
        }
        let missing = Some(folder.0.path().join("missing.pem"));
        let error = refused(&TlsSettings { ca_file: missing, ..TlsSettings::default() });
        assert!(error.remedy.contains("No such file") && error.remedy.contains("correct the path"), "{error}");
        let error = refused(&TlsSettings { ca_file: Some(folder.0.path().into()), ..TlsSettings::default() });
        assert!(error.remedy.contains("is not a file"), "{error}");
    }

    #[test]
    fn an_unfit_pair_is_refused_at_the_setting_that_is_wrong() {
        let (folder, (cert, key), (_, other_key)) = (folder(), pair(), pair());
        let cert_file = || folder.file("cert.pem", &cert);
        let key_file = || folder.file("key.pem", &key);
        let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nTUFSS0VE\n-----END ENCRYPTED PRIVATE KEY-----\n";
        for (cert_file, key_file, setting, remedy) in [
            (cert_file(), None, "key_file", "is missing"),
            (None, key_file(), "cert_file", "is missing"),
            (folder.file("swapped.pem", &key), key_file(), "cert_file", "holds no certificate"),
            (cert_file(), folder.file("text.pem", "MARKED"), "key_file", "holds no private key"),
            (cert_file(), cert_file(), "key_file", "holds no private key"),
            (cert_file(), folder.file("other.pem", &other_key), "key_file", "not the private key of cert_file"),
            (cert_file(), folder.file("encrypted.pem", encrypted), "key_file", "without a passphrase"),
            (cert_file(), folder.file("broken.pem", key.replace("\nM", "\nA")), "key_file", "not the private key"),
        ] {
            let error = refused(&TlsSettings { ca_file: None, cert_file, key_file });
            assert!(error.setting == setting && error.remedy.contains(remedy), "{error}");
            assert!(!error.remedy.contains("MARKED"), "{error}");
        }
    }
}
