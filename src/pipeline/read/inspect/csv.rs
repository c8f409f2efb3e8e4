//! CSV as RFC 4180 has it, and as spreadsheets and Python's `csv` read it: fields may be quoted, a doubled quote stands for one,
//! a quote within an unquoted field is a character like any other, lines end in LF, CRLF or CR, and blank ones are none.
//! A byte order mark is skipped. What follows a closing quote must be a delimiter or the end of the line.
//!
//! Nothing but the header is kept. Only delimiters, quotes and ends of lines are looked at one by one; they are found eight bytes
//! at a time (Lamport, "Multiple byte processing with full-word instructions", 1975; the exact form, without carries between bytes), and
//! a bit for each of 64 is gathered by multiplications before any of them is looked at.

use crate::pipeline::Finding;
use crate::settings::CsvRules;

use super::{Counts, finding};

/// Longest header, in bytes.
const HEADER_BYTES_MAX: u64 = 1 << 20;
const BYTE_ORDER_MARK: &[u8; 3] = b"\xef\xbb\xbf";

/// A check of CSV.
#[derive(Debug)]
pub struct Csv {
    rules: CsvRules,
    marks: Marks,
    /// Bytes before the piece that is looked at.
    seen: u64,
    /// Bytes of the byte order mark found so far; `None` once it is whole or cannot come any more.
    mark: Option<usize>,
    state: State,
    /// Where the record and the field begin.
    record_at: u64,
    field_at: u64,
    /// Number of the field in its record.
    field: u64,
    line: u64,
    line_at: u64,
    /// Where the last CR was: an LF right behind it ends no line of its own.
    cr_at: Option<u64>,
    /// The first record, as far as it is known; `None` once it has been read.
    header: Option<Vec<u8>>,
    columns: Option<u64>,
    key: Option<u64>,
    records: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unquoted,
    Quoted {
        since: Place,
    },
    /// Behind what may be the closing quote, which is at that byte.
    Closed {
        since: Place,
        at: u64,
    },
}

/// Both from 1; the column in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    line: u64,
    column: u64,
}

/// Bytes that are looked at together.
const BLOCK_BYTES: usize = 64;

/// The bytes that are looked at one by one: delimiter, quote, LF and CR.
#[derive(Debug, Clone, Copy)]
struct Marks([u8; 4]);

impl Marks {
    /// A bit for each place of the block where one of them is.
    #[inline]
    fn in_block(self, block: &[u8; BLOCK_BYTES]) -> u64 {
        // Each eight bytes' highest bits are gathered into one byte.
        let [delimiter, quote, lf, cr] = self.0.map(Word::of);
        let (words, _) = block.as_chunks::<8>();
        words.iter().zip(0..).fold(0, |found, (word, number)| {
            let word = u64::from_le_bytes(*word);
            let at = delimiter.at(word) | quote.at(word) | lf.at(word) | cr.at(word);
            let bits = (at >> 7).wrapping_mul(0x0102_0408_1020_4080) >> 56;
            found | bits << (8 * number)
        })
    }
}

/// A byte in all eight places.
#[derive(Debug, Clone, Copy)]
struct Word(u64);

const LOW: u64 = 0x7f7f_7f7f_7f7f_7f7f;

impl Word {
    const fn of(byte: u8) -> Word {
        Word(0x0101_0101_0101_0101 * byte as u64)
    }

    /// The highest bit of each byte that is this one.
    const fn at(self, bytes: u64) -> u64 {
        let other = bytes ^ self.0;
        !(((other & LOW) + LOW) | other | LOW)
    }
}

impl Csv {
    /// A check of a file that has not been looked at.
    pub fn new(rules: &CsvRules) -> Csv {
        Csv {
            // Without quotes there is nothing else to look for.
            marks: Marks([
                rules.delimiter,
                rules.quote.unwrap_or(rules.delimiter),
                b'\n',
                b'\r',
            ]),
            seen: 0,
            mark: Some(0),
            state: State::Unquoted,
            record_at: 0,
            field_at: 0,
            field: 0,
            line: 1,
            line_at: 0,
            cr_at: None,
            header: rules.header.then(Vec::new),
            columns: None,
            key: None,
            records: 0,
            rules: rules.clone(),
        }
    }

    /// Takes in the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Finding> {
        self.skip_mark(bytes);
        if let Some(header) = &mut self.header {
            let room = (HEADER_BYTES_MAX + 1 - header.len() as u64) as usize;
            header.extend(&bytes[..bytes.len().min(room)]);
        }
        let (blocks, rest) = bytes.as_chunks::<BLOCK_BYTES>();
        let mut at = self.seen;
        for block in blocks {
            let mut found = self.marks.in_block(block);
            while found != 0 {
                let place = found.trailing_zeros();
                let byte = block[place as usize];
                let at = at + u64::from(place);
                // Most of them are this, and are done with here.
                if byte == self.rules.delimiter
                    && self.state == State::Unquoted
                    && self.key != Some(self.field)
                {
                    self.field += 1;
                    self.field_at = at + 1;
                } else {
                    self.step(at, byte)?;
                }
                found &= found - 1;
            }
            at += BLOCK_BYTES as u64;
        }
        for &byte in rest {
            if self.marks.0.contains(&byte) {
                self.step(at, byte)?;
            }
            at += 1;
        }
        self.seen = at;
        if self.header.is_some() && self.seen > HEADER_BYTES_MAX {
            return Err(long_header(self.line));
        }
        Ok(())
    }

    /// The end of the file.
    pub fn finish(mut self) -> Result<Counts, Finding> {
        match self.state {
            State::Quoted { since } => {
                let Place { line, column } = since;
                let message = format!("the quote at line {line}, column {column} is never closed");
                return Err(finding("csv_quote", message).at(line, column));
            }
            State::Closed { at, .. } if at + 1 < self.seen => return Err(self.text_behind(at)),
            State::Unquoted | State::Closed { .. } => {}
        }
        if self.record_at < self.seen {
            self.end_field(self.seen)?;
            self.end_record(self.seen)?;
        }
        if self.header.is_some() {
            return Err(finding("csv_header", "it has no header: it is empty"));
        }
        if self.records < self.rules.min_records {
            let message = format!(
                "it has {} records, fewer than min_records = {}",
                self.records, self.rules.min_records
            );
            return Err(finding("min_records", message));
        }
        Ok(Counts {
            records: Some(self.records),
            columns: self.columns,
        })
    }

    fn skip_mark(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let Some(found) = self.mark else { return };
            self.mark = (BYTE_ORDER_MARK.get(found) == Some(byte)).then_some(found + 1);
            if self.mark == Some(BYTE_ORDER_MARK.len()) {
                self.mark = None;
                (self.record_at, self.field_at, self.line_at) = (3, 3, 3);
            }
        }
    }

    /// A delimiter, a quote, or what ends a line, `at` bytes from the beginning.
    fn step(&mut self, at: u64, byte: u8) -> Result<(), Finding> {
        if self.header.is_some() && at > HEADER_BYTES_MAX {
            return Err(long_header(self.line));
        }
        let is_quote = Some(byte) == self.rules.quote;
        match self.state {
            State::Unquoted if is_quote => {
                if at == self.field_at {
                    let since = Place {
                        line: self.line,
                        column: at - self.line_at + 1,
                    };
                    self.state = State::Quoted { since };
                }
                return Ok(());
            }
            State::Quoted { since } => {
                if is_quote {
                    self.state = State::Closed { since, at };
                } else if byte != self.rules.delimiter {
                    self.end_line(at, byte);
                }
                return Ok(());
            }
            State::Closed { at: closed, .. } if at != closed + 1 => {
                return Err(self.text_behind(closed));
            }
            State::Closed { since, .. } if is_quote => {
                self.state = State::Quoted { since };
                return Ok(());
            }
            State::Unquoted | State::Closed { .. } => {}
        }
        if byte == self.rules.delimiter {
            return self.end_field(at);
        }
        if at > self.record_at {
            self.end_field(at)?;
            self.end_record(at)?;
        }
        self.end_line(at, byte);
        (self.record_at, self.field_at) = (at + 1, at + 1);
        Ok(())
    }

    fn end_line(&mut self, at: u64, byte: u8) {
        let second = byte == b'\n' && at > 0 && self.cr_at == Some(at - 1);
        if !second {
            self.line += 1;
        }
        self.line_at = at + 1;
        if byte == b'\r' {
            self.cr_at = Some(at);
        }
    }

    fn end_field(&mut self, end: u64) -> Result<(), Finding> {
        let bytes = end - self.field_at;
        let empty = match self.state {
            State::Closed { .. } => bytes == 2,
            _ => bytes == 0,
        };
        if empty && self.key == Some(self.field) {
            let name = self.rules.key_column.as_deref().unwrap_or_default();
            let message = format!("line {}: the key column {name:?} is empty", self.line);
            let column = self.field_at.saturating_sub(self.line_at) + 1;
            return Err(finding("key_column", message).at(self.line, column));
        }
        self.state = State::Unquoted;
        self.field += 1;
        self.field_at = end + 1;
        Ok(())
    }

    fn end_record(&mut self, end: u64) -> Result<(), Finding> {
        let fields = std::mem::take(&mut self.field);
        let columns = *self.columns.get_or_insert(fields);
        if fields != columns {
            let message = format!(
                "line {}: it has {fields} columns, the first record has {columns}",
                self.line
            );
            return Err(finding("csv_width", message).in_line(self.line));
        }
        match self.header.take() {
            None => self.records += 1,
            Some(mut header) => {
                header.truncate(end as usize);
                header.drain(..self.record_at as usize);
                let line = self.line;
                self.read_header(&header, columns)
                    .map_err(|found| found.in_line(line))?;
            }
        }
        Ok(())
    }

    /// Names are compared in their order, which takes four bytes for each, whatever they are.
    fn read_header(&mut self, header: &[u8], columns: u64) -> Result<(), Finding> {
        let names = Fields::of(&self.rules, header, columns as usize);
        let mut order: Vec<u32> = (0..names.count as u32).collect();
        order.sort_unstable_by_key(|&place| (names.at(place), place));
        let pairs = order.windows(2).map(|pair| (pair[0], pair[1]));
        let twice = pairs.filter(|&(one, other)| names.at(one) == names.at(other));
        if let Some((one, other)) = twice.min_by_key(|&(_, other)| other) {
            let message = format!("columns {} and {} have the same name", one + 1, other + 1);
            return Err(finding("csv_header", message));
        }
        let place_of = |rule: &str, name: &String| {
            let found = order.binary_search_by_key(&name.as_bytes(), |&place| names.at(place));
            let missing = |_| finding(rule, format!("it has no column {name:?}"));
            found.map(|at| u64::from(order[at])).map_err(missing)
        };
        for name in &self.rules.required_columns {
            place_of("required_columns", name)?;
        }
        if let Some(name) = &self.rules.key_column {
            self.key = Some(place_of("key_column", name)?);
        }
        Ok(())
    }

    fn text_behind(&self, closed: u64) -> Finding {
        let (line, column) = (self.line, closed + 2 - self.line_at);
        let message = format!("line {line}, column {column}: text follows a closing quote");
        finding("csv_quote", message).at(line, column)
    }
}

fn long_header(line: u64) -> Finding {
    let message = format!("its first record has more than {HEADER_BYTES_MAX} bytes");
    finding("csv_header", message).in_line(line)
}

/// The fields of one record.
struct Fields {
    text: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
    count: usize,
}

impl Fields {
    /// Of a record that has so many.
    fn of(rules: &CsvRules, record: &[u8], columns: usize) -> Fields {
        let mut builder = csv_core::ReaderBuilder::new();
        builder.delimiter(rules.delimiter);
        match rules.quote {
            Some(quote) => builder.quote(quote),
            None => builder.quoting(false),
        };
        let mut reader = builder.build();
        let mut text = vec![0; record.len()];
        let mut ends = vec![0; columns + 1];
        // Twice: what is there, and the end of it.
        let (_, read, bytes, mut count) = reader.read_record(record, &mut text, &mut ends);
        let (text_left, ends_left) = (&mut text[bytes..], &mut ends[count..]);
        let (.., more) = reader.read_record(&record[read..], text_left, ends_left);
        count += more;
        Fields { text, ends, count }
    }

    /// The one of that number, from 0.
    fn at(&self, place: u32) -> &[u8] {
        let place = place as usize;
        let begin = place.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.text[begin..self.ends[place]]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules() -> CsvRules {
        CsvRules::default()
    }

    fn check_in(rules: &CsvRules, content: &[u8], piece: usize) -> Result<Counts, Finding> {
        let mut csv = Csv::new(rules);
        for piece in content.chunks(piece.max(1)) {
            csv.feed(piece)?;
        }
        csv.finish()
    }

    /// The same, whatever the pieces.
    #[track_caller]
    fn check(rules: &CsvRules, content: &[u8]) -> Result<Counts, Finding> {
        let whole = check_in(rules, content, content.len());
        for piece in 1..content.len() {
            assert_eq!(check_in(rules, content, piece), whole, "pieces of {piece}");
        }
        whole
    }

    fn counts(records: u64, columns: u64) -> Result<Counts, Finding> {
        Ok(Counts {
            records: Some(records),
            columns: Some(columns),
        })
    }

    #[track_caller]
    fn refused(rules: &CsvRules, content: &[u8], rule: &str, message: &str) {
        let found = check(rules, content).expect_err("it was accepted");
        assert_eq!((&*found.rule, &*found.message), (rule, message));
    }

    #[test]
    fn records_and_columns_are_counted() {
        for content in [
            "id,name\n1,a\n2,b\n",
            "id,name\r\n1,a\r\n2,b",
            "id,name\r1,a\r2,b\r",
            "\n\nid,name\n\n1,a\n\r\n2,b\n\n",
            "\u{feff}id,name\n1,a\n2,b\n",
            "\"id\",\"na\nme\"\n\"1\",\"a,\"\"b\"\"\r\n\"\n,\n",
            "id,name\n1,a\"b\"c\n2,b\n",
        ] {
            assert_eq!(
                check(&rules(), content.as_bytes()),
                counts(2, 2),
                "{content:?}"
            );
        }
        let bare = CsvRules {
            header: false,
            ..rules()
        };
        assert_eq!(check(&bare, b"1;2\n3;4\n"), counts(2, 1));
        assert_eq!(
            check(&bare, b"").unwrap(),
            Counts {
                records: Some(0),
                columns: None
            }
        );
        let other = CsvRules {
            delimiter: b'\t',
            quote: None,
            ..rules()
        };
        assert_eq!(check(&other, b"a\tb\n\"\t\"\n"), counts(1, 2));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let r = rules();
        refused(
            &r,
            b"a,b\n1,2\n1,2,3\n",
            "csv_width",
            "line 3: it has 3 columns, the first record has 2",
        );
        refused(
            &r,
            b"a,b\n1,\"2\n3,4\n",
            "csv_quote",
            "the quote at line 2, column 3 is never closed",
        );
        refused(
            &r,
            b"a,b\n1,2\n3,4\"\n\"",
            "csv_quote",
            "the quote at line 4, column 1 is never closed",
        );
        refused(
            &r,
            b"a,b\r\n1,\"2\"x\r\n",
            "csv_quote",
            "line 2, column 6: text follows a closing quote",
        );
        refused(
            &r,
            b"a,b\n1,\"2\"x",
            "csv_quote",
            "line 2, column 6: text follows a closing quote",
        );
        refused(
            &r,
            b"a,b,a\n",
            "csv_header",
            "columns 1 and 3 have the same name",
        );
        refused(&r, b"", "csv_header", "it has no header: it is empty");
        refused(&r, b"\n\n", "csv_header", "it has no header: it is empty");
    }

    #[test]
    fn the_place_is_told_to_programs_too() {
        let place = |content: &[u8]| {
            let keyed = CsvRules {
                key_column: Some("b".into()),
                ..rules()
            };
            let position = check(&keyed, content).unwrap_err().position;
            (position.line, position.column)
        };
        assert_eq!(place(b"a,b\n1,2\n1,2,3\n"), (Some(3), None));
        assert_eq!(place(b"a,b\n1,\"2\n3,4\n"), (Some(2), Some(3)));
        assert_eq!(place(b"a,b\r\n1,\"2\"x\r\n"), (Some(2), Some(6)));
        assert_eq!(place(b"a,b\n1,2\nx,\n"), (Some(3), Some(3)));
        assert_eq!(place(b"\xef\xbb\xbfa,b\nxy,\"\"\n"), (Some(2), Some(4)));
        assert_eq!(place(b"\na,b,a\n"), (Some(2), None));
        assert_eq!(place(b"a\n1\n"), (Some(1), None));
    }

    #[test]
    fn columns_of_the_settings_have_to_be_there_and_the_key_in_every_record() {
        let keyed = CsvRules {
            required_columns: vec!["name".into()],
            key_column: Some("id".into()),
            min_records: 1,
            ..rules()
        };
        assert_eq!(check(&keyed, b"name,\"id\"\n,1\n\"\",2\n"), counts(2, 2));
        let empty = "line 3: the key column \"id\" is empty";
        refused(&keyed, b"name,id\na,1\nb,\n", "key_column", empty);
        refused(&keyed, b"name,id\na,1\nb,\"\"\n", "key_column", empty);
        refused(&keyed, b"name,id\na,1\nb,", "key_column", empty);
        let missing = "it has no column \"name\"";
        refused(&keyed, b"Name,id\n", "required_columns", missing);
        let missing = "it has no column \"id\"";
        refused(&keyed, b"name,key\n", "key_column", missing);
        let few = "it has 0 records, fewer than min_records = 1";
        refused(&keyed, b"name,id\n", "min_records", few);
    }

    #[test]
    fn a_header_without_end_is_given_up_and_a_line_without_end_is_not_kept() {
        let long = vec![b'x'; 3 << 20];
        let piece = 256 << 10;
        let found = check_in(&rules(), &long, piece).unwrap_err();
        assert_eq!(found.rule, "csv_header");
        assert_eq!(found.position.line, Some(1));
        // Nor is what comes behind the limit, in whatever piece.
        let behind = [&long[..(1 << 20) + 1], b",\"a\"b\n"].concat();
        for piece in [1000, piece, behind.len()] {
            assert_eq!(check_in(&rules(), &behind, piece), Err(found.clone()));
        }
        let bare = CsvRules {
            header: false,
            ..rules()
        };
        assert_eq!(check_in(&bare, &long, piece), counts(1, 1));
        let columns = vec![b','; 3 << 20];
        assert_eq!(check_in(&bare, &columns, piece), counts(1, (3 << 20) + 1));
    }

    /// What `csv-core` makes of it: the records' lengths, without blank lines. `None` where ours is stricter.
    fn oracle(content: &[u8]) -> Vec<u64> {
        let mut reader = csv_core::Reader::new();
        let (mut text, mut ends) = (vec![0; content.len() + 1], vec![0; content.len() + 1]);
        let mut rest = content;
        let mut widths = Vec::new();
        let mut width = 0;
        loop {
            let (ended, read, _, fields) = reader.read_record(rest, &mut text, &mut ends);
            rest = &rest[read..];
            width += fields as u64;
            match ended {
                csv_core::ReadRecordResult::Record => widths.push(std::mem::take(&mut width)),
                csv_core::ReadRecordResult::End => return widths,
                _ => {}
            }
        }
    }

    proptest! {
        /// Any text: what is accepted has as many records and columns as `csv-core` reads from it.
        #[test]
        fn what_is_accepted_is_counted_as_csv_core_counts_it(
            content in "[ab,\"\n\r]{0,24}",
            filler in 0usize..130,
            piece in 1usize..9,
        ) {
            // Wherever in a block it is.
            let content = "a".repeat(filler) + &content;
            let bare = CsvRules { header: false, ..rules() };
            let ours = check_in(&bare, content.as_bytes(), piece);
            let widths = oracle(content.as_bytes());
            if let Ok(counts) = &ours {
                prop_assert_eq!(counts.records, Some(widths.len() as u64));
                prop_assert_eq!(counts.columns, widths.first().copied());
                prop_assert!(widths.iter().all(|width| Some(*width) == counts.columns));
            } else if !content.contains('"') {
                let even = widths.windows(2).all(|pair| pair[0] == pair[1]);
                prop_assert!(!even, "refused: {:?}", ours);
            }
            prop_assert_eq!(check_in(&bare, content.as_bytes(), 64), ours);
        }

        /// Fields written by the rules are read as they were, wherever delimiters and ends of lines stand.
        #[test]
        fn what_is_quoted_as_it_should_be_is_accepted(
            rows in proptest::collection::vec(
                proptest::collection::vec("[a,\"\n\r ]{0,6}", 3), 1..6),
            piece in 1usize..40,
        ) {
            let quoted = |field: &String| format!("\"{}\"", field.replace('"', "\"\""));
            let line = |row: &Vec<String>| row.iter().map(quoted).collect::<Vec<_>>().join(",");
            let text = rows.iter().map(line).collect::<Vec<_>>().join("\n");
            let bare = CsvRules { header: false, ..rules() };
            prop_assert_eq!(
                check_in(&bare, text.as_bytes(), piece),
                Ok(Counts { records: Some(rows.len() as u64), columns: Some(3) })
            );
        }
    }
}
