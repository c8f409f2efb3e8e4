//! The table of named points: how each is reached.

use crate::place::Layout;

/// What a cell needs so that its points are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    Nothing,
    /// Staging and warehouse on two filesystems.
    Copies,
    /// Names to be removed once their arrivals are recorded: sources of copies, or duplicates that are deleted.
    Debts,
    /// Duplicates that are moved, with reasons.
    Reasons,
    /// A claim directory.
    Claims,
}

/// What somebody else does, while the process stands at a point or after it was killed there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meddle {
    No,
    /// Touches a file in the warehouse whose placement is not committed.
    Touch,
    /// Writes to it.
    Write,
}

/// One way to a point.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Where the first run crashes, if the point is one of recovery.
    pub first: Option<&'static str>,
    /// Where the (second) run crashes, as `RINGEST_STOP_AT` has it.
    pub at: &'static str,
    pub needs: Needs,
    pub meddle: Meddle,
}

impl Row {
    pub fn fits(&self, layout: Layout) -> bool {
        self.needs != Needs::Copies || layout.copies()
    }

    /// Whether the run stops at this point, whichever time.
    pub fn stops_at(&self, point: &str) -> bool {
        let last = self.at.rsplit(',').next().unwrap_or_default();
        last.split(':').next() == Some(point)
    }
}

/// Points of a first run, each time that is of interest.
const FIRST_RUN: &[(&str, Needs)] = &[
    ("ledger_made", Needs::Nothing),
    ("ledger_renamed", Needs::Nothing),
    ("ledger_named", Needs::Nothing),
    // Warehouse and manifests have a marker each.
    ("marker_written", Needs::Nothing),
    ("marker_written:2", Needs::Nothing),
    ("marker_renamed", Needs::Nothing),
    ("marker_renamed:2", Needs::Nothing),
    ("marker_synced", Needs::Nothing),
    ("marker_synced:2", Needs::Nothing),
    ("session_begun", Needs::Nothing),
    ("claimed", Needs::Claims),
    ("claimed:9", Needs::Claims),
    ("copy_written", Needs::Copies),
    ("copy_written:9", Needs::Copies),
    ("directory_made", Needs::Nothing),
    ("directory_made:2", Needs::Nothing),
    ("directory_synced", Needs::Nothing),
    ("directory_synced:2", Needs::Nothing),
    ("classified", Needs::Nothing),
    ("classified:2", Needs::Nothing),
    ("manifest_made", Needs::Nothing),
    ("reserved", Needs::Nothing),
    ("reserved:2", Needs::Nothing),
    ("data_synced", Needs::Nothing),
    ("data_synced:2", Needs::Nothing),
    ("intents_committed", Needs::Nothing),
    ("intents_committed:2", Needs::Nothing),
    ("placed_one", Needs::Nothing),
    ("placed_one:11", Needs::Nothing),
    ("placed", Needs::Nothing),
    ("placed:2", Needs::Nothing),
    ("destinations_synced", Needs::Nothing),
    ("destinations_synced:2", Needs::Nothing),
    ("sources_synced", Needs::Nothing),
    ("sources_synced:2", Needs::Nothing),
    ("checked", Needs::Nothing),
    ("checked:2", Needs::Nothing),
    ("records_committed", Needs::Nothing),
    ("records_committed:2", Needs::Nothing),
    ("lines_written", Needs::Nothing),
    ("lines_written:2", Needs::Nothing),
    ("lines_synced", Needs::Nothing),
    ("lines_synced:2", Needs::Nothing),
    ("batch_manifested", Needs::Nothing),
    ("batch_manifested:2", Needs::Nothing),
    ("source_hidden", Needs::Debts),
    ("source_hidden:3", Needs::Debts),
    ("source_removed", Needs::Debts),
    ("source_removed:3", Needs::Debts),
    ("reason_written", Needs::Reasons),
    ("reason_written:2", Needs::Reasons),
    ("debts_paid", Needs::Nothing),
    ("debts_paid:2", Needs::Nothing),
    ("reported", Needs::Nothing),
    ("reported:2", Needs::Nothing),
    ("closing", Needs::Nothing),
    ("closed", Needs::Nothing),
];

/// Where a first run crashes, and where the recovery after it does.
const RECOVERY: &[(&str, &str, Needs)] = &[
    ("placed:2", "recovery_begun", Needs::Nothing),
    (
        "records_committed:2",
        "recovery_lines_rewritten",
        Needs::Nothing,
    ),
    ("copy_written:9", "recovery_swept", Needs::Copies),
    ("placed", "recovery_swept", Needs::Nothing),
    (
        "intents_committed:2",
        "recovery_numbers_voided",
        Needs::Nothing,
    ),
    ("intents_committed:2", "recovery_decided", Needs::Nothing),
    ("placed_one:11", "recovery_decided", Needs::Nothing),
    ("placed:2", "recovery_acted", Needs::Nothing),
    ("intents_committed:2", "recovery_undone", Needs::Nothing),
    ("placed_one:11", "recovery_undone", Needs::Nothing),
    ("placed:2", "destinations_synced", Needs::Nothing),
    ("placed:2", "sources_synced", Needs::Nothing),
    ("placed_one:11", "checked", Needs::Nothing),
    ("placed:2", "records_committed", Needs::Nothing),
    ("placed:2", "lines_written", Needs::Nothing),
    ("placed:2", "lines_synced", Needs::Nothing),
    ("placed:2", "batch_manifested", Needs::Nothing),
    ("placed:2", "debts_paid", Needs::Nothing),
    ("placed:2", "reported", Needs::Nothing),
    ("placed:2", "recovery_batch_finished", Needs::Nothing),
    (
        "destinations_synced:2",
        "recovery_batch_finished",
        Needs::Nothing,
    ),
    ("sources_synced:2", "records_committed", Needs::Nothing),
    ("records_committed:2", "lines_written", Needs::Nothing),
    ("lines_written:2", "lines_synced", Needs::Nothing),
    ("lines_written:2", "recovered", Needs::Nothing),
    ("lines_synced:2", "source_hidden", Needs::Debts),
    ("source_hidden:2", "source_removed", Needs::Debts),
    ("source_hidden:3", "recovery_paid", Needs::Debts),
    ("source_removed:3", "recovery_paid", Needs::Debts),
    ("source_removed", "recovered", Needs::Debts),
    ("lines_synced:2", "recovered", Needs::Debts),
    ("reason_written", "reason_written", Needs::Reasons),
    ("reason_written", "recovery_paid", Needs::Reasons),
    ("reported:2", "recovered", Needs::Nothing),
    ("closing", "recovered", Needs::Nothing),
    ("recovered", "session_begun", Needs::Nothing),
    ("claimed", "claim_given_back", Needs::Claims),
    ("claimed:9", "claim_given_back:3", Needs::Claims),
    ("placed_one:11", "recovery_undone", Needs::Claims),
    ("placed:2", "recovered", Needs::Claims),
    ("sources_synced:2", "batch_manifested", Needs::Claims),
    ("claimed:9", "claims_returned", Needs::Claims),
];

/// The table.
pub fn rows() -> Vec<Row> {
    let row = |first, at, needs, meddle| Row {
        first,
        at,
        needs,
        meddle,
    };
    let fresh = FIRST_RUN
        .iter()
        .map(|&(at, needs)| row(None, at, needs, Meddle::No));
    let recovery = RECOVERY
        .iter()
        .map(|&(first, at, needs)| row(Some(first), at, needs, Meddle::No));
    let taken_back = ["placed,taken_back", "placed:2,taken_back,reported"]
        .map(|at| row(None, at, Needs::Nothing, Meddle::Touch));
    let undone = ["recovery_acted", "recovery_undone", "recovered"]
        .map(|at| row(Some("placed:2"), at, Needs::Nothing, Meddle::Write));
    fresh
        .chain(recovery)
        .chain(taken_back)
        .chain(undone)
        .collect()
}
