//! Reads a destination's token from the configuration, or from a file that may change while the worker runs.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};

use crate::providers::headers::is_token;

/// The interval between two looks at the file. A guess: soon enough for an operator who watches a rotation, and a read of a few
/// bytes a second costs nothing.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The most bytes of a token. Common servers refuse a header line beyond 8 KiB (nginx `large_client_header_buffers`), so a
/// longer text is some other file.
const MAX_BYTES: usize = 8 * 1024;

/// A destination's token, kept up to date with its file.
#[derive(Debug)]
pub struct TokenSource {
    token: SecretString,
    file: Option<Watched>,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    looked_at: Option<Instant>,
    /// The problem with the file since the last good read. The lane reports it once, not before each request.
    complaint: Option<String>,
}

/// The token to send with now.
#[derive(Debug)]
pub struct Current {
    pub token: SecretString,
    /// True once after the file brought another token, so that a lane that pauses over a refused token may try again.
    pub changed: bool,
    /// The problem if the file is missing or unfit, and `token` is the last good one. It is given once per problem, fit for a
    /// log line.
    pub warning: Option<String>,
}

impl TokenSource {
    /// Takes exactly one of the two. Reads the file for the first time, so that a wrong path shows at the start.
    ///
    /// # Errors
    /// Returns an error if none or both are given, the file cannot be read, or it holds no token.
    pub fn new(inline: Option<SecretString>, file: Option<PathBuf>) -> Result<TokenSource, Error> {
        match (inline, file) {
            (None, None) => Err(Error::Missing),
            (Some(_), Some(_)) => Err(Error::Both),
            (Some(token), None) => {
                let token = checked(token.expose_secret()).map_err(Error::Inline)?;
                Ok(TokenSource { token, file: None })
            }
            (None, Some(path)) => {
                let token = read(&path)?;
                Ok(TokenSource { token, file: Some(Watched { path, looked_at: None, complaint: None }) })
            }
        }
    }

    /// Returns the token as of `now`. The lane calls this before each request. It reads the file at most once a second, and
    /// blocks for that read. It compares the content, because time stamps miss a second write within a clock tick. So it
    /// follows an edit in place as well as Kubernetes' swap of symbolic links.
    pub fn current(&mut self, now: Instant) -> Current {
        let Some(file) = &mut self.file else {
            return Current { token: self.token.clone(), changed: false, warning: None };
        };
        let fresh = file.looked_at.is_some_and(|then| now.saturating_duration_since(then) < LOOK_EVERY);
        if fresh {
            return Current { token: self.token.clone(), changed: false, warning: None };
        }
        file.looked_at = Some(now);
        match read(&file.path) {
            Ok(token) => {
                file.complaint = None;
                let changed = token.expose_secret() != self.token.expose_secret();
                self.token = token;
                Current { token: self.token.clone(), changed, warning: None }
            }
            Err(error) => {
                let complaint = format!("{error}; until then the last good token is used");
                let known = file.complaint.as_ref() == Some(&complaint);
                let warning = (!known).then(|| complaint.clone());
                file.complaint = Some(complaint);
                Current { token: self.token.clone(), changed: false, warning }
            }
        }
    }
}

fn read(path: &Path) -> Result<SecretString, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    // A pipe would block at the opening, and the worker could read it only once.
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(Error::NotAFile { path: path.to_owned() });
    }
    let mut bytes = Vec::new();
    // Twice the limit leaves room for white space around the longest token.
    File::open(path).and_then(|file| file.take(2 * MAX_BYTES as u64).read_to_end(&mut bytes)).map_err(unreadable)?;
    let unfit = |unfit| Error::File { path: path.to_owned(), unfit };
    let text = str::from_utf8(&bytes).map_err(|_| unfit(Unfit::NotForAHeader))?;
    // Some editors put a byte order mark in front of the text.
    checked(text.strip_prefix('\u{feff}').unwrap_or(text)).map_err(unfit)
}

/// Trims the line end that editors and `echo` leave, and checks the rest. A space in front is never part of a token either.
fn checked(text: &str) -> Result<SecretString, Unfit> {
    let token = text.trim();
    if token.is_empty() {
        return Err(Unfit::Empty);
    }
    if token.len() > MAX_BYTES {
        return Err(Unfit::TooLong);
    }
    if !is_token(token) {
        return Err(Unfit::NotForAHeader);
    }
    Ok(SecretString::from(token))
}

/// The reason why there is no token. It never shows what was read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no token is configured: set `token` or `token_file`")]
    Missing,
    #[error("`token` and `token_file` are both set: remove one of them")]
    Both,
    #[error("`token` {0}")]
    Inline(Unfit),
    #[error("the token file {} {unfit}", path.display())]
    File { path: PathBuf, unfit: Unfit },
    #[error("the token file {} cannot be read ({source}): create it, let this process read it, or correct `token_file`", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the token file {} is not a regular file: write the token into a file and name that in `token_file`", path.display())]
    NotAFile { path: PathBuf },
}

/// The fault of a text that should be a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("is empty: put the provider's API token there")]
    Empty,
    #[error("is longer than {MAX_BYTES} bytes: put only the provider's API token there")]
    TooLong,
    #[error(
        "holds a blank, a line break or another character that no token has: put only the provider's API token there, without a word such as Basic or Bearer"
    )]
    NotForAHeader,
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn inline(token: &str) -> Result<TokenSource, Error> {
        TokenSource::new(Some(SecretString::from(token)), None)
    }

    /// Makes a folder with a token file that holds `content`.
    fn folder(content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
        let folder = TempDir::new().expect("a temporary folder");
        let path = folder.path().join("token");
        fs::write(&path, content).expect("the token file is written");
        (folder, path)
    }

    fn from_file(path: &Path) -> Result<TokenSource, Error> {
        TokenSource::new(None, Some(path.to_owned()))
    }

    fn text(current: &Current) -> &str {
        current.token.expose_secret()
    }

    #[test]
    fn exactly_one_of_token_and_token_file_is_taken() {
        let both = TokenSource::new(Some(SecretString::from("a")), Some(PathBuf::from("b")));
        assert!(matches!(both, Err(Error::Both)));
        assert!(matches!(TokenSource::new(None, None), Err(Error::Missing)));
    }

    #[test]
    fn an_inline_token_is_trimmed_and_never_changes() {
        let mut source = inline("abc-def\n").expect("a good token");
        let current = source.current(Instant::now());
        assert_eq!(text(&current), "abc-def");
        assert!(!current.changed && current.warning.is_none());
    }

    #[test]
    fn what_a_header_cannot_carry_is_refused_without_being_shown() {
        for (content, unfit) in [
            (" \n", Unfit::Empty),
            ("marked\r\nX-Evil: 1", Unfit::NotForAHeader),
            ("marked\u{0}", Unfit::NotForAHeader),
            ("märked marked", Unfit::NotForAHeader),
            (&"marked".repeat(2000), Unfit::TooLong),
            (&"marked".repeat(20_000), Unfit::TooLong),
        ] {
            let error = inline(content).expect_err("an unfit inline token");
            assert!(matches!(error, Error::Inline(found) if found == unfit), "{error}");
            assert!(!format!("{error} {error:?}").contains("marked"), "{error:?}");

            let (_folder, path) = folder(content);
            let error = from_file(&path).expect_err("an unfit token file");
            assert!(matches!(error, Error::File { unfit: found, .. } if found == unfit), "{error}");
            assert!(!format!("{error} {error:?}").contains("marked"), "{error:?}");
            assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        }
        let (_folder, path) = folder(b"marked\xff");
        assert!(matches!(from_file(&path), Err(Error::File { unfit: Unfit::NotForAHeader, .. })));
    }

    #[test]
    fn the_mark_that_editors_put_in_front_of_a_file_is_no_part_of_the_token() {
        let (_folder, path) = folder("\u{feff}abc\r\n");
        assert_eq!(text(&from_file(&path).expect("a good token").current(Instant::now())), "abc");
        assert!(matches!(inline("\u{feff}abc"), Err(Error::Inline(Unfit::NotForAHeader))));
    }

    #[test]
    fn a_token_of_the_longest_length_is_taken_with_its_line_end() {
        let longest = "t".repeat(MAX_BYTES);
        let (_folder, path) = folder(format!("{longest}\r\n"));
        let mut source = from_file(&path).expect("a good token");
        assert_eq!(text(&source.current(Instant::now())), longest);
    }

    #[test]
    fn a_wrong_path_is_an_error_at_the_start() {
        let (folder, path) = folder("abc");
        let missing = folder.path().join("missing");
        let error = from_file(&missing).expect_err("no such file");
        assert!(matches!(error, Error::Unreadable { .. }));
        assert!(error.to_string().contains("missing cannot be read"), "{error}");
        assert!(error.to_string().contains("correct `token_file`"), "{error}");
        let parent = path.parent().expect("the file has a folder");
        assert!(matches!(from_file(parent), Err(Error::NotAFile { .. })));
    }

    #[test]
    fn a_changed_file_is_seen_within_a_second_and_announced_once() {
        let (_folder, path) = folder("one\n");
        let mut source = from_file(&path).expect("a good token");
        let start = Instant::now();
        assert_eq!(text(&source.current(start)), "one");

        // The text keeps its length, the file its inode, and most likely its modification time.
        fs::write(&path, "two\n").expect("the file is rewritten");
        let early = source.current(start + LOOK_EVERY - Duration::from_millis(1));
        assert_eq!((text(&early), early.changed), ("one", false), "at most one look a second");
        let later = source.current(start + LOOK_EVERY);
        assert_eq!((text(&later), later.changed), ("two", true));
        let after = source.current(start + 2 * LOOK_EVERY);
        assert_eq!((text(&after), after.changed), ("two", false));
    }

    #[test]
    fn a_swapped_symbolic_link_is_followed() {
        let (folder, path) = folder("");
        fs::remove_file(&path).expect("the file is removed");
        for (version, content) in [("v1", "one"), ("v2", "two")] {
            fs::create_dir(folder.path().join(version)).expect("a version's folder");
            fs::write(folder.path().join(version).join("token"), content).expect("a version's token");
        }
        symlink("v1", folder.path().join("..data")).expect("a link to the first version");
        symlink("..data/token", &path).expect("the link that is configured");
        let mut source = from_file(&path).expect("a good token");
        let start = Instant::now();
        assert_eq!(text(&source.current(start)), "one");

        symlink("v2", folder.path().join("..data_tmp")).expect("a link to the second version");
        fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).expect("the swap");
        assert_eq!(text(&source.current(start + LOOK_EVERY)), "two");
    }

    #[test]
    fn the_last_good_token_stays_while_the_file_is_missing_or_unfit_with_one_warning_per_problem() {
        let (_folder, path) = folder("marked");
        let mut source = from_file(&path).expect("a good token");
        let start = Instant::now();
        let mut looks = (0..).map(|n| start + n * LOOK_EVERY);
        let mut look = |source: &mut TokenSource| source.current(looks.next().expect("endless"));

        fs::remove_file(&path).expect("the file is removed");
        let missing = look(&mut source);
        assert_eq!(text(&missing), "marked");
        let warning = missing.warning.expect("the missing file is said");
        assert!(warning.contains("token cannot be read") && warning.contains("last good token"), "{warning}");
        assert!(look(&mut source).warning.is_none(), "the same problem is said once");

        fs::write(&path, "\n").expect("an empty file");
        let empty = look(&mut source);
        assert_eq!(text(&empty), "marked");
        assert!(empty.warning.is_some_and(|warning| warning.contains("is empty")), "another problem is said");

        fs::write(&path, "marked").expect("the file is back");
        let back = look(&mut source);
        assert!(!back.changed && back.warning.is_none());
        fs::remove_file(&path).expect("the file is removed again");
        assert!(look(&mut source).warning.is_some(), "a problem that comes back is said again");
    }

    #[test]
    fn debug_shows_no_token() {
        let (_folder, path) = folder("marked");
        let mut source = from_file(&path).expect("a good token");
        let current = source.current(Instant::now());
        assert!(!format!("{source:?} {current:?}").contains("marked"));
    }
}
