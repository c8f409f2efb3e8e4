//! What a sidecar says: nothing, or the digest of its file, bare or in the form of `sha256sum`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use crate::ledger::Digest;

/// Larger sidecars are not read: none that holds a digest is.
const SIDECAR_BYTES_MAX: u64 = 1 << 20;

/// A sidecar that was read.
#[derive(Debug, Default)]
pub struct Claim {
    /// The digest that it holds.
    pub digest: Option<Digest>,
    /// How much of it was read.
    pub bytes_read: u64,
}

/// Reads what an open sidecar of so many bytes claims for the file `name`.
///
/// # Errors
/// Those of reading it.
pub fn read_claim(sidecar: impl AsFd, bytes: u64, name: &OsStr) -> io::Result<Claim> {
    if bytes > SIDECAR_BYTES_MAX {
        return Ok(Claim::default());
    }
    let mut content = vec![0; bytes as usize];
    let mut read = 0;
    while read < content.len() {
        let rest = &mut content[read..];
        match rustix::io::pread(&sidecar, rest, read as u64).map_err(io::Error::from) {
            Ok(0) => break,
            Ok(bytes) => read += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Claim {
        digest: claimed_digest(&content[..read], name),
        bytes_read: read as u64,
    })
}

/// The digest that `content` claims for the file `name`: bare, as `sha256sum` prints it, or as `sha256sum --tag` does. Of several lines, the one that names the file counts; a
/// line without a name counts for any file.
pub fn claimed_digest(content: &[u8], name: &OsStr) -> Option<Digest> {
    let mut bare = None;
    let mut first = None;
    for line in content.split(|&byte| byte == b'\n') {
        let line = line.trim_ascii();
        // sha256sum marks a line whose name it had to escape.
        let (escaped, line) = match line.strip_prefix(b"\\") {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        // `sha256sum --tag` and BSD put the digest last.
        let tagged = line
            .strip_prefix(b"SHA256 (")
            .and_then(|rest| rest.split_at_checked(rest.len().checked_sub(68)?))
            .and_then(|(name, rest)| Some((rest.strip_prefix(b") = ")?, name)));
        let Some((digest, rest)) = tagged.or_else(|| line.split_at_checked(64)) else {
            continue;
        };
        let Ok(digest) = data_encoding::HEXLOWER_PERMISSIVE.decode(digest) else {
            continue;
        };
        let Ok(digest) = Digest::try_from(digest) else {
            continue;
        };
        if rest.is_empty() {
            bare = bare.or(Some(digest));
            continue;
        }
        // Two spaces, or a space and the mark of binary mode.
        let Some(named) = tagged
            .map(|(_, name)| name)
            .or_else(|| rest.strip_prefix(b"  "))
            .or_else(|| rest.strip_prefix(b" *"))
            .or_else(|| rest.strip_prefix(b" "))
        else {
            continue;
        };
        let named = if escaped {
            unescape(named)
        } else {
            named.to_vec()
        };
        let named = named.rsplit(|&byte| byte == b'/').next().unwrap_or(&named);
        if named == name.as_bytes() {
            return Some(digest);
        }
        first = first.or(Some(digest));
    }
    // A file that was renamed on its way still has the one digest that came with it.
    bare.or(first)
}

fn unescape(name: &[u8]) -> Vec<u8> {
    let mut bytes = name.iter();
    let mut out = Vec::with_capacity(name.len());
    while let Some(&byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                Some(b'r') => b'\r',
                Some(&other) => other,
                None => b'\\',
            },
            byte => byte,
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "BBbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn claimed(content: &str) -> Option<u8> {
        claimed_digest(content.as_bytes(), OsStr::new("x.csv")).map(|digest| digest[0])
    }

    #[test]
    fn digests_are_found_bare_and_in_the_form_of_sha256sum() {
        assert_eq!(claimed(""), None);
        assert_eq!(claimed("done\n"), None);
        assert_eq!(claimed(A), Some(0xaa));
        assert_eq!(claimed(&format!("  {A}\r\n")), Some(0xaa));
        assert_eq!(claimed(&format!("{B}  x.csv\n")), Some(0xbb));
        assert_eq!(
            claimed(&format!("{A} *out/y.csv\n{B} */out/x.csv\n")),
            Some(0xbb)
        );
        assert_eq!(claimed(&format!("{A}  y.csv\n")), Some(0xaa));
        assert_eq!(claimed(&format!("{A}tail\n")), None);
        assert_eq!(claimed(&format!("SHA256 (x.csv) = {B}\n")), Some(0xbb));
        assert_eq!(claimed(&format!("SHA256 (x.csv) = {}\n", &B[1..])), None);
    }

    #[test]
    fn an_escaped_name_is_compared_as_it_is() {
        let content = format!("{B}  other\n\\{A}  a\\nb\\\\c\n");
        let digest = claimed_digest(content.as_bytes(), OsStr::new("a\nb\\c")).unwrap();
        assert_eq!(digest[0], 0xaa);
    }
}
