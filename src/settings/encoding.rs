//! How text is written.

use std::fmt;
use std::str::FromStr;

/// How text is written: in UTF-8, or in another of the encodings of the WHATWG's Encoding Standard, by any of the names that it has
/// there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Encoding {
    /// UTF-8.
    #[default]
    Utf8,
    /// UTF-16 of either byte order: a byte order mark tells, without one it is little endian.
    Utf16,
    /// That one.
    Other(&'static encoding_rs::Encoding),
}

impl Encoding {
    /// What it is called in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "UTF-8",
            Self::Utf16 => "UTF-16",
            Self::Other(encoding) => encoding.name(),
        }
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Encoding {
    type Err = String;

    fn from_str(label: &str) -> Result<Encoding, String> {
        if label.eq_ignore_ascii_case("utf-16") || label.eq_ignore_ascii_case("utf16") {
            return Ok(Self::Utf16);
        }
        match encoding_rs::Encoding::for_label_no_replacement(label.as_bytes()) {
            Some(encoding) if encoding == encoding_rs::UTF_8 => Ok(Self::Utf8),
            // It stands for bytes that are no text.
            Some(encoding) if encoding != encoding_rs::X_USER_DEFINED => Ok(Self::Other(encoding)),
            _ => Err(
                "it is a name of the WHATWG's Encoding Standard, such as utf-8, utf-16, windows-1252, shift_jis"
                    .into(),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoding_goes_by_all_of_its_names() {
        for (label, name) in [
            ("utf-8", Some("UTF-8")),
            ("UTF8", Some("UTF-8")),
            ("utf-16", Some("UTF-16")),
            ("utf-16le", Some("UTF-16LE")),
            ("latin1", Some("windows-1252")),
            ("iso-8859-15", Some("ISO-8859-15")),
            ("sjis", Some("Shift_JIS")),
            ("utf-7", None),
            ("x-user-defined", None),
            ("replacement", None),
            ("", None),
        ] {
            let parsed = label.parse::<Encoding>();
            assert_eq!(parsed.ok().map(Encoding::name), name, "{label}");
        }
    }
}
