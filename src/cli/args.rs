//! Arguments → [`Command`]. The flags of settings are not written here: they come from
//! [`KEYS`].

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, FromArgMatches, Parser, Subcommand};

use crate::settings::{KEYS, Key, Kind, Loaded, Purpose, RawSettings, SettingsError, Words};

/// What to do, with everything needed to do it.
#[derive(Debug)]
pub enum Command {
    /// Take files until stopped.
    Run(Loaded),
    /// Say what `run` would work with.
    Check {
        /// Its settings.
        loaded: Loaded,
        /// One JSON object instead of text.
        json: bool,
    },
    /// Say how a run is doing, or how the last one ended.
    Status {
        /// Where the state is.
        loaded: Loaded,
        /// One JSON object instead of text.
        json: bool,
    },
    /// Look a file up.
    Find {
        /// Where the ledger is.
        loaded: Loaded,
        /// A path, a name or a SHA-256.
        query: OsString,
        /// One JSON object per match instead of text.
        json: bool,
    },
    /// Compare ledger, manifest and warehouse.
    Verify {
        /// Where they are.
        loaded: Loaded,
        /// Read every file again.
        deep: bool,
        /// One JSON object instead of text.
        json: bool,
    },
    /// Make a new ledger from manifests and warehouse.
    Rebuild {
        /// Its settings, as for `run`.
        loaded: Loaded,
        /// Read every file again.
        deep: bool,
        /// JSON objects instead of text.
        json: bool,
    },
    /// Copy the ledger.
    Backup {
        /// Where it is.
        loaded: Loaded,
        /// The directory to make.
        to: PathBuf,
        /// One JSON object instead of text.
        json: bool,
    },
}

/// Takes files from staging directories into a date-partitioned warehouse, each exactly once.
///
/// Flags win over RINGEST_… variables (--state-path: RINGEST_STATE_PATH; lists separated by ':'),
/// those over the settings file, that over the defaults.
#[derive(Debug, Parser)]
#[command(name = "ringest", version, arg_required_else_help = true)]
pub struct Cli {
    /// Settings file, TOML or JSON [env: RINGEST_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Debug, Subcommand)]
enum Subcommands {
    /// Ingest files as they arrive, until stopped
    Run(RunArgs),
    /// Show effective settings, and what kernel, filesystems and permissions allow
    Check {
        #[command(flatten)]
        run: RunArgs,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Show how the running ingestor is doing, or how the last one ended
    Status {
        #[command(flatten)]
        flags: StoreFlags,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Find ingested files by path, name or SHA-256
    Find {
        #[command(flatten)]
        flags: StoreFlags,
        /// A path, a file name or a SHA-256
        query: OsString,
        /// Print one JSON object for each match
        #[arg(long)]
        json: bool,
    },
    /// Compare ledger, manifest and warehouse; exit 1 when they differ
    Verify {
        #[command(flatten)]
        flags: StoreFlags,
        /// Read and hash every file again
        #[arg(long)]
        deep: bool,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make a new ledger from manifests and warehouse, after the state was lost
    Rebuild {
        #[command(flatten)]
        flags: FlowFlags,
        /// Read and hash every file again
        #[arg(long)]
        deep: bool,
        /// Print JSON objects
        #[arg(long)]
        json: bool,
    },
    /// Copy the ledger, also while it is in use, to a directory that can serve as --state-path
    Backup {
        #[command(flatten)]
        flags: StoreFlags,
        /// The directory to make
        #[arg(value_name = "DIR")]
        to: PathBuf,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    flags: FlowFlags,
    /// End when everything present is ingested, set aside or unable to settle
    #[arg(long)]
    once: bool,
    /// Scan once and print what would be done, as JSON lines; touch nothing
    #[arg(long)]
    dry_run: bool,
}

/// Reads the command line and the environment of the process. A command line that makes no sense
/// ends the process here with code 2, `--help` and `--version` with 0.
///
/// # Errors
/// Settings that cannot be used.
pub fn parse() -> Result<Command, SettingsError> {
    Cli::parse().load(std::env::vars_os().collect())
}

impl Cli {
    /// Resolves the settings of the command, with these variables as the environment.
    ///
    /// # Errors
    /// Settings that cannot be used.
    pub fn load(self, environment: Vec<(OsString, OsString)>) -> Result<Command, SettingsError> {
        let raw = RawSettings {
            config: self.config,
            environment,
            ..RawSettings::default()
        };
        match self.command {
            Subcommands::Run(run) => Ok(Command::Run(flow(raw, run)?)),
            Subcommands::Check { run, json } => Ok(Command::Check {
                loaded: flow(raw, run)?,
                json,
            }),
            Subcommands::Status { flags, json } => Ok(Command::Status {
                loaded: store(raw, flags)?,
                json,
            }),
            Subcommands::Find { flags, query, json } => Ok(Command::Find {
                loaded: store(raw, flags)?,
                query,
                json,
            }),
            Subcommands::Verify { flags, deep, json } => Ok(Command::Verify {
                loaded: store(raw, flags)?,
                deep,
                json,
            }),
            Subcommands::Rebuild { flags, deep, json } => {
                let run = RunArgs {
                    flags,
                    once: false,
                    dry_run: false,
                };
                let loaded = flow(raw, run)?;
                Ok(Command::Rebuild { loaded, deep, json })
            }
            Subcommands::Backup { flags, to, json } => Ok(Command::Backup {
                loaded: store(raw, flags)?,
                to,
                json,
            }),
        }
    }
}

fn flow(raw: RawSettings, run: RunArgs) -> Result<Loaded, SettingsError> {
    let RunArgs {
        flags: FlowFlags(flags),
        once,
        dry_run,
    } = run;
    RawSettings {
        flags,
        once,
        dry_run,
        ..raw
    }
    .resolve(Purpose::Flow)
}

fn store(raw: RawSettings, StoreFlags(flags): StoreFlags) -> Result<Loaded, SettingsError> {
    RawSettings { flags, ..raw }.resolve(Purpose::Store)
}

/// The flags of `run`: one for each setting.
#[derive(Debug)]
struct FlowFlags(Words);

/// The flags that say where things are stored.
#[derive(Debug)]
struct StoreFlags(Words);

fn flow_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter()
}

fn store_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter()
        .filter(|key| matches!(key.kind, Kind::Directory))
}

macro_rules! flags_from_registry {
    ($flags:ident, $keys:ident) => {
        impl Args for $flags {
            fn augment_args(command: clap::Command) -> clap::Command {
                command.args($keys().map(flag))
            }

            fn augment_args_for_update(command: clap::Command) -> clap::Command {
                Self::augment_args(command)
            }
        }

        impl FromArgMatches for $flags {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(given(matches, $keys())))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                self.0.extend(given(matches, $keys()));
                Ok(())
            }
        }
    };
}

flags_from_registry!(FlowFlags, flow_keys);
flags_from_registry!(StoreFlags, store_keys);

fn flag(key: &'static Key) -> Arg {
    let kind = key.kind;
    let arg = Arg::new(key.name)
        .long(key.flag())
        .value_name(key.value_name)
        .help(key.help)
        .hide(key.hidden)
        .default_values(key.default)
        // A negative number is then told to be out of range, not to be an unknown flag.
        .allow_negative_numbers(true)
        .action(if kind.is_list() {
            ArgAction::Append
        } else {
            ArgAction::Set
        });
    match kind {
        Kind::Choice(values) => arg.value_parser(PossibleValuesParser::new(values())),
        Kind::Switch => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_parser(["true", "false"])
            .hide_possible_values(true),
        _ => arg.value_parser(
            OsStringValueParser::new().try_map(move |word| kind.check(&word).map(|()| word)),
        ),
    }
}

/// What was typed, without what clap filled in: whose default it is stays for the settings to say.
fn given(matches: &ArgMatches, keys: impl Iterator<Item = &'static Key>) -> Words {
    keys.filter(|key| matches.value_source(key.name) == Some(ValueSource::CommandLine))
        .filter_map(|key| {
            let words = matches.get_raw(key.name)?.map(Into::into).collect();
            Some((key.name, words))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn load(line: &str) -> Result<Command, SettingsError> {
        Cli::try_parse_from(line.split(' '))
            .unwrap()
            .load(Vec::new())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_setting_is_a_flag_of_run_and_the_stores_are_flags_of_all() {
        let mut command = Cli::command();
        command.build();
        let flags = |name: &str| -> Vec<String> {
            let found = command.find_subcommand(name).unwrap().get_arguments();
            found
                .filter_map(|arg| arg.get_long().map(Into::into))
                .collect()
        };
        for key in KEYS {
            assert!(flags("run").contains(&key.flag()), "{}", key.name);
            assert!(flags("check").contains(&key.flag()), "{}", key.name);
            assert!(flags("rebuild").contains(&key.flag()), "{}", key.name);
        }
        for name in ["status", "find", "verify", "backup"] {
            let mut own = flags(name);
            own.retain(|flag| !["deep", "help"].contains(&&flag[..]));
            own.sort();
            assert_eq!(
                own,
                ["config", "json", "manifests", "state-path", "warehouse"],
                "{name}"
            );
        }
    }

    #[test]
    fn flags_become_settings() {
        let line =
            "ringest run --input /in --input /in2 --recursive --once --stability-seconds 0.5";
        let Command::Run(Loaded { settings, .. }) = load(line).unwrap() else {
            panic!("run")
        };
        assert_eq!(settings.sources.len(), 2);
        assert!(settings.sources[1].recursive && settings.once && !settings.dry_run);
        assert_eq!(settings.sources[0].stability.as_millis(), 500);
        let line = "ringest check --recursive=false --json";
        let Command::Check { loaded, json: true } = load(line).unwrap() else {
            panic!("check")
        };
        assert!(!loaded.settings.sources[0].recursive);
        let line = "ringest find --warehouse /w a.csv";
        let Command::Find { loaded, query, .. } = load(line).unwrap() else {
            panic!("find")
        };
        assert_eq!(loaded.settings.warehouse, PathBuf::from("/w"));
        assert_eq!(query, "a.csv");
    }

    #[test]
    fn what_makes_no_sense_ends_with_code_2() {
        for line in [
            "ringest",
            "ringest fly",
            "ringest run --concurrency -1",
            "ringest run --concurrency 0",
            "ringest run --stability-seconds -3",
            "ringest run --stability-seconds soon",
            "ringest run --batch-files 70000",
            "ringest run --mode close",
            "ringest run --include a[",
            "ringest run --recursive=perhaps",
            "ringest run --warehouse=",
            "ringest status --input /in",
            "ringest find",
            "ringest backup",
            "ringest rebuild --once",
        ] {
            let error = Cli::try_parse_from(line.split(' ')).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn directories_in_one_another_end_with_code_78() {
        let error = load("ringest run --input /in --warehouse /in/w").unwrap_err();
        assert_eq!(error.exit_code(), 78);
    }
}
