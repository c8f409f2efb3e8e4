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
    /// Takes in the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Finding> {
        if let Some(at) = memchr::memchr(0, bytes) {
            let at = self.seen + at as u64;
            let message = format!("byte {at} is NUL: it is no text");
            return Err(finding("nul", message).at_byte(at));
        }
        let mut rest = bytes;
        while self.begun_bytes > 0
            && let [first, others @ ..] = rest
        {
            self.begun[self.begun_bytes] = *first;
            self.begun_bytes += 1;
            self.seen += 1;
            rest = others;
            match std::str::from_utf8(&self.begun[..self.begun_bytes]) {
                Ok(_) => self.begun_bytes = 0,
                // Four bytes are a character or none.
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(self.invalid(self.seen - self.begun_bytes as u64)),
            }
        }
        let Err(error) = simdutf8::compat::from_utf8(rest) else {
            self.seen += rest.len() as u64;
            return Ok(());
        };
        let at = error.valid_up_to();
        if error.error_len().is_some() {
            return Err(self.invalid(self.seen + at as u64));
        }
        let begun = &rest[at..];
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

    fn check(pieces: &[&[u8]]) -> Result<(), Finding> {
        let mut utf8 = Utf8::default();
        for piece in pieces {
            utf8.feed(piece)?;
        }
        utf8.finish()
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
            let ours = check(&pieces);
            match std::str::from_utf8(&bytes) {
                Ok(_) => prop_assert_eq!(ours, Ok(())),
                Err(error) => {
                    let found = ours.unwrap_err();
                    let at = error.valid_up_to();
                    prop_assert!(found.message.contains(&format!("byte {at}")), "{:?}", found);
                    prop_assert_eq!(found.position.byte, Some(at as u64));
                }
            }
        }
    }
}
