//! `ringest run`: checks, then takes files.

use crate::failure::{Exit, Failure};
use crate::ingestor;
use crate::observe::{events, log};
use crate::settings::Loaded;

use super::check::Report;
use super::plan;

/// Runs the ingestor, or, with `--dry-run`, says what it would do. The caller shows the failure.
pub fn run(loaded: &Loaded) -> Result<(), Failure> {
    let settings = &loaded.settings;
    if settings.dry_run {
        return plan::run(settings);
    }
    let _log = log::init(settings.log_level.as_str(), settings.log_format.as_str());
    let ran = checked(loaded);
    if let Err(failure) = &ran {
        match (failure.exit, &failure.path) {
            (Exit::Busy, Some(path)) => events::another_instance(path),
            _ => events::failure(
                &failure.operation,
                failure.path.as_deref(),
                &failure.cause,
                &failure.remedy,
                failure.exit as u8,
            ),
        }
    }
    ran
}

fn checked(loaded: &Loaded) -> Result<(), Failure> {
    let report = Report::of(loaded);
    if let Some(problem) = report.problems.first() {
        return Err(Failure {
            exit: match problem.exit_code {
                69 => Exit::Unavailable,
                _ => Exit::Config,
            },
            operation: "run with these settings".into(),
            path: problem.path.clone(),
            cause: problem.message.clone(),
            remedy: "`ringest check` shows all of them".into(),
            suspect: false,
        });
    }
    let version = env!("CARGO_PKG_VERSION");
    ingestor::run(&loaded.settings, &loaded.warnings, version)
}
