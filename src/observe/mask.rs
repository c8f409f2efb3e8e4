//! Payment card numbers are replaced by `****` and their last four digits in everything that is told: log events, reasons, status, errors,
//! panics. Not in manifests, in what `find` and its like print, or in content.
//!
//! A card number is 13 to 19 digits in the range of an issuer, as many as that issuer gives, whose last digit is the right one
//! (Luhn). The digits may be in groups of three or more (the last may be shorter) with a space or one of `-_.` between them. What
//! looks like one and is none: a run of digits within a digest or another long hexadecimal word, a longer run, and time stamps, because
//! no issuer's numbers begin with 1 or 20, dates and times in groups have groups of two, and those that begin with the day are known.

use std::borrow::Cow;

/// Fewest digits of a card number.
const DIGITS_MIN: usize = 13;
/// Most digits of a card number.
const DIGITS_MAX: usize = 19;
/// Fewest digits of a group, other than the last.
const GROUP_MIN: usize = 3;
/// Shortest word in hexadecimal that is taken for a digest: of 128 bits.
const DIGEST_MIN: usize = 32;
/// Digits that are left to be seen.
const DIGITS_SHOWN: usize = 4;

/// The text with its card numbers masked.
pub fn mask(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut masked = String::new();
    let mut kept = 0;
    let mut at = 0;
    while let Some(group) = next_run(bytes, at).and_then(|run| next_group(bytes, run)) {
        let escaped = escape_end(bytes, group.0).filter(|begin| *begin < group.1);
        let begins = std::iter::once(group.0).chain(escaped);
        let mut cards =
            begins.filter_map(|begin| Some((begin, card_from(bytes, (begin, group.1))?)));
        match cards.next() {
            Some((begin, end)) => {
                masked.push_str(&text[kept..begin]);
                masked.push_str("****");
                let digits = text[begin..end].chars().filter(char::is_ascii_digit);
                let digits: String = digits.collect();
                masked.push_str(&digits[digits.len() - DIGITS_SHOWN..]);
                kept = end;
                at = end;
            }
            None => at = group.1,
        }
    }
    match kept {
        0 => Cow::Borrowed(text),
        _ => Cow::Owned(masked + &text[kept..]),
    }
}

/// Where, from there on, so many digits and what may lie between them are in a row that there may be a card number among them. Most text is
/// passed in steps of that many bytes.
fn next_run(text: &[u8], mut from: usize) -> Option<usize> {
    let of_card = |byte: &u8| byte.is_ascii_digit() || is_between(*byte);
    loop {
        let window = text.get(from..from + DIGITS_MIN)?;
        match window.iter().rposition(|byte| !of_card(byte)) {
            Some(other) => from += other + 1,
            None => return Some(from),
        }
    }
}

/// What may lie between two groups.
fn is_between(byte: u8) -> bool {
    matches!(byte, b' ' | b'-' | b'_' | b'.')
}

/// Begin and end of the next run of digits.
fn next_group(text: &[u8], from: usize) -> Option<(usize, usize)> {
    let begin = from + text[from..].iter().position(u8::is_ascii_digit)?;
    let digits = text[begin..].iter().take_while(|it| it.is_ascii_digit());
    Some((begin, begin + digits.count()))
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

/// Where the longest card number ends that begins with this group.
fn card_from(text: &[u8], first: (usize, usize)) -> Option<usize> {
    let mut digits = [0; DIGITS_MAX];
    let mut known = 0;
    let mut found = None;
    let mut group = first;
    loop {
        let run = &text[group.0..group.1];
        if known + run.len() > DIGITS_MAX {
            return found;
        }
        for digit in run {
            digits[known] = digit - b'0';
            known += 1;
        }
        if is_card(&digits[..known]) && !(group == first && is_in_hex(text, group)) {
            found = Some(group.1);
        }
        let next = next_group(text, group.1);
        match next.filter(|next| next.0 == group.1 + 1) {
            Some(next) if run.len() >= GROUP_MIN && is_between(text[group.1]) => {
                group = next;
            }
            _ => return found,
        }
    }
}

/// Whether a run of digits is a part of a long word in hexadecimal, as digests are, or of a number.
fn is_in_hex(text: &[u8], (begin, end): (usize, usize)) -> bool {
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
            before.len() + (end - begin) + after.len() >= DIGEST_MIN && hex(before) && hex(after)
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
        ] {
            assert_eq!(mask(grouped), masked, "{grouped}");
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
    fn text_without_a_long_run_is_passed_over() {
        let none = |text: &str| assert_eq!(next_run(text.as_bytes(), 0), None, "{text}");
        none("/srv/ringest/staging/2025-06-29_cities.csv");
        none("123456789012");
        assert_eq!(next_run(b"1234567890123", 0), Some(0));
        assert_eq!(next_run(b"/in/x1234-567 890123x", 0), Some(5));
        assert_eq!(next_run(b"1 234567890123456", 1), Some(1));
    }

    proptest! {
        #[test]
        fn a_card_number_in_any_text_is_masked_and_what_is_masked_stays_so(
            before in "[^0-9]{0,10}",
            card in proptest::sample::select(CARDS),
            after in "[^0-9]{0,10}",
        ) {
            let text = format!("{before}{card}{after}");
            let masked = mask(&text).into_owned();
            prop_assert_eq!(&masked, &format!("{before}{}{after}", last_four(card)));
            prop_assert_eq!(mask(&masked), masked.as_str());
        }

        #[test]
        fn any_text_can_be_masked(text in "[0-9 \\-a-gxé]{0,60}") {
            let masked = mask(&text).into_owned();
            prop_assert!(masked.len() <= text.len());
        }
    }
}
