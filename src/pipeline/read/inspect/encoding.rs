//! Text in another encoding than UTF-8. It is decoded on the way, so that what checks the text sees UTF-8, a piece at a time.

use std::fmt;

use encoding_rs::{Decoder, DecoderResult, UTF_8, UTF_16LE};

use crate::pipeline::Finding;
use crate::settings::Encoding;

use super::finding;

const RULE: &str = "encoding";
/// Bytes of a piece of decoded text.
const PIECE_BYTES: usize = 16 << 10;
/// Length of the longest byte order mark.
const MARK_BYTES_MAX: usize = 3;

/// A check of text, which it decodes.
pub struct Decoding {
    declared: Encoding,
    /// The first bytes, as long as they may be a byte order mark.
    head: Vec<u8>,
    /// From then on.
    decoder: Option<Decoder>,
    /// Bytes that were decoded, and the mark.
    seen: u64,
    piece: Box<[u8]>,
}

impl Decoding {
    /// A check of text that has not been looked at.
    pub fn new(declared: Encoding) -> Decoding {
        Decoding {
            declared,
            head: Vec::with_capacity(MARK_BYTES_MAX),
            decoder: None,
            seen: 0,
            piece: vec![0; PIECE_BYTES].into(),
        }
    }

    /// Takes in the next bytes; `sink` is given the text, as UTF-8 without its mark. Characters may lie across two pieces of neither.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        let mut bytes = bytes;
        if self.decoder.is_none() {
            let missing = MARK_BYTES_MAX - self.head.len();
            let (first, rest) = bytes.split_at(missing.min(bytes.len()));
            self.head.extend(first);
            bytes = rest;
            if self.head.len() < MARK_BYTES_MAX {
                return Ok(());
            }
            self.begin(&mut sink)?;
        }
        self.decode(bytes, false, &mut sink)
    }

    /// The end of the text.
    pub fn finish(
        &mut self,
        mut sink: impl FnMut(&[u8]) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        if self.decoder.is_none() {
            self.begin(&mut sink)?;
        }
        self.decode(&[], true, &mut sink)
    }

    /// Begins to decode, once it is known whether there is a mark.
    fn begin(
        &mut self,
        sink: &mut impl FnMut(&[u8]) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        let marked = encoding_rs::Encoding::for_bom(&self.head);
        let encoding = match (self.declared, marked) {
            (Encoding::Utf16, Some((encoding, _))) if encoding != UTF_8 => encoding,
            (Encoding::Utf16, None) => UTF_16LE,
            (Encoding::Other(declared), None) => declared,
            (Encoding::Other(declared), Some((encoding, _))) if declared == encoding => declared,
            (Encoding::Utf8, None) => UTF_8,
            (_, Some((encoding, _))) => {
                let (found, declared) = (encoding.name(), self.declared);
                let message = format!(
                    "it begins with the byte order mark of {found}, and encoding = {declared}"
                );
                return Err(finding(RULE, message).at_byte(0));
            }
        };
        let mark = marked.map_or(0, |(_, bytes)| bytes);
        self.seen = mark as u64;
        self.decoder = Some(encoding.new_decoder_without_bom_handling());
        let head = std::mem::take(&mut self.head);
        self.decode(&head[mark..], false, sink)
    }

    fn decode(
        &mut self,
        mut bytes: &[u8],
        last: bool,
        sink: &mut impl FnMut(&[u8]) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        let Some(decoder) = &mut self.decoder else {
            return Ok(());
        };
        loop {
            let (result, read, written) =
                decoder.decode_to_utf8_without_replacement(bytes, &mut self.piece, last);
            self.seen += read as u64;
            bytes = &bytes[read..];
            let text = &self.piece[..written];
            if let Some(at) = memchr::memchr(0, text) {
                sink(&text[..at])?;
                return Err(finding("nul", "it holds a NUL: it is no text"));
            }
            sink(text)?;
            match result {
                DecoderResult::InputEmpty => return Ok(()),
                DecoderResult::OutputFull => {}
                DecoderResult::Malformed(length, behind) => {
                    let at = self.seen - u64::from(length) - u64::from(behind);
                    let name = self.declared;
                    let message = match last {
                        true => format!("it ends within the character that begins at byte {at}"),
                        false => format!("it is not {name} from byte {at} on"),
                    };
                    return Err(finding(RULE, message).at_byte(at));
                }
            }
        }
    }
}

impl fmt::Debug for Decoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Decoding");
        shown.field("declared", &self.declared);
        shown.field("seen", &self.seen).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(declared: &str, bytes: &[u8], piece: usize) -> Result<String, Finding> {
        let mut decoding = Decoding::new(declared.parse().unwrap());
        let mut text = Vec::new();
        let mut sink = |piece: &[u8]| {
            text.extend(piece);
            Ok(())
        };
        for piece in bytes.chunks(piece.max(1)) {
            decoding.feed(piece, &mut sink)?;
        }
        decoding.finish(&mut sink)?;
        Ok(String::from_utf8(text).expect("UTF-8"))
    }

    fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        text.encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn a_mark_tells_the_byte_order_and_is_no_text() {
        let text = "a;ä;😀\n";
        let marked = format!("\u{feff}{text}");
        for (declared, bytes) in [
            ("utf-16", utf16(&marked, u16::to_le_bytes)),
            ("utf-16", utf16(&marked, u16::to_be_bytes)),
            ("utf-16", utf16(text, u16::to_le_bytes)),
            ("utf-16be", utf16(&marked, u16::to_be_bytes)),
            ("utf-16be", utf16(text, u16::to_be_bytes)),
        ] {
            for piece in 1..=bytes.len() {
                let text_seen = decoded(declared, &bytes, piece);
                assert_eq!(text_seen.as_deref(), Ok(text), "{declared}, {piece}");
            }
        }
        for (declared, bytes, mark) in [
            ("utf-16le", utf16(&marked, u16::to_be_bytes), "UTF-16BE"),
            ("utf-16", marked.clone().into_bytes(), "UTF-8"),
            ("latin1", marked.clone().into_bytes(), "UTF-8"),
            ("latin1", utf16(&marked, u16::to_le_bytes), "UTF-16LE"),
        ] {
            for piece in 1..=bytes.len() {
                let found = decoded(declared, &bytes, piece).unwrap_err();
                assert_eq!(found.rule, RULE);
                assert!(found.message.contains(&format!("mark of {mark},")));
            }
        }
    }

    #[test]
    fn what_is_not_of_the_encoding_is_told_with_its_place() {
        for (declared, bytes, at) in [
            ("shift_jis", &b"abc\x82\xa0\x82\x20d"[..], 5),
            ("shift_jis", b"abc\x82", 3),
            ("gb18030", b"\x81\x30\x81", 0),
            ("utf-16le", b"a\0b\0\x00\xd8c\0", 4),
            ("utf-16le", b"a\0b", 2),
            ("euc-kr", b"\xff", 0),
        ] {
            for piece in 1..=bytes.len() {
                let found = decoded(declared, bytes, piece).unwrap_err();
                assert_eq!(found.rule, RULE);
                assert_eq!(
                    found.position.byte,
                    Some(at),
                    "{declared}, {piece}: {found:?}"
                );
            }
        }
        let found = decoded("utf-16le", b"a\0\0\0", 4).unwrap_err();
        assert_eq!(found.rule, "nul");
    }

    #[test]
    fn empty_and_very_short_files_are_text() {
        for (declared, bytes, text) in [
            ("latin1", &b""[..], ""),
            ("latin1", b"\xe4", "ä"),
            ("utf-16", b"\xff\xfe", ""),
            ("utf-16", b"a\0", "a"),
        ] {
            assert_eq!(decoded(declared, bytes, 1).as_deref(), Ok(text));
        }
    }

    proptest! {
        /// Whatever the pieces, it is the text that `encoding_rs` decodes as a whole, or it is refused as that would.
        #[test]
        fn pieces_are_decoded_as_the_whole(
            text in "[a-z,ä€あ한\n]{0,60}",
            label in proptest::sample::select(vec!["shift_jis", "euc-kr", "gb18030", "windows-1252", "euc-jp", "big5"]),
            broken in proptest::option::of((0usize..100, 0x80u8..)),
            piece in 1usize..20,
        ) {
            let encoding = encoding_rs::Encoding::for_label(label.as_bytes()).unwrap();
            let mut bytes = encoding.encode(&text).0.into_owned();
            if let Some((at, byte)) = broken && !bytes.is_empty() {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            prop_assume!(encoding_rs::Encoding::for_bom(&bytes).is_none());
            let ours = decoded(label, &bytes, piece);
            match encoding.decode_without_bom_handling_and_without_replacement(&bytes) {
                Some(whole) => prop_assert_eq!(ours.as_deref(), Ok(&*whole)),
                None => prop_assert_eq!(ours.unwrap_err().rule, RULE),
            }
        }
    }
}
