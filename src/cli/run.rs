//! `ringest run`: checks, then takes files.

use std::sync::Arc;

use crate::failure::{Exit, Failure};
use crate::ingestor;
use crate::observe::log::files::{LogFiles, Rotation};
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
    // Whoever rotates log files may send it at any moment. What it does begins with the signals that end a run.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::default());
    let level = settings.log_level.as_str();
    let files = settings.log_dir.as_deref().map(|dir| {
        let rotation = Rotation {
            file_bytes: settings.log_file_bytes,
            files: settings.log_files,
        };
        LogFiles::open(dir, level, rotation)
    });
    let (files, refused) = match files.transpose() {
        Ok(files) => (files, None),
        Err(failure) => (None, Some(failure)),
    };
    // Whoever asked for files alone is told here that there are none.
    let console = settings.log_to_console || refused.is_some();
    let made = files.as_ref().and_then(LogFiles::made);
    let _log = log::init(level, settings.log_format.as_str(), console, files);
    if let Some(made) = made {
        events::directory_made(&made, "logs");
    }
    let ran = refused.map_or_else(|| checked(loaded), Err);
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
