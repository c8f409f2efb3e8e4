use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;

use super::*;

/// A directory of its own, a settings file in it when there is one, and what was said beside it.
struct Place {
    directory: tempfile::TempDir,
    raw: RawSettings,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut place = Self {
            directory,
            raw: RawSettings::default(),
        };
        for key in ["input", "warehouse", "manifests", "state_path"] {
            place = place.variable_path(key, key);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Directories by environment, so that nothing depends on where tests run.
    fn variable_path(self, key: &str, name: &str) -> Self {
        let path = self.path(name);
        self.variable_os(&Key::named(key).unwrap().variable(), path.as_os_str())
    }

    fn variable(self, name: &str, value: &str) -> Self {
        self.variable_os(name, value.as_ref())
    }

    fn variable_os(mut self, name: &str, value: &OsStr) -> Self {
        self.raw.environment.retain(|(known, _)| known != name);
        self.raw.environment.push((name.into(), value.into()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.raw.environment.retain(|(known, _)| known != name);
        self
    }

    fn flag(mut self, name: &str, words: &[&str]) -> Self {
        let words = words.iter().map(OsString::from).collect();
        self.raw.flags.insert(Key::named(name).unwrap().name, words);
        self
    }

    fn file(mut self, name: &str, text: &str) -> Self {
        let root = self.directory.path().display().to_string();
        fs::write(self.path(name), text.replace("$ROOT", &root)).unwrap();
        self.raw.config = Some(self.path(name));
        self
    }

    fn load(&mut self) -> Result<Loaded, SettingsError> {
        std::mem::take(&mut self.raw).resolve(Purpose::Flow)
    }

    #[track_caller]
    fn loaded(mut self) -> Loaded {
        self.load().unwrap()
    }

    /// The exit code and the message.
    #[track_caller]
    fn refused(mut self) -> (u8, String) {
        let error = self.load().unwrap_err();
        (error.exit_code(), error.to_string())
    }
}

fn origin<'a>(loaded: &'a Loaded, key: &str) -> &'a Origin {
    &loaded
        .origins
        .iter()
        .find(|setting| setting.key == key)
        .unwrap()
        .origin
}

#[test]
fn nothing_said_gives_the_defaults_of_the_design() {
    let Loaded {
        settings, warnings, ..
    } = RawSettings::default().resolve(Purpose::Flow).unwrap();
    let here = std::env::current_dir().unwrap();
    let [source] = &settings.sources[..] else {
        panic!("one source")
    };
    assert_eq!(source.input, here.join("staging"));
    assert_eq!(source.name, "staging");
    assert_eq!(settings.warehouse, here.join("warehouse"));
    assert_eq!(settings.manifests, here.join("manifests"));
    assert_eq!(settings.state_path, here.join("state"));
    assert_eq!(source.mode, Mode::Stability);
    assert_eq!(source.stability, Duration::from_secs(5));
    assert_eq!(source.sidecar_suffix, ".ok");
    assert_eq!(source.ignore_suffixes, DEFAULT_IGNORE_SUFFIXES);
    assert!(!source.recursive && source.include.is_none() && source.exclude.is_none());
    assert_eq!(settings.concurrency, Concurrency::Auto);
    assert_eq!(settings.max_bytes_per_second, 0);
    assert_eq!(settings.io_priority, IoPriority::Normal);
    assert_eq!(settings.rescan, Duration::from_secs(60));
    assert_eq!(settings.metrics_interval, Duration::from_secs(10));
    assert_eq!(settings.min_free_bytes, 0);
    assert_eq!(settings.batch_files, 4096);
    assert_eq!(settings.hash_lanes, crate::pipeline::read::digest::LANES);
    assert_eq!(
        (settings.log_level, settings.log_format),
        (LogLevel::Info, LogFormat::Json)
    );
    assert!(settings.log_to_console && settings.log_dir.is_none());
    assert_eq!((settings.log_file_bytes, settings.log_files), (1 << 20, 5));
    assert_eq!(settings.disable, Disable::default());
    assert_eq!(warnings, [""; 0]);
}

#[test]
fn a_flag_wins_over_the_environment_that_over_a_block_that_over_the_file_that_over_the_default() {
    let file = "dedupe = 'off'\n[[source]]\nname = 'x'\ninput = '$ROOT/x'\ndedupe = 'name'\n";
    let top = "dedupe = 'off'\n[[source]]\nname = 'x'\ninput = '$ROOT/x'\n";
    let none = "[[source]]\nname = 'x'\ninput = '$ROOT/x'\n";
    for (flag, variable, text, expected, from) in [
        (Some("global"), Some("source"), file, Dedupe::Global, "flag"),
        (
            None,
            Some("source"),
            file,
            Dedupe::Source,
            "environment RINGEST_DEDUPE",
        ),
        (None, None, file, Dedupe::Name, "file "),
        (None, None, top, Dedupe::Off, "file "),
        (None, None, none, Dedupe::Global, "default"),
        (None, Some(""), none, Dedupe::Global, "default"),
    ] {
        let mut place = Place::new().without("RINGEST_INPUT").file("r.toml", text);
        if let Some(word) = flag {
            place = place.flag("dedupe", &[word]);
        }
        if let Some(word) = variable {
            place = place.variable("RINGEST_DEDUPE", word);
        }
        let loaded = place.loaded();
        assert_eq!(
            loaded.settings.sources[0].dedupe, expected,
            "{flag:?} {variable:?} {text}"
        );
        let origin = origin(&loaded, "dedupe").to_string();
        assert!(
            origin.starts_with(from),
            "{origin} does not begin with {from}"
        );
    }
}

#[test]
fn each_block_has_its_own_values_and_flags_apply_to_all() {
    let text = "stability_seconds = 0.5\nbatch_files = 7\nconcurrency = 3\nmin_free_bytes = '1GiB'\n\
        max_bytes_per_second = '20MB'\nio_priority = 'low'\n\
        [[source]]\nname = 'a'\ninput = '$ROOT/a'\nmode = 'closed'\nrecursive = true\n\
        [[source]]\ninput = '$ROOT/b'\nstability_seconds = 2\ninclude = ['*.csv', 'x/*']\n";
    let place = Place::new().without("RINGEST_INPUT").file("r.toml", text);
    let Loaded { settings, .. } = place.flag("empty", &["hold"]).loaded();
    let [a, b] = &settings.sources[..] else {
        panic!("two sources")
    };
    assert_eq!(
        (&a.name[..], a.mode, a.recursive),
        ("a", Mode::Closed, true)
    );
    assert_eq!(
        (&b.name[..], b.mode, b.recursive),
        ("b", Mode::Stability, false)
    );
    assert_eq!(a.stability, Duration::from_millis(500));
    assert_eq!(b.stability, Duration::from_secs(2));
    assert_eq!([a.empty, b.empty], [EmptyPolicy::Hold; 2]);
    assert!(a.include.is_none() && b.include.is_some());
    assert_eq!(settings.min_free_bytes, 1 << 30);
    assert_eq!(settings.max_bytes_per_second, 20_000_000);
    assert_eq!(settings.io_priority, IoPriority::Low);
    assert_eq!(settings.batch_files, 7);
    assert_eq!(settings.concurrency.to_string(), "3");
}

#[test]
fn json_is_known_by_its_name_or_by_its_first_byte() {
    let text = r#" {"batch_files": 9, "min_free_bytes": 4096, "source": [{"input": "$ROOT/a", "lease": "off"}]}"#;
    for name in ["r.json", "r.conf"] {
        let loaded = Place::new()
            .without("RINGEST_INPUT")
            .file(name, text)
            .loaded();
        assert_eq!(loaded.settings.batch_files, 9);
        assert_eq!(loaded.settings.min_free_bytes, 4096);
        assert_eq!(loaded.settings.sources[0].lease, LeasePolicy::Off);
    }
}

#[test]
fn an_input_given_outside_replaces_all_sources_of_the_file() {
    let text = "input = ['$ROOT/c']\n[[source]]\nname = 'x'\ninput = '$ROOT/x'\n";
    let names = |loaded: Loaded| -> Vec<String> {
        loaded
            .settings
            .sources
            .into_iter()
            .map(|source| source.name)
            .collect()
    };
    let file = || Place::new().without("RINGEST_INPUT").file("r.toml", text);
    assert_eq!(names(file().loaded()), ["c", "x"]);
    let by_variable = file();
    let list = format!("{0}/p::{0}/q", by_variable.directory.path().display());
    assert_eq!(
        names(by_variable.variable("RINGEST_INPUT", &list).loaded()),
        ["p", "q"]
    );
    let by_flag = file().variable("RINGEST_INPUT", &list);
    let path = by_flag.path("only").display().to_string();
    assert_eq!(names(by_flag.flag("input", &[&path]).loaded()), ["only"]);
}

#[test]
fn an_unknown_key_is_named_with_its_file_and_the_nearest_known_one() {
    for (text, expected) in [
        (
            "warehose = '/w'",
            ["\"warehose\"", "did you mean \"warehouse\"?"],
        ),
        (
            "stability-seconds = 3",
            ["\"stability-seconds\"", "\"stability_seconds\""],
        ),
        (
            "zzzzzzzzzzzz = 3",
            ["\"zzzzzzzzzzzz\"", "known are input, warehouse"],
        ),
        ("once = true", ["\"once\"", "it is a flag only"]),
        (
            "[[source]]\ninput='/a'\nmod = 'closed'",
            ["[[source]] 1: ", "did you mean \"mode\"?"],
        ),
        (
            "[[source]]\ninput='/a'\nwarehouse = 'w'",
            ["[[source]] 1: ", "for the whole file"],
        ),
        (
            "[[sources]]\ninput='/a'",
            ["\"sources\"", "did you mean \"source\"?"],
        ),
    ] {
        let (code, message) = Place::new().file("r.toml", text).refused();
        assert_eq!(code, 78);
        assert!(message.contains("/r.toml: "), "{message}");
        for part in expected {
            assert!(message.contains(part), "{message:?} lacks {part:?}");
        }
    }
}

#[test]
fn a_file_that_is_not_settings_is_named_with_what_is_wrong() {
    for (text, expected) in [
        ("warehouse = ", "not TOML: "),
        ("{\"warehouse\": ", "not JSON: "),
        ("source = 3", "[[source]]"),
        ("[[source]]\nname = 'x'", "it names no input"),
        ("[[source]]\nname = ''\ninput = '/a'", "its name is a text"),
        ("[[source]]\ninput = ['/a']", "it is one value"),
        ("input = [['/a']]", "it is a list of texts"),
        ("recursive = 'maybe'", "it is true or false"),
        ("recursive = []", "it is one value"),
        ("mode = { a = 1 }", "it is one value"),
    ] {
        let (code, message) = Place::new().file("r.toml", text).refused();
        assert_eq!(code, 78);
        assert!(
            message.contains("/r.toml: ") && message.contains(expected),
            "{text}: {message}"
        );
    }
    let mut missing = Place::new();
    missing.raw.config = Some(missing.path("none.toml"));
    let (code, message) = missing.refused();
    assert_eq!(code, 78);
    assert!(message.contains("none.toml: cannot read"), "{message}");
}

#[test]
fn values_outside_their_limits_are_refused_with_the_limits() {
    for (key, value, expected) in [
        ("concurrency", "0", "from 1 to 1024, or auto"),
        ("concurrency", "-1", "from 1 to 1024, or auto"),
        ("concurrency", "many", "from 1 to 1024, or auto"),
        ("stability_seconds", "-0.1", "from 0 to 86400"),
        ("stability_seconds", "NaN", "from 0 to 86400"),
        ("stability_seconds", "inf", "from 0 to 86400"),
        ("stability_seconds", "86401", "from 0 to 86400"),
        ("max_bytes_per_second", "1M", "4096, 500MB, 1GiB"),
        ("max_bytes_per_second", "-1", "4096, 500MB, 1GiB"),
        ("max_bytes_per_second", "fast", "4096, 500MB, 1GiB"),
        ("io_priority", "high", "one of normal, low, idle"),
        ("rescan_seconds", "0.05", "from 0.1 to 86400"),
        ("metrics_interval", "0", "from 0.1 to 86400"),
        ("min_free_bytes", "1G", "4096, 500MB, 1GiB"),
        ("min_free_bytes", "-1", "4096, 500MB, 1GiB"),
        ("batch_files", "0", "from 1 to 65536"),
        ("batch_files", "65537", "from 1 to 65536"),
        ("hash_lanes", "0", "from 1 to 4"),
        ("hash_lanes", "5", "from 1 to 4"),
        ("sidecar_suffix", "ok", "begins with a '.'"),
        ("sidecar_suffix", ".", "begins with a '.'"),
        ("sidecar_suffix", ".o/k", "begins with a '.'"),
        ("mode", "sidecars", "one of stability, sidecar, closed"),
        ("include", "a[", "it is not a glob"),
        ("exclude", "{a", "it is not a glob"),
        ("ignore_suffixes", ".tmp:a/b", "the end of a name"),
    ] {
        let variable = Key::named(key).unwrap().variable();
        let (code, message) = Place::new().variable(&variable, value).refused();
        assert_eq!(code, 78);
        assert!(message.starts_with(&variable), "{message}");
        assert!(message.contains(expected), "{message:?} lacks {expected:?}");
        let shown = value.split(':').next_back().unwrap();
        assert!(
            message.contains(&format!("{shown:?}")),
            "{message:?} lacks {shown:?}"
        );
    }
    for (key, value) in [
        ("concurrency", "1024"),
        ("max_bytes_per_second", "0"),
        ("max_bytes_per_second", "20MB"),
        ("io_priority", "idle"),
        ("stability_seconds", "0"),
        ("stability_seconds", "86400"),
        ("rescan_seconds", "0.1"),
        ("batch_files", "1"),
        ("batch_files", "65536"),
        ("hash_lanes", "1"),
        ("hash_lanes", "4"),
    ] {
        Place::new()
            .variable(&Key::named(key).unwrap().variable(), value)
            .loaded();
    }
}

#[test]
fn no_input_at_all_is_refused() {
    for place in [
        Place::new().variable("RINGEST_INPUT", ":"),
        Place::new()
            .without("RINGEST_INPUT")
            .file("r.toml", "input = []"),
    ] {
        let (code, message) = place.refused();
        assert_eq!(code, 78);
        assert!(message.contains("at least one directory"), "{message}");
    }
}

#[test]
fn an_unknown_variable_is_only_a_warning() {
    let loaded = Place::new()
        .variable("RINGEST_WAREHOSE", "/w")
        .variable("HOME", "/h")
        .loaded();
    let [warning] = &loaded.warnings[..] else {
        panic!("{:?}", loaded.warnings)
    };
    assert!(warning.contains("RINGEST_WAREHOSE") && warning.contains("\"RINGEST_WAREHOUSE\"?"));
}

#[test]
fn features_are_disabled_by_name() {
    let loaded = Place::new()
        .variable("RINGEST_DISABLE", "uring, lease,")
        .loaded();
    let expected = Disable {
        uring: true,
        lease: true,
        ..Disable::default()
    };
    assert_eq!(loaded.settings.disable, expected);
    let (code, message) = Place::new()
        .variable("RINGEST_DISABLE", "uring,magic")
        .refused();
    assert_eq!(code, 78);
    assert!(
        message.contains("RINGEST_DISABLE") && message.contains("\"magic\""),
        "{message}"
    );
}

#[test]
fn overlapping_directories_are_refused_and_both_are_named() {
    for (key, name, other, relation) in [
        ("warehouse", "input", "input", "are the same directory"),
        ("warehouse", "input/w", "input", "is inside"),
        ("input", "warehouse/in", "warehouse", "is inside"),
        ("manifests", "warehouse/m", "warehouse", "is inside"),
        ("state_path", "warehouse/s", "warehouse", "is inside"),
        (
            "state_path",
            "manifests",
            "manifests",
            "are the same directory",
        ),
        ("state_path", "input/.state", "input", "is inside"),
        ("warehouse", "x/../input/./w/", "input", "is inside"),
    ] {
        for make in [false, true] {
            let mut place = Place::new().variable_path(key, name);
            let other = place.path(other);
            if make {
                fs::create_dir_all(place.path("x")).unwrap();
                fs::create_dir_all(&other).unwrap();
                fs::create_dir_all(place.path(name)).unwrap();
            }
            let error = place.load().unwrap_err();
            let message = error.to_string();
            assert_eq!(error.exit_code(), 78);
            assert!(message.contains(relation), "{key} = {name}: {message}");
            assert!(message.contains(&*other.to_string_lossy()), "{message}");
        }
    }
    // A name that only begins alike is beside, not inside.
    Place::new().variable_path("warehouse", "input2").loaded();
}

#[test]
fn a_directory_reached_by_a_symlink_overlaps_too() {
    for (link_key, link_to) in [
        ("warehouse", "input"),
        ("manifests", "warehouse"),
        ("input", "state_path"),
    ] {
        for beneath in ["", "/not/made/yet"] {
            let place = Place::new();
            fs::create_dir(place.path(link_to)).unwrap();
            symlink(place.path(link_to), place.path("link")).unwrap();
            let (code, message) = place
                .variable_path(link_key, &format!("link{beneath}"))
                .refused();
            assert_eq!(code, 78);
            assert!(message.contains("(really "), "{message}");
        }
    }
}

#[test]
fn inputs_may_lie_in_one_another_unless_the_outer_one_is_recursive() {
    let both = |place: Place| {
        let (outer, inner) = (place.path("in"), place.path("in/deeper"));
        place.variable(
            "RINGEST_INPUT",
            &format!("{}:{}", inner.display(), outer.display()),
        )
    };
    both(Place::new()).loaded();
    let (code, message) = both(Place::new()).flag("recursive", &["true"]).refused();
    assert_eq!(code, 78);
    assert!(
        message.contains("\"deeper\"") && message.contains("is inside"),
        "{message}"
    );
    let twice = Place::new();
    let path = twice.path("in").display().to_string();
    let (_, message) = twice
        .variable("RINGEST_INPUT", &format!("{path}:{path}/."))
        .refused();
    assert!(message.contains("are the same directory"), "{message}");
}

#[test]
fn commands_that_only_look_do_not_care_where_the_inputs_are() {
    let mut place = Place::new().variable_path("warehouse", "input/w");
    std::mem::take(&mut place.raw)
        .resolve(Purpose::Store)
        .unwrap();
    let mut place = Place::new().variable_path("state_path", "warehouse/s");
    std::mem::take(&mut place.raw)
        .resolve(Purpose::Store)
        .unwrap_err();
}

#[test]
fn sources_are_named_by_the_user_else_by_their_directory_else_by_their_path() {
    for (blocks, expected) in [
        (&[("", "a/in"), ("", "b/other")][..], ["in", "other"]),
        (&[("", "a/in"), ("", "b/in")], ["$ROOT/a/in", "$ROOT/b/in"]),
        (&[("in", "a/in"), ("", "b/in")], ["in", "$ROOT/b/in"]),
        (&[("x", "a/in"), ("y", "b/in")], ["x", "y"]),
    ] {
        let place = Place::new().without("RINGEST_INPUT");
        let root = place.directory.path().display().to_string();
        let loaded = place.file("r.toml", &source_blocks(blocks)).loaded();
        let names: Vec<_> = loaded
            .settings
            .sources
            .iter()
            .map(|source| &source.name)
            .collect();
        assert_eq!(
            names,
            expected.map(|name| name.replace("$ROOT", &root)).each_ref()
        );
    }
    let text = source_blocks(&[("x", "a"), ("x", "b")]);
    let (code, message) = Place::new()
        .without("RINGEST_INPUT")
        .file("r.toml", &text)
        .refused();
    assert_eq!(code, 78);
    assert!(
        message.contains("named \"x\"") && message.contains("/a and "),
        "{message}"
    );
}

fn source_blocks(blocks: &[(&str, &str)]) -> String {
    let block = |(name, input): &(&str, &str)| {
        let name = if name.is_empty() {
            String::new()
        } else {
            format!("name = '{name}'\n")
        };
        format!("[[source]]\n{name}input = '$ROOT/{input}'\n")
    };
    blocks.iter().map(block).collect()
}

#[test]
fn a_path_that_is_not_utf8_comes_through_whole() {
    let place = Place::new();
    let path = place.directory.path().join(OsStr::from_bytes(b"caf\xe9"));
    let loaded = place
        .variable_os("RINGEST_WAREHOUSE", path.as_os_str())
        .loaded();
    assert_eq!(loaded.settings.warehouse, path);
}

#[test]
fn effective_values_are_shown_with_their_type_and_their_origin() {
    let place = Place::new().variable("RINGEST_STABILITY_SECONDS", "0.5");
    let loaded = place
        .flag("batch_files", &["12"])
        .flag("exclude", &["*.bak", "*.log"])
        .loaded();
    let shown = |key: &str| {
        let setting = loaded
            .origins
            .iter()
            .find(|setting| setting.key == key)
            .unwrap();
        serde_json::to_value(setting).unwrap()
    };
    assert_eq!(
        shown("batch_files"),
        json!({"key": "batch_files", "value": 12, "origin": "flag"})
    );
    assert_eq!(shown("recursive")["value"], json!(false));
    assert_eq!(shown("exclude")["value"], json!(["*.bak", "*.log"]));
    assert_eq!(shown("concurrency")["value"], json!("auto"));
    assert_eq!(
        shown("stability_seconds"),
        json!({
            "source": "input",
            "key": "stability_seconds",
            "value": 0.5,
            "origin": "environment RINGEST_STABILITY_SECONDS",
        })
    );
}

#[test]
fn names_are_taken_or_ignored_for_the_first_reason_that_holds() {
    use IgnoreReason::*;
    let source = |settings: &[(&str, &[&str])]| {
        let mut place = Place::new();
        for (key, words) in settings {
            place = place.flag(key, words);
        }
        place.loaded().settings.sources.remove(0)
    };
    let plain = source(&[]);
    let sidecar = source(&[("mode", &["sidecar"])]);
    let globs = source(&[
        ("include", &["*.csv", "deep/*.json", "/top.txt"]),
        ("exclude", &["x*"]),
    ]);
    let own = source(&[("ignore_suffixes", &[".wip"])]);
    for (source, name, expected) in [
        (&plain, &b"a.csv"[..], Ok(())),
        (&plain, b".a.csv", Err(Hidden)),
        (&plain, b"deep/.a.csv", Err(Hidden)),
        (&plain, b".deep/a.csv", Err(Hidden)),
        (&plain, b"a..csv", Ok(())),
        (&plain, b"a.tmp", Err(Suffix)),
        (&plain, b"a.TMP", Ok(())),
        (&plain, b"a~", Err(Suffix)),
        (&plain, b"a.tmp.csv", Ok(())),
        (&plain, b"a.ok", Ok(())),
        (&plain, b"caf\xe9.part", Err(Suffix)),
        (&plain, b"a\nb\".csv", Ok(())),
        (&plain, b"-rf", Ok(())),
        (&sidecar, b"a.csv.ok", Err(Sidecar)),
        (&sidecar, b"a.csv", Ok(())),
        (&globs, b"a.csv", Ok(())),
        (&globs, b"deep/er/a.csv", Ok(())),
        (&globs, b"caf\xe9.csv", Ok(())),
        (&globs, b"a.json", Err(NotIncluded)),
        (&globs, b"deep/a.json", Ok(())),
        (&globs, b"deep/er/a.json", Err(NotIncluded)),
        (&globs, b"top.txt", Ok(())),
        (&globs, b"deep/top.txt", Err(NotIncluded)),
        (&globs, b"x.csv", Err(Excluded)),
        (&globs, b"deep/x.csv", Err(Excluded)),
        (&globs, b"xdeep/a.csv", Ok(())),
        (&own, b"a.wip", Err(Suffix)),
        (&own, b"a.tmp", Ok(())),
    ] {
        let path = Path::new(OsStr::from_bytes(name));
        assert_eq!(source.takes(path), expected, "{}", path.display());
    }
    let deep = source(&[("recursive", &["true"])]);
    assert!(deep.enters(Path::new("a/b.tmp")) && !deep.enters(Path::new("a/.b")));
    assert!(!plain.enters(Path::new("a")));
}

#[test]
fn every_default_passes_its_own_check() {
    for key in KEYS {
        for word in key.default {
            assert_eq!(
                key.kind.check(word.as_ref()),
                Ok(()),
                "{} = {word}",
                key.name
            );
        }
    }
}
