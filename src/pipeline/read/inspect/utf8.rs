//! UTF-8 without NUL, whatever the cuts. The fast path is `simdutf8`.

use crate::pipeline::Finding;

use super::finding;

/// A check of UTF-8.
#[derive(Debug, Default)]
pub struct Utf8 {
    /// Bytes before the next.
    seen: u64,
    /// The beginning of a character that went on in the next piece.
    begun: [u8; 4],
    begun_bytes: usize,
}

impl Utf8 {
    /// Takes in the next bytes; `sink` is given the text, as far as it is known to be some: whole characters.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        mut sink: impl FnMut(&[u8]) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        let Some(at) = memchr::memchr(0, bytes) else {
            return self.feed_text(bytes, &mut sink);
        };
        self.feed_text(&bytes[..at], &mut sink)?;
        match self.begun_bytes {
            0 => {
                let at = self.seen;
                let message = format!("byte {at} is NUL: it is no text");
                Err(finding("nul", message).at_byte(at))
            }
            bytes => Err(self.invalid(self.seen - bytes as u64)),
        }
    }

    /// Takes in bytes of which none is NUL.
    fn feed_text(
        &mut self,
        bytes: &[u8],
        sink: &mut impl FnMut(&[u8]) -> Result<(), Finding>,
    ) -> Result<(), Finding> {
        let mut rest = bytes;
        while self.begun_bytes > 0
            && let [first, others @ ..] = rest
        {
            self.begun[self.begun_bytes] = *first;
            self.begun_bytes += 1;
            self.seen += 1;
            rest = others;
            let begun = &self.begun[..self.begun_bytes];
            match std::str::from_utf8(begun) {
                Ok(_) => {
                    sink(begun)?;
                    self.begun_bytes = 0;
                }
                // Four bytes are a character or none.
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(self.invalid(self.seen - self.begun_bytes as u64)),
            }
        }
        let Err(error) = simdutf8::compat::from_utf8(rest) else {
            self.seen += rest.len() as u64;
            return sink(rest);
        };
        let (text, begun) = rest.split_at(error.valid_up_to());
        sink(text)?;
        if error.error_len().is_some() {
            return Err(self.invalid(self.seen + text.len() as u64));
        }
        self.begun[..begun.len()].copy_from_slice(begun);
        self.begun_bytes = begun.len();
        self.seen += rest.len() as u64;
        Ok(())
    }

    /// The end of the text.
    pub fn finish(&self) -> Result<(), Finding> {
        match self.begun_bytes {
            0 => Ok(()),
            bytes => {
                let at = self.seen - bytes as u64;
                let message = format!("it ends within the character that begins at byte {at}");
                Err(finding("utf8", message).at_byte(at))
            }
        }
    }

    fn invalid(&self, at: u64) -> Finding {
        finding("utf8", format!("it is not UTF-8 from byte {at} on")).at_byte(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The verdict, and what was known to be text.
    fn check(pieces: &[&[u8]]) -> (Result<(), Finding>, Vec<u8>) {
        let (mut utf8, mut text) = (Utf8::default(), Vec::new());
        let mut feed = |piece: &&[u8]| {
            utf8.feed(piece, |piece| {
                assert!(std::str::from_utf8(piece).is_ok());
                text.extend(piece);
                Ok(())
            })
        };
        let fed = pieces.iter().try_for_each(&mut feed);
        (fed.and_then(|()| utf8.finish()), text)
    }

    proptest! {
        /// The standard library's word on the whole holds for it in pieces, and the place that is told is the same.
        #[test]
        fn pieces_are_judged_as_the_whole(
            text in "[a-zäß€😀]{0,40}",
            broken in proptest::option::of((0usize..100, 0x80u8..)),
            cut in proptest::collection::vec(0usize..160, 0..6),
        ) {
            let mut bytes = text.into_bytes();
            if let Some((at, byte)) = broken && !bytes.is_empty() {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let mut cuts: Vec<usize> = cut.into_iter().map(|at| at.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            let (ours, text) = check(&pieces);
            match std::str::from_utf8(&bytes) {
                Ok(_) => {
                    prop_assert_eq!(ours, Ok(()));
                    prop_assert_eq!(text, bytes);
                }
                Err(error) => {
                    prop_assert_eq!(text, &bytes[..error.valid_up_to()]);
                    let found = ours.unwrap_err();
                    let at = error.valid_up_to();
                    prop_assert!(found.message.contains(&format!("byte {at}")), "{:?}", found);
                    prop_assert_eq!(found.position.byte, Some(at as u64));
                }
            }
        }
    }
}
