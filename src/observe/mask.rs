//! Payment card numbers are replaced by `****` and their last four digits in everything that is told: log events, reasons, status, errors,
//! panics. Not in manifests, in what `find` and its like print, or in content.
//!
//! A card number is 13 to 19 digits in the range of an issuer, as many as that issuer gives, whose last digit is the right one
//! (Luhn). Digits are Unicode's decimal digits. Between two of them may be one character that is neither a letter nor a digit, as it is
//! or escaped (`\t`, `\u{a0}`, `%20`).
//!
//! Numbers that are none, and stay: a run of more digits; digits within a digest, a UUID or another long hexadecimal word; what overlaps a
//! date or a time of day; what begins within an IP address or a pair of coordinates. Other lists of numbers that pass for a card number
//! by chance are masked: one of ten that begin like one.
//!
//! Card numbers that are not found: with two or more characters between two digits (`4111, 1111, …`), with letters between them or in the
//! place of some, with digits that are no decimal digits (words, Roman, circled or superscript ones), backwards, in base64 or another
//! encoding, in two strings of one event.

mod other;

use std::borrow::Cow;
use std::ops::Range;

/// Fewest digits of a card number.
const DIGITS_MIN: usize = 13;
/// Most digits of a card number.
const DIGITS_MAX: usize = 19;
/// Shortest word in hexadecimal that is taken for a digest: of 128 bits.
const DIGEST_MIN: usize = 32;
/// Digits that are left to be seen.
const DIGITS_SHOWN: usize = 4;

/// The zeros of Unicode 17. The other nine digits follow each.
const ZEROS: [u32; 76] = [
    0x30, 0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66,
    0xde6, 0xe50, 0xed0, 0xf20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90,
    0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
    0x104a0, 0x10d30, 0x10d40, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0,
    0x11650, 0x116c0, 0x116d0, 0x116da, 0x11730, 0x118e0, 0x11950, 0x11bf0, 0x11c50, 0x11d50,
    0x11da0, 0x11de0, 0x11f50, 0x16a60, 0x16ac0, 0x16b50, 0x16d70, 0x1ccf0, 0x1d7ce, 0x1d7d8,
    0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0, 0x1e4f0, 0x1e5f1, 0x1e950, 0x1fbf0,
];

/// The text with its card numbers masked.
pub fn mask(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    if bytes.len() < DIGITS_MIN {
        return Cow::Borrowed(text);
    }
    // Without branches, so that it is made of vectors.
    let escapes = bytes.iter().fold(0, |any, &byte| {
        any | u8::from(byte == b'\\') | u8::from(byte == b'%')
    });
    let escapes = escapes != 0;
    match next_run(bytes, 0, escapes) {
        Some(_) if digits_at_most(bytes) >= DIGITS_MIN => mask_runs(text, escapes),
        _ => Cow::Borrowed(text),
    }
}

/// The same, run by run.
fn mask_runs(text: &str, escapes: bool) -> Cow<'_, str> {
    let mut masked = String::new();
    let mut kept = 0;
    let mut at = 0;
    while let Some(run) = next_run(text.as_bytes(), at, escapes)
        && let Some(group) = next_group(text, run)
    {
        let card = match escapes {
            false => card_from(text, group.clone(), false),
            true => card_among_escapes(text, &group),
        };
        at = match card {
            Some(card) => {
                masked.push_str(&text[kept..card.span.start]);
                masked.push_str("****");
                masked.push_str(&card.last);
                kept = card.span.end;
                kept
            }
            None => group.end,
        };
    }
    match kept {
        0 => Cow::Borrowed(text),
        _ => Cow::Owned(masked + &text[kept..]),
    }
}

/// A card number in a text.
struct Card {
    span: Range<usize>,
    /// Its last digits, in ASCII.
    last: String,
}

/// A card number that begins with this group, or where an escape ends in it; an escape between digits is one character, or as many as
/// it has.
fn card_among_escapes(text: &str, group: &Range<usize>) -> Option<Card> {
    let escaped = escape_end(text.as_bytes(), group.start)
        .filter(|begin| *begin < group.end && text.is_char_boundary(*begin));
    let begins = std::iter::once(group.start).chain(escaped);
    begins
        .filter_map(|begin| {
            let from = |escapes| card_from(text, begin..group.end, escapes);
            let readings = [true, false].map(from);
            readings
                .into_iter()
                .flatten()
                .max_by_key(|card| card.span.end)
        })
        .next()
}

/// Where, from there on, so many bytes are in a row that none of them is a letter of ASCII: there may be a card number among them. Most text is
/// passed in steps of that many bytes. With escapes, letters may be within a card number.
fn next_run(text: &[u8], mut from: usize, escapes: bool) -> Option<usize> {
    loop {
        let last = text.get(from + DIGITS_MIN - 1)?;
        if escapes {
            return Some(from);
        }
        // Nearly always the last byte decides.
        if last.is_ascii_alphabetic() {
            from += DIGITS_MIN;
            continue;
        }
        let window = &text[from..from + DIGITS_MIN];
        match window.iter().rposition(u8::is_ascii_alphabetic) {
            Some(letter) => from += letter + 1,
            None => return Some(from),
        }
    }
}

/// How many digits there are, as far as a look at single bytes tells.
fn digits_at_most(text: &[u8]) -> usize {
    // The first bytes of all digits beyond ASCII. Without branches, so that it is made of vectors.
    let beyond = |byte: u8| {
        (byte == 0xd9)
            | (byte == 0xdb)
            | (byte == 0xdf)
            | (byte == 0xe0)
            | (byte == 0xe1)
            | (byte == 0xea)
            | (byte >= 0xef)
    };
    let digits = |piece: &[u8]| {
        let digits = piece
            .iter()
            .map(|&byte| u8::from((byte.wrapping_sub(b'0') < 10) | beyond(byte)));
        usize::from(digits.fold(0, u8::wrapping_add))
    };
    // A byte can count what is in a piece.
    text.chunks(255).map(digits).sum()
}

/// The next run of digits.
fn next_group(text: &str, mut from: usize) -> Option<Range<usize>> {
    loop {
        match digit_at(text, from)? {
            Ok(_) => return Some(from..group_end(text, from)),
            Err(length) => from += length,
        }
    }
}

/// The end of the run of digits that begins there.
fn group_end(text: &str, mut at: usize) -> usize {
    while let Some(Ok((_, length))) = digit_at(text, at) {
        at += length;
    }
    at
}

/// Value and length of the decimal digit there, or the length of the character that is there instead.
fn digit_at(text: &str, at: usize) -> Option<Result<(u8, usize), usize>> {
    let byte = *text.as_bytes().get(at)?;
    if byte.is_ascii() {
        return Some(match byte {
            b'0'..=b'9' => Ok((byte - b'0', 1)),
            _ => Err(1),
        });
    }
    let c = text[at..].chars().next()?;
    let code = u32::from(c);
    let zero = ZEROS[..ZEROS.partition_point(|zero| *zero <= code)].last()?;
    Some(match code - zero {
        value @ 0..10 => Ok((value as u8, c.len_utf8())),
        _ => Err(c.len_utf8()),
    })
}

/// Where the one character ends that stands between two groups.
fn separator_end(text: &str, at: usize, escapes: bool) -> Option<usize> {
    let next = text[at..].chars().next()?;
    let escape = || escape_length(&text.as_bytes()[at..]);
    let length = match escapes && matches!(next, '\\' | '%') {
        true => escape()?,
        false if next.is_alphabetic() => return None,
        false => next.len_utf8(),
    };
    Some(at + length)
}

/// The length of the escaped character with which the text begins, as JSON, Rust, shells and URLs write it.
fn escape_length(text: &[u8]) -> Option<usize> {
    let hex = |from: usize, count: usize| {
        let code = text.get(from..from + count)?;
        let all = code.iter().all(u8::is_ascii_hexdigit);
        all.then_some(from + count)
    };
    match text {
        [b'%', ..] => hex(1, 2),
        [b'\\', b'x', ..] => hex(2, 2),
        [b'\\', b'u', b'{', code @ ..] => {
            let length = code.iter().take_while(|it| it.is_ascii_hexdigit()).count();
            (code.get(length) == Some(&b'}')).then_some(length + 4)
        }
        [b'\\', b'u', ..] => hex(2, 4),
        [
            b'\\',
            b'a'..=b'z' | b'0' | b'"' | b'\'' | b'\\' | b'/' | b' ',
            ..,
        ] => Some(2),
        _ => None,
    }
}

/// Where an escaped character ends whose code goes on at `at`: `%20`, `\x20`, `\u0020`.
fn escape_end(text: &[u8], at: usize) -> Option<usize> {
    [(&b"%"[..], 2), (b"\\x", 2), (b"\\u", 4)]
        .into_iter()
        .find_map(|(sign, digits)| {
            let known = (0..digits).find(|&known| {
                let (before, code) = text[..at].split_at(at.saturating_sub(known));
                before.ends_with(sign) && code.iter().all(u8::is_ascii_hexdigit)
            });
            known.map(|known| at + digits - known)
        })
}

/// The longest card number that begins with this group.
fn card_from(text: &str, first: Range<usize>, escapes: bool) -> Option<Card> {
    let mut digits = [0; DIGITS_MAX];
    let mut known = 0;
    let mut found = None;
    let mut group = first.clone();
    'groups: loop {
        let mut at = group.start;
        while let Some(Ok((value, length))) = digit_at(text, at).filter(|_| at < group.end) {
            if known == DIGITS_MAX || matches!((known, value), (0, 0 | 1 | 7)) {
                break 'groups;
            }
            digits[known] = value;
            known += 1;
            at += length;
        }
        let span = first.start..group.end;
        if is_card(&digits[..known])
            && !is_in_hex(text.as_bytes(), &first)
            && !is_in_hex(text.as_bytes(), &group)
            && !other::holds(text.as_bytes(), &span)
        {
            found = Some((span, known));
        }
        let next = separator_end(text, group.end, escapes).filter(|_| known < DIGITS_MAX);
        match next.map(|begin| begin..group_end(text, begin)) {
            Some(next) if !next.is_empty() => group = next,
            _ => break,
        }
    }
    let (span, known) = found?;
    let last = &digits[known - DIGITS_SHOWN..known];
    let last = last.iter().map(|digit| char::from(b'0' + digit)).collect();
    Some(Card { span, last })
}

/// Whether a run of digits is a part of a long word in hexadecimal, as digests are, or of a number.
fn is_in_hex(text: &[u8], group: &Range<usize>) -> bool {
    let (begin, end) = (group.start, group.end);
    let before = text[..begin].iter().rev();
    let before = before.take_while(|it| it.is_ascii_alphanumeric());
    let before = &text[begin - before.count()..begin];
    let after = text[end..].iter();
    let after = after.take_while(|it| it.is_ascii_alphanumeric());
    let after = &text[end..end + after.count()];
    let hex = |part: &[u8]| part.iter().all(u8::is_ascii_hexdigit);
    match before.strip_prefix(b"0x") {
        Some(before) => hex(before) && hex(after),
        None => {
            let length = before.len() + (end - begin) + after.len();
            let ascii = text[begin..end].is_ascii();
            length >= DIGEST_MIN && ascii && hex(before) && hex(after)
        }
    }
}

fn is_card(digits: &[u8]) -> bool {
    digits.len() >= DIGITS_MIN && is_issued(digits) && luhn(digits) && !is_time(digits)
}

/// Whether they are day, month, year, hour, minute and second, in two digits each but for the year, maybe with fractions.
fn is_time(digits: &[u8]) -> bool {
    let two = |at: usize| u32::from(digits[at]) * 10 + u32::from(digits[at + 1]);
    let is = |at, range: std::ops::RangeInclusive<u32>| range.contains(&two(at));
    matches!(digits.len(), 14 | 17)
        && (is(0, 1..=31) && is(2, 1..=12) && is(4, 19..=20))
        && (is(8, 0..=23) && is(10, 0..=59) && is(12, 0..=59))
}

/// Whether an issuer gives numbers that begin so, of that length.
fn is_issued(digits: &[u8]) -> bool {
    let first_six = digits[..6].iter();
    let six = first_six.fold(0, |six, &digit| six * 10 + u32::from(digit));
    let length = digits.len();
    match six {
        400_000..500_000 => matches!(length, 13 | 16 | 18 | 19), // Visa
        510_000..560_000 | 222_100..272_100 => length == 16,     // Mastercard
        340_000..350_000 | 370_000..380_000 => length == 15,     // American Express
        // Diners Club
        300_000..306_000 | 309_500..309_600 | 360_000..370_000 | 380_000..400_000 => {
            matches!(length, 14 | 16..=19)
        }
        352_800..359_000 => length >= 16, // JCB, RuPay
        220_000..220_500 => length >= 16, // Mir
        979_200..979_300 => length == 16, // Troy
        810_000..830_000 => length >= 16, // UnionPay, RuPay
        500_000..510_000 | 560_000..590_000 => length >= 13, // Maestro, Elo, Verve
        600_000..700_000 => length >= 13, // Maestro, Discover, UnionPay, RuPay, Elo, Hipercard, InterPayment
        860_000..861_000 | 986_000..986_100 => length == 16, // Uzcard, Humo
        _ => false,
    }
}

/// From the right, every second digit counts twice (its digits added); the sum ends in 0.
fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = (digits.iter().rev().enumerate())
        .map(|(place, &digit)| match (place % 2, u32::from(digit)) {
            (0, digit) => digit,
            (_, digit @ 0..5) => digit * 2,
            (_, digit) => digit * 2 - 9,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Numbers that issuers and payment services publish for tests.
    const CARDS: &[&str] = &[
        "4111111111111111",
        "4012888888881881",
        "4222222222222",
        "4000000000000000006",
        "5555555555554444",
        "5105105105105100",
        "2223003122003222",
        "378282246310005",
        "371449635398431",
        "30569309025904",
        "38520000023237",
        "36227206271667",
        "6011111111111117",
        "6011000990139424",
        "3530111333300000",
        "3566002020360505",
        "6200000000000005",
        "6304000000000000",
        "6759649826438453",
        "2200770239097761",
        "9792020000000001",
    ];

    fn last_four(card: &str) -> String {
        format!("****{}", &card[card.len() - 4..])
    }

    #[test]
    fn card_numbers_show_their_last_four_digits() {
        for card in CARDS {
            let masked = last_four(card);
            assert_eq!(mask(card), masked);
            for around in [
                "/in/@.csv",
                "order-@-x",
                "\"@\"",
                "card@x",
                "\\n@",
                "ü@ü",
                "20250629 @",
                "a_@_x",
                "cc@.csv",
                "a@b",
                "%20@%20",
                "%E9@",
                "\\u0022@\\u0022",
                "\\u00e9@",
                "\\x22@",
                "100%@",
            ] {
                assert_eq!(
                    mask(&around.replace('@', card)),
                    around.replace('@', &masked)
                );
            }
            let both = format!("{card},{card} {card}");
            assert_eq!(mask(&both), format!("{masked},{masked} {masked}"));
        }
    }

    #[test]
    fn groups_are_masked_as_a_whole() {
        for (grouped, masked) in [
            ("4111 1111 1111 1111", "****1111"),
            ("4111-1111-1111-1111", "****1111"),
            ("/in/4111_1111_1111_1111.csv", "/in/****1111.csv"),
            ("4111.1111.1111.1111.csv", "****1111.csv"),
            ("41111111 11111111.csv", "****1111.csv"),
            ("3782-822463-10005", "****0005"),
            ("3056 930902 5904", "****5904"),
            ("4222 2222 2222 2", "****2222"),
            ("411 111 111 111 111 1", "****1111"),
            ("20260101-4111-1111-1111-1111-7", "20260101-****1111-7"),
            ("abc4111 1111 1111 1111def", "abc****1111def"),
            ("4111-1111 1111.1111", "****1111"),
            ("41 11 11 11 11 11 11 11", "****1111"),
            ("41/11/11/11/11/11/11/11", "****1111"),
            ("4 1-1.1_1:1,1;1|1/1+1*1#1=1~1·1", "****1111"),
            ("20/4/1/1/1/1/1/1/1/1/1/1/1/1/1/1/1", "20/****1111"),
            ("4111\\t1111\\n1111\\u{a0}1111", "****1111"),
            ("4111%201111%201111%201111", "****1111"),
            ("4111%1111%1111%1111", "****1111"),
            ("4000\\0000\\0000\\0000\\006", "****0006"),
            ("4111\\u00a01111\\x201111\\/1111", "****1111"),
            (
                "２０２６: ４１１１ １１１１ 1111 １１１１。",
                "２０２６: ****1111。",
            ),
            ("٤١١١١١١١١١١١١١١١ x", "****1111 x"),
            ("𝟒𝟏𝟏𝟏 𝟏𝟏𝟏𝟏 𝟏𝟏𝟏𝟏 𝟏𝟏𝟏𝟏", "****1111"),
        ] {
            assert_eq!(mask(grouped), masked, "{grouped}");
        }
        for separator in [
            " ",
            "-",
            "_",
            ".",
            ":",
            ",",
            ";",
            "/",
            "|",
            "\t",
            "\n",
            "\r",
            "\0",
            "\u{7f}",
            "\\",
            "%",
            "'",
            "\"",
            "(",
            "&",
            "\u{a0}",
            "\u{ad}",
            "\u{b7}",
            "\u{200b}",
            "\u{2009}",
            "\u{2010}",
            "\u{2011}",
            "\u{2013}",
            "\u{2014}",
            "\u{202f}",
            "\u{2060}",
            "\u{2212}",
            "\u{3000}",
            "\u{fe63}",
            "\u{feff}",
            "\u{ff0d}",
            "\u{fffd}",
            "\u{1f4b3}",
        ] {
            for length in 1..=13 {
                for card in CARDS {
                    let groups: Vec<&str> = (0..card.len())
                        .step_by(length)
                        .map(|at| &card[at..card.len().min(at + length)])
                        .collect();
                    let grouped = groups.join(separator);
                    assert_eq!(mask(&grouped), last_four(card), "{grouped:?}");
                }
            }
        }
    }

    /// Numbers in the lines that ringest writes, and in paths and messages that are in them.
    #[test]
    fn ordinary_lines_stay_as_they_are() {
        // As many numbers as will do to find every one of ten that has the right check digit by chance.
        for n in 0..2_000u64 {
            let hash = |salt: u64| xxhash_rust::xxh3::xxh3_64(&(n * 1_000 + salt).to_le_bytes());
            let below = |salt, limit| hash(salt) % limit;
            let (year, month, day) = (2020 + below(1, 20), 1 + below(2, 12), 1 + below(3, 31));
            let (hour, minute, second) = (below(4, 24), below(5, 60), below(6, 60));
            let (micros, nanos) = (below(7, 1_000_000), below(8, 1_000_000_000));
            let date = format!("{year}-{month:02}-{day:02}");
            let time = format!("{hour:02}:{minute:02}:{second:02}");
            // Of decimal digits alone, as one in many is.
            let uuid = format!(
                "{:08}-{:04}-4{:03}-8{:03}-{:012}",
                below(9, 100_000_000),
                below(10, 10_000),
                below(11, 1_000),
                below(12, 1_000),
                below(13, 1_000_000_000_000),
            );
            let octet = |salt| below(salt, 256);
            let ip = format!(
                "{}.{}.{}.{}",
                10 + below(14, 246),
                octet(15),
                octet(16),
                octet(17)
            );
            let (north, east) = (
                below(18, 90_000_000) as f64 / 1e6,
                below(19, 180_000_000) as f64 / 1e6,
            );
            let word = |salt| below(salt, 10_000);
            let digest = format!("{:032}{:031}f", hash(20), hash(21));
            for line in [
                format!("{date}T{time}.{micros:06}Z"),
                format!("{date} {time}.{nanos:09}"),
                format!("{date} {time},{micros:03} 4711 INFO"),
                format!("{date}T{time}.{nanos:09}+02:00"),
                format!("{date}-{hour:02}-{minute:02}-{second:02}-{micros:06}"),
                format!("{date}_{hour:02}_{minute:02}"),
                format!("{day:02}.{month:02}.{year} {time}.{nanos:09}"),
                format!("{month}/{day}/{year} {time}.{nanos:09} PM"),
                format!("{day:02}/Nov/{year}:{time} +0000"),
                format!("Nov {day} {time}.{micros:06} host ringest[4711]: done"),
                format!("{}.{nanos:09}", 1_796_000_000 + below(22, 100_000_000)),
                format!(
                    "/srv/warehouse/{year}/{month:02}/{day:02}/{hour:02}/{}.csv",
                    hash(23) / 10
                ),
                format!("/srv/warehouse/ingest_date={date}/{nanos}.csv"),
                format!("/srv/manifests/{year}/{month:02}/{day:02}/{hour:02}/manifest.jsonl"),
                format!("/srv/staging/.ringest-{uuid}-{}", word(24)),
                format!("/srv/staging/.ringest-{uuid}-{}.sidecar", word(24)),
                format!("ledger {uuid} of {date}"),
                format!("{ip}:{} -> {ip}/24, {ip} {ip}", 1_024 + below(25, 60_000)),
                format!(
                    "2001:{}:{}:0:0:0:{}:{}",
                    word(26),
                    word(27),
                    word(28),
                    word(29)
                ),
                format!("2001:{}:{}::{}:{}", word(26), word(27), word(28), word(29)),
                format!("{north},{east}"),
                format!("POINT ({east:.6} {north:.6})"),
                format!(
                    "Linux 6.{}.{}-{}-generic #{}",
                    below(30, 30),
                    below(31, 300),
                    below(32, 200),
                    below(33, 99)
                ),
                format!("ringest 0.1.{}, heed 0.22.{}", below(34, 20), below(35, 20)),
                format!("[{}, {}, {}, {}]", word(36), word(37), word(38), word(39)),
                format!(
                    "{} of {} bytes at offset {}",
                    hash(40) % 100_000_000,
                    hash(41) % 100_000_000,
                    word(42)
                ),
                format!("{digest}  {date}.csv"),
                format!(
                    "inode {}, device 65024, mode 0644, uid 2001",
                    below(43, 100_000_000)
                ),
            ] {
                // A number of one run may be one by chance.
                let alone = line
                    .split(|c: char| !c.is_ascii_digit())
                    .any(|run| mask(run) != run);
                assert!(alone || mask(&line) == line, "{line}: {}", mask(&line));
            }
        }
    }

    #[test]
    fn what_is_no_card_number_survives() {
        let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        for text in [
            "",
            "20250629103045123",
            "20250629T103045.123",
            "2025-06-29-10-30-45-123456-0001",
            "1751193045123",
            "1751193045123456",
            "1751193045123456789",
            "4111111111111112",
            "411111111111111",
            "4111  1111  1111  1111",
            "192.168.100.200.5555",
            "5.15.0-1111.1111",
            "00004111111111111111",
            "41111111111111110000",
            "deadbeef411111111111111100000000",
            "0x4111111111111111",
            "30062025103005",
            "30112025235904",
            "22032026103045126",
            "9999999999999995",
            "52428800 1048576",
            "00000000000000000000",
            digest,
        ] {
            assert_eq!(mask(text), text);
        }
    }

    #[test]
    fn no_time_stamp_of_this_decade_is_masked() {
        // 2020-01-01 to 2030-01-01, in steps of some hours and odd nanoseconds.
        for second in (1_577_836_800i64..1_893_456_000).step_by(10_007) {
            let nanos = i128::from(second) * 1_000_000_000 + i128::from(second % 999_999_937);
            for unit in [1_000_000, 1_000, 1] {
                let number = (nanos / unit).to_string();
                assert_eq!(mask(&number), number);
            }
            let time = jiff::Timestamp::from_nanosecond(nanos).expect("in range");
            for format in [
                "%Y%m%d%H%M%S%3f",
                "%Y%m%d%H%M%S%6f",
                "%Y%m%d%H%M",
                "%d%m%Y%H%M%S",
                "%d%m%Y%H%M%S%3f",
                "%m%d%Y%H%M%S",
                "%Y-%m-%d %H-%M-%S-%3f",
            ] {
                let text = time.strftime(format).to_string();
                assert_eq!(mask(&text), text);
            }
        }
    }

    #[test]
    fn text_without_enough_digits_is_passed_over() {
        let none = |text: &str| assert_eq!(next_run(text.as_bytes(), 0, false), None, "{text}");
        none("/srv/ringest/staging/2025-06-29_cities.csv");
        none("123456789012");
        assert_eq!(next_run(b"1234567890123", 0, false), Some(0));
        assert_eq!(next_run(b"/in/x1234-567 890123x", 0, false), Some(5));
        assert_eq!(next_run(b"1 234567890123456", 1, false), Some(1));
        assert_eq!(
            digits_at_most(b"/srv/ringest/staging/2025-06-29_cities.csv"),
            8
        );
        assert_eq!(digits_at_most("\u{ff14}111\u{10ffff}é".as_bytes()), 5);
        assert_eq!(digits_at_most(&[b'4'; 1_000]), 1_000);
    }

    proptest! {
        #[test]
        fn a_card_number_in_any_text_is_masked_and_what_is_masked_stays_so(
            before in "[^\\p{Nd}]{0,10}",
            card in proptest::sample::select(CARDS),
            after in "[^\\p{Nd}]{0,10}",
        ) {
            let text = format!("{before}{card}{after}");
            let masked = mask(&text).into_owned();
            prop_assert_eq!(&masked, &format!("{before}{}{after}", last_four(card)));
            prop_assert_eq!(mask(&masked), masked.as_str());
        }

        #[test]
        fn a_card_number_with_any_separators_is_masked(
            card in proptest::sample::select(CARDS),
            separators in proptest::collection::vec("[\\p{P}\\p{S}\\p{Z}]?", 18),
        ) {
            let digits = card.chars().zip(separators.iter().map(String::as_str).chain([""]));
            let text: String = digits.map(|(digit, next)| format!("{digit}{next}")).collect();
            let text = text.trim_end_matches(|c: char| !c.is_ascii_digit());
            // Circled letters are letters, and what looks like a time of day is one.
            let is_other = text.contains(char::is_alphabetic) || text.matches(':').count() > 1;
            prop_assert!(is_other || mask(text) == last_four(card), "{}", text);
        }

        #[test]
        fn any_text_can_be_masked(text in "[0-9 \\-:.%u{}a-gxé４\\\\]{0,60}") {
            let masked = mask(&text).into_owned();
            prop_assert!(masked.len() <= text.len());
        }
    }
}
