//! Numbers that are a part of something else: dates, times of day, UUIDs, IP addresses, pairs of coordinates.

use std::ops::{Range, RangeInclusive};

/// Bytes on each side of a number in which what it may be a part of is looked for.
const AROUND: usize = 64;

/// Whether what would be a card number overlaps a date, a time of day, a UUID or an IPv6 address, or begins within an IPv4 address or
/// a pair of coordinates.
pub(super) fn holds(text: &[u8], span: &Range<usize>) -> bool {
    let around = span.start.saturating_sub(AROUND)..text.len().min(span.end + AROUND);
    let overlapped = |other: Range<usize>| other.start < span.end && span.start < other.end;
    let begun_in = |other: Range<usize>| other.contains(&span.start);

    let numbers = Words::of(text, around.clone(), u8::is_ascii_digit);
    let words = Words::of(text, around, u8::is_ascii_alphanumeric);
    (0..numbers.spans.len()).any(|at| {
        date(&numbers, at).is_some_and(overlapped)
            || time_of_day(&numbers, at).is_some_and(overlapped)
            || ipv4(&numbers, at).is_some_and(begun_in)
            || coordinates(&numbers, at).is_some_and(begun_in)
    }) || (0..words.spans.len()).any(|at| {
        uuid(&words, at).is_some_and(overlapped) || ipv6(&words, at).is_some_and(overlapped)
    })
}

/// Runs of bytes of one kind, and what is between them.
struct Words<'a> {
    text: &'a [u8],
    spans: Vec<Range<usize>>,
}

impl Words<'_> {
    fn of(text: &[u8], within: Range<usize>, member: impl Fn(&u8) -> bool) -> Words<'_> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        for at in within.filter(|at| member(&text[*at])) {
            match spans.last_mut() {
                Some(last) if last.end == at => last.end += 1,
                _ => spans.push(at..at + 1),
            }
        }
        Words { text, spans }
    }

    fn length(&self, at: usize) -> usize {
        self.spans.get(at).map_or(0, |span| span.len())
    }

    fn lengths<const N: usize>(&self, at: usize) -> [usize; N] {
        std::array::from_fn(|i| self.length(at + i))
    }

    /// The number, if it has so many digits and is in this range.
    fn is(&self, at: usize, digits: RangeInclusive<usize>, range: RangeInclusive<u32>) -> bool {
        let Some(span) = self.spans.get(at).filter(|it| digits.contains(&it.len())) else {
            return false;
        };
        let digits = self.text[span.clone()].iter();
        let value = digits.fold(0u32, |value, digit| {
            value.wrapping_mul(10).wrapping_add(u32::from(digit - b'0'))
        });
        range.contains(&value)
    }

    /// What is between this one and the next.
    fn gap(&self, at: usize) -> &[u8] {
        match (self.spans.get(at), self.spans.get(at + 1)) {
            (Some(one), Some(next)) => &self.text[one.end..next.start],
            _ => b"",
        }
    }

    /// What is between this one and the one before.
    fn gap_before(&self, at: usize) -> &[u8] {
        at.checked_sub(1).map_or(b"", |before| self.gap(before))
    }

    /// From the begin of one to the end of another.
    fn span(&self, from: usize, to: usize) -> Range<usize> {
        self.spans[from].start..self.spans[to].end
    }

    fn is_hex(&self, at: usize) -> bool {
        let word = self.spans.get(at).map(|span| &self.text[span.clone()]);
        word.is_some_and(|word| word.iter().all(u8::is_ascii_hexdigit))
    }
}

/// Year, month and day, or the year last, with one and the same character between them; then maybe hour, minute, second and fraction.
fn date(numbers: &Words, at: usize) -> Option<Range<usize>> {
    let year = |at| numbers.is(at, 4..=4, 1900..=2099);
    let day = |at| numbers.is(at, 1..=2, 1..=31);
    let gap = numbers.gap(at);
    let is_date = gap.len() == 1
        && gap == numbers.gap(at + 1)
        && ((year(at) && day(at + 1) && day(at + 2)) || (day(at) && day(at + 1) && year(at + 2)));
    if !is_date {
        return None;
    }
    let time = [(2, 2, 23), (2, 2, 59), (2, 2, 60), (1, 9, 999_999_999)];
    let mut last = at + 2;
    for (least, most, largest) in time {
        if numbers.gap(last).len() != 1 || !numbers.is(last + 1, least..=most, 0..=largest) {
            break;
        }
        last += 1;
    }
    Some(numbers.span(at, last))
}

/// `hh:mm:ss`, with a fraction or without; or a duration.
fn time_of_day(numbers: &Words, at: usize) -> Option<Range<usize>> {
    let is_time = numbers.is(at, 1..=3, 0..=999)
        && numbers.is(at + 1, 2..=2, 0..=59)
        && numbers.is(at + 2, 2..=2, 0..=60)
        && (numbers.gap(at) == b":" && numbers.gap(at + 1) == b":")
        && (numbers.gap_before(at) != b":" && numbers.gap(at + 2) != b":");
    let has_fraction =
        matches!(numbers.gap(at + 2), b"." | b",") && numbers.is(at + 3, 1..=9, 0..=999_999_999);
    is_time.then(|| numbers.span(at, at + 2 + usize::from(has_fraction)))
}

/// Four numbers with dots, of six digits or more, with a port or the length of a prefix or without.
fn ipv4(numbers: &Words, at: usize) -> Option<Range<usize>> {
    let is_address = (at..at + 4).all(|at| numbers.is(at, 1..=3, 0..=255))
        && (at..at + 3).all(|at| numbers.gap(at) == b".")
        && (numbers.gap_before(at) != b"." && numbers.gap(at + 3) != b".")
        && numbers.lengths::<4>(at).iter().sum::<usize>() >= 6;
    let has_more = match numbers.gap(at + 3) {
        b":" => numbers.is(at + 4, 1..=5, 0..=65535),
        b"/" => numbers.is(at + 4, 1..=2, 0..=32),
        _ => false,
    };
    is_address.then(|| numbers.span(at, at + 3 + usize::from(has_more)))
}

/// Two decimal fractions of degrees.
fn coordinates(numbers: &Words, at: usize) -> Option<Range<usize>> {
    let fraction = |at: usize| {
        numbers.is(at, 1..=3, 0..=180) && numbers.gap(at) == b"." && numbers.length(at + 1) >= 3
    };
    let between = matches!(numbers.gap(at + 1), b"," | b";" | b" " | b"/");
    (fraction(at) && between && fraction(at + 2)).then(|| numbers.span(at, at + 3))
}

fn uuid(words: &Words, at: usize) -> Option<Range<usize>> {
    let is_uuid = words.lengths(at) == [8, 4, 4, 4, 12]
        && (at..at + 5).all(|at| words.is_hex(at))
        && (at..at + 4).all(|at| words.gap(at) == b"-");
    is_uuid.then(|| words.span(at, at + 4))
}

/// Eight words with colons, of which the first has four digits, or fewer with `::` between two of them.
fn ipv6(words: &Words, at: usize) -> Option<Range<usize>> {
    let is_word = |at: usize| (1..=4).contains(&words.length(at)) && words.is_hex(at);
    let is_first =
        is_word(at) && !(matches!(words.gap_before(at), b":" | b"::") && at > 0 && is_word(at - 1));
    let mut last = at;
    let mut left_out = false;
    while is_first && matches!(words.gap(last), b":" | b"::") && is_word(last + 1) {
        left_out |= words.gap(last) == b"::";
        last += 1;
    }
    let is_full = last - at == 7 && words.length(at) == 4;
    (left_out || is_full).then(|| words.span(at, last))
}
