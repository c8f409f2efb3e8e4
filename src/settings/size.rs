//! Sizes as people write them: `1GiB`, `500MB`, `4096`.

use std::str::FromStr;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 9] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
];

impl FromStr for ByteSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<ByteSize, &'static str> {
        const WRONG: &str = "it is a number of bytes, alone or with a unit: 4096, 500MB, 1GiB";
        let lower = text.to_ascii_lowercase();
        let unit = UNITS.iter().find(|(name, _)| lower.ends_with(name));
        let (digits, factor) = match unit {
            Some((name, factor)) => (lower[..lower.len() - name.len()].trim_end(), *factor),
            None => (&*lower, 1),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(WRONG);
        }
        let number: u64 = digits.parse().map_err(|_| WRONG)?;
        number.checked_mul(factor).map(ByteSize).ok_or(WRONG)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("12b", 12),
            ("1KiB", 1024),
            ("3 MiB", 3 << 20),
            ("1GiB", 1 << 30),
            ("2tib", 2 << 40),
            ("500MB", 500_000_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for text in [
            "",
            "GiB",
            "-1",
            "+1",
            "1.5GiB",
            "1G",
            "99999999TiB",
            "1 0",
            "auto",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }
}
