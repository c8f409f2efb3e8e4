//! Hidden names: what a file in staging is called on its way out, and on its way back from quarantine.
//!
//! ```text
//!  .ringest-<ledger>-<seq>-<tag>           a source or a duplicate that is about to be removed
//!  .ringest-<ledger>-<seq>-<tag>.sidecar   a sidecar that is
//!  .ringest-retry-<ledger>-<seq>-<tag>     a file that comes back from quarantine
//! ```
//!
//! The tag is 16 hex digits of an HMAC-SHA-256 of the rest under the ledger's secret. Staging belongs to uploaders: without the
//! tag one of them could foresee the name and be there first. Ledgers without a secret gave names without a tag; those of
//! numbers below [`Secret::since`] are still recognised.

use std::ffi::{OsStr, OsString};

use ring::hmac;

use crate::ledger::Secret;
use crate::trial::mutants;

/// Bytes of the HMAC that a name shows.
const TAG_BYTES: usize = 8;

/// The kinds of hidden names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hidden {
    /// A source or a duplicate on its way out.
    Leaving,
    /// A sidecar on its way out.
    Sidecar,
    /// A file on its way back from quarantine.
    Returning,
}

impl Hidden {
    const ALL: [Hidden; 3] = [Hidden::Leaving, Hidden::Sidecar, Hidden::Returning];

    fn prefix(self) -> &'static str {
        match self {
            Hidden::Leaving | Hidden::Sidecar => ".ringest-",
            Hidden::Returning => ".ringest-retry-",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Hidden::Sidecar => ".sidecar",
            Hidden::Leaving | Hidden::Returning => "",
        }
    }
}

/// The hidden names of one ledger.
#[derive(Debug, Clone)]
pub struct HiddenNames {
    uuid: String,
    key: hmac::Key,
    since: u64,
}

impl HiddenNames {
    /// The names of the ledger `uuid`. A ledger without a secret has only names without a tag.
    pub fn new(uuid: &str, secret: Option<&Secret>) -> HiddenNames {
        let bytes = secret.map_or([0; 32], |secret| secret.bytes);
        HiddenNames {
            uuid: uuid.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
            since: secret.map_or(u64::MAX, |secret| secret.since),
        }
    }

    /// The name that arrival `seq` gets now.
    pub fn name(&self, kind: Hidden, seq: u64) -> OsString {
        if self.since == u64::MAX {
            return self.untagged(kind, seq).into();
        }
        let untagged = self.untagged(kind, seq);
        let tag = hmac::sign(&self.key, untagged.as_bytes());
        let tag = data_encoding::HEXLOWER.encode(&tag.as_ref()[..TAG_BYTES]);
        let (prefix, uuid, suffix) = (kind.prefix(), &self.uuid, kind.suffix());
        format!("{prefix}{uuid}-{seq}-{tag}{suffix}").into()
    }

    /// All names that arrival `seq` may have been given: the tagged one, and, of an arrival before there was a secret, the
    /// one without a tag.
    pub fn names(&self, kind: Hidden, seq: u64) -> impl Iterator<Item = OsString> {
        let tagged = (self.since < u64::MAX).then(|| self.name(kind, seq));
        let untagged = seq < self.since && !mutants::on("untagged_names_forgotten");
        let untagged = untagged.then(|| self.untagged(kind, seq).into());
        tagged.into_iter().chain(untagged)
    }

    /// What a name stands for, if this ledger gave it.
    pub fn parse(&self, name: &OsStr) -> Option<(Hidden, u64)> {
        let (kind, seq) = claimed(&self.uuid, name)?;
        self.names(kind, seq)
            .any(|own| own == name)
            .then_some((kind, seq))
    }

    fn untagged(&self, kind: Hidden, seq: u64) -> String {
        let (prefix, uuid, suffix) = (kind.prefix(), &self.uuid, kind.suffix());
        format!("{prefix}{uuid}-{seq}{suffix}")
    }
}

/// What a name says that it stands for, whether or not the ledger `uuid` gave it: anybody can make such names.
pub fn claimed(uuid: &str, name: &OsStr) -> Option<(Hidden, u64)> {
    let name = name.to_str()?;
    // A sidecar's name ends in its suffix; what is left of any other has no dot.
    Hidden::ALL.into_iter().find_map(|kind| {
        let rest = name.strip_prefix(kind.prefix())?.strip_prefix(uuid)?;
        let rest = rest.strip_prefix('-')?.strip_suffix(kind.suffix())?;
        let (seq, tag) = rest.split_once('-').unwrap_or((rest, ""));
        let is_tag = tag.len() == 2 * TAG_BYTES && tag.bytes().all(|it| it.is_ascii_hexdigit());
        let number = seq.parse().ok().filter(|it: &u64| it.to_string() == seq)?;
        (rest == seq || is_tag).then_some((kind, number))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "0123456789abcdef";

    fn names(byte: u8, since: u64) -> HiddenNames {
        let bytes = [byte; 32];
        HiddenNames::new(UUID, Some(&Secret { bytes, since }))
    }

    #[test]
    fn a_name_is_known_again_and_nobody_elses_is() {
        let own = names(1, 5);
        for kind in Hidden::ALL {
            for seq in [1, 5, u64::MAX - 1] {
                let name = own.name(kind, seq);
                assert_eq!(own.parse(&name), Some((kind, seq)), "{name:?}");
                assert_eq!(claimed(UUID, &name), Some((kind, seq)));
                assert_eq!(names(2, 5).parse(&name), None, "another secret");
                assert_ne!(names(2, 5).name(kind, seq), name);
            }
            // Without a tag only before there was a secret.
            let untagged = |seq: u64| OsString::from(own.untagged(kind, seq));
            assert_eq!(own.parse(&untagged(4)), Some((kind, 4)));
            assert_eq!(own.parse(&untagged(5)), None);
            assert_eq!(own.names(kind, 4).count(), 2);
            assert_eq!(own.names(kind, 5).count(), 1);
        }
        for other in [
            ".ringest-0123456789abcdef-",
            ".ringest-0123456789abcdef-x",
            ".ringest-0123456789abcdef-01",
            ".ringest-0123456789abcdef-1-",
            ".ringest-0123456789abcdef-1-0123456789abcde",
            ".ringest-0123456789abcdef-1.csv",
            ".ringest-ffffffffffffffff-1",
            "a.csv",
        ] {
            assert_eq!(claimed(UUID, OsStr::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_ledger_without_a_secret_has_names_without_a_tag() {
        let former = HiddenNames::new(UUID, None);
        let name = former.name(Hidden::Leaving, 7);
        assert_eq!(name, ".ringest-0123456789abcdef-7");
        assert_eq!(former.names(Hidden::Leaving, 7).collect::<Vec<_>>(), [name]);
        let name = former.name(Hidden::Returning, 7);
        assert_eq!(name, ".ringest-retry-0123456789abcdef-7");
        assert_eq!(former.parse(&name), Some((Hidden::Returning, 7)));
    }

    #[test]
    fn the_tag_is_an_hmac_of_the_name_without_it() {
        // By Python: hmac.new(bytes([1] * 32), b".ringest-0123456789abcdef-7", "sha256").hexdigest()[:16]
        let tag = "637ecc2eb0924a5a";
        let name = names(1, 1).name(Hidden::Leaving, 7);
        assert_eq!(name, *format!(".ringest-0123456789abcdef-7-{tag}"));
    }
}
