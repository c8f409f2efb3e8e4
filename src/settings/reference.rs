//! docs/SETTINGS.md, made from the registry. It is only ever made by the test below, which says how.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;

use super::{KEYS, Key, Kind};

/// Set, the test writes the file in place of comparing it.
const REWRITE_VARIABLE: &str = "REWRITE_DOCS";

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/SETTINGS.md");

/// The key that each group begins with, in the order of [`KEYS`], its title and what is said of it.
const GROUPS: &[(&str, &str, &str)] = &[
    (
        "input",
        "Directories",
        "Missing ones are made. None may be inside another, but for an input in an input that is not `recursive`.",
    ),
    (
        "mode",
        "When is a file finished?",
        "The README says what each mode rests on.",
    ),
    (
        "recursive",
        "Which files are taken",
        "Names that begin with a dot, symbolic links and anything else that is no regular file are never taken.",
    ),
    (
        "dedupe",
        "Duplicates",
        "The scope `source` goes by the name of the source, so name your sources.",
    ),
    (
        "content",
        "Content",
        "What breaks a rule is set aside with its reason: [CONTENT.md](CONTENT.md).",
    ),
    (
        "partition",
        "Where files land",
        "Whatever is said here, nothing is overwritten, and a name that is taken becomes another one.",
    ),
    (
        "concurrency",
        "Reading and recording",
        "These are for all sources together.",
    ),
    (
        "metrics_interval",
        "Logs and figures",
        "The log is on stderr, one event a line.",
    ),
];

const INTRODUCTION: &str = r#"# Settings

<!-- Made from src/settings/keys.rs by `REWRITE_DOCS=1 cargo test --lib settings::reference`: change it there. -->

Each setting is a flag (`--stability-seconds`), a variable (`RINGEST_STABILITY_SECONDS`) and a key of the settings file
(`stability_seconds`). The first that is given wins, in this order:

1. the flag, which is for all sources;
2. the variable, for all sources too; an empty one counts as not set;
3. the key in the source's own `[[source]]` block;
4. the key at the top of the file;
5. the default.

`ringest check` shows what holds and where it comes from. A value that cannot be used ends the start: with exit code 2 if it is a
flag's, else 78.

**The file** is named by `--config` or `RINGEST_CONFIG`. It is TOML, or JSON if its name ends with `.json` or it begins with `{`;
a key that means nothing is an error. Relative paths start at the working directory, here too.

```toml
# /etc/ringest.toml
warehouse = "/srv/ringest/warehouse"
dedupe = "source"                   # for every source that says nothing else

[[source]]
name = "billing"                    # in manifest, ledger and logs; unique
input = "/srv/ringest/billing"
mode = "sidecar"

[[source]]
name = "sensors"
input = "/srv/ringest/sensors"
include = ["*.csv", "2026/**"]
```

A **`[[source]]`** block has an `input`, should have a `name`, and may have any key that is marked *each source* below. In JSON,
`source` is a list of objects. A source without a name is called as the last component of its path, or as the whole path if two
would be called the same. `--input` and `RINGEST_INPUT` replace all sources of the file.

**Lists**: the flag is repeated (`--include '*.csv' --include '*.json'`), the variable has colons (`'*.csv:*.json'`), the file a list.

**True or false**: a flag alone says true (`--recursive`), `--recursive=false` the contrary.

**Sizes** are numbers of bytes, alone or with a unit: `kB`, `MB`, `GB`, `TB` (powers of 1000), `KiB`, `MiB`, `GiB`, `TiB` (powers
of 1024); upper and lower case are the same. **Times** are in seconds; fractions are allowed.

**Whose orders.** A settings file, a `json_schema`, the program of a `check_command` and those of its arguments that are paths of files are
refused (78) if somebody else than root and the user that ringest runs as may write to them, or to a directory on the way: whoever does
would give ringest orders. What is looked at is the owner and the bits for group and others of the file, of each directory (one that is sticky may
be written to) and of what symbolic links lead to; an ACL that lets others write shows in the bits of the group. `--trust-config`, or
`RINGEST_TRUST_CONFIG=true`, uses them all the same, and `check` warns of each. What a program or a script calls itself is not looked at.

Flags of the command line alone: `--once`, `--dry-run`, `--config` and `--trust-config`, and those of other commands (`ringest help`).
`RINGEST_DISABLE` does without features of the kernel as if it had refused them, a list with commas: `uring`, `lease`, `inotify`,
`tmpfile`, `syncfs`, `cachestat`, `dioalign`.
"#;

/// The whole file.
fn reference() -> String {
    let mut text = String::from(INTRODUCTION);
    for key in KEYS.iter().filter(|key| !key.hidden) {
        if let Some((_, title, about)) = GROUPS.iter().find(|(first, ..)| *first == key.name) {
            write!(text, "\n## {title}\n\n{about}\n").expect("a string takes everything");
        }
        text.push_str(&section(key));
    }
    text
}

fn section(key: &Key) -> String {
    let flag = match key.kind {
        Kind::Switch => format!("--{}", key.flag()),
        _ => format!("--{} {}", key.flag(), key.value_name),
    };
    // The help of the command line says in its own way what holds if nothing is said.
    let (help, said) = match key.help.split_once(" [default: ") {
        Some((help, said)) => (help, said.trim_end_matches(']')),
        None => (key.help, "none"),
    };
    let default = match key.default {
        [] => said.into(),
        words => words
            .iter()
            .map(|word| format!("`{word}`"))
            .collect::<Vec<_>>()
            .join(", "),
    };
    let scope = if key.per_source {
        " · each source"
    } else {
        ""
    };
    let mut text = format!(
        "\n### `{}`\n\n`{flag}` · `{}` · default: {default}{scope}\n\n{help}.",
        key.name,
        key.variable()
    );
    text.push_str(&limits(key.kind));
    text.push('\n');
    if let Kind::Choice(choices) = key.kind {
        text.push('\n');
        for choice in choices() {
            let meaning = choice.get_help().map(ToString::to_string);
            let meaning = meaning.unwrap_or_default();
            writeln!(text, "- `{}`: {meaning}", choice.get_name())
                .expect("a string takes everything");
        }
    }
    text
}

/// What a value may be, in the words in which another one is refused.
fn limits(kind: Kind) -> String {
    let told_elsewhere = matches!(
        kind,
        Kind::Choice(_)
            | Kind::Switch
            | Kind::Name
            | Kind::Names
            | Kind::Words
            | Kind::Globs
            | Kind::Group
    );
    let is_path = matches!(kind, Kind::Directory | Kind::Directories | Kind::File);
    if told_elsewhere || is_path {
        return String::new();
    }
    let Err(refused) = kind.check(OsStr::new("")) else {
        return String::new();
    };
    let words = refused.strip_prefix("it is ").unwrap_or(&refused);
    let or_none = match kind {
        Kind::CharacterOrNone => ", or none",
        _ => "",
    };
    format!("\n\nValue: {words}{or_none}.")
}

#[test]
fn the_reference_is_what_the_registry_says() {
    let firsts: Vec<_> = GROUPS.iter().map(|(first, ..)| *first).collect();
    let shown = KEYS.iter().filter(|key| !key.hidden);
    let in_order: Vec<_> = shown
        .map(|key| key.name)
        .filter(|name| firsts.contains(name))
        .collect();
    assert_eq!(in_order, firsts);
    if std::env::var_os(REWRITE_VARIABLE).is_some() {
        fs::write(FILE, reference()).expect("write docs/SETTINGS.md");
    }
    let written = fs::read_to_string(FILE).expect("read docs/SETTINGS.md");
    assert!(
        written == reference(),
        "docs/SETTINGS.md is not what src/settings/keys.rs says; \
         {REWRITE_VARIABLE}=1 cargo test --lib settings::reference makes it anew"
    );
}

#[test]
fn every_choice_says_what_it_means() {
    for key in KEYS {
        if let Kind::Choice(choices) = key.kind {
            for choice in choices() {
                let name = choice.get_name();
                assert!(choice.get_help().is_some(), "{} = {name}", key.name);
            }
        }
    }
}
