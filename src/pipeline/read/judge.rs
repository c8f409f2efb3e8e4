//! What a file comes to that was read to its end, before a command has the last word (`checks.rs`).

use crate::ledger::{Counts, Digest, Position};
use crate::pipeline::Finding;

use super::inspect::Inspection;

/// Judges a file with that digest: first by what its sidecar claims, then by its content.
///
/// # Errors
/// The first rule that it breaks.
pub fn judge(
    digest: &Digest,
    claimed: Option<&Digest>,
    inspection: Option<Inspection>,
) -> Result<Counts, Finding> {
    // What did not arrive as it was sent is not judged by its content.
    if let Some(claimed) = claimed.filter(|claimed| *claimed != digest) {
        return Err(Finding {
            rule: "sidecar_digest".into(),
            message: format!(
                "its sidecar says sha256 {}, its content has {}",
                data_encoding::HEXLOWER.encode(claimed),
                data_encoding::HEXLOWER.encode(digest)
            ),
            position: Position::default(),
        });
    }
    inspection.map_or(Ok(Counts::default()), Inspection::finish)
}
