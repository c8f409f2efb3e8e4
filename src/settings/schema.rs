//! A JSON Schema (2020-12) from a file, compiled once. Nothing is fetched: all it refers to is in it. Patterns are matched in linear
//! time, so none can hang.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonschema::{Draft, PatternOptions, Validator};
use serde_json::Value;

/// What a schema of that draft may call itself.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
/// Longest pointer that is told, in bytes.
const POINTER_BYTES_MAX: usize = 1024;

/// A compiled schema. Clones share it.
#[derive(Clone)]
pub struct Schema {
    path: PathBuf,
    compiled: Arc<Compiled>,
}

struct Compiled {
    validator: Validator,
    /// Names of properties that it knows, as they are in a pointer.
    names: HashSet<String>,
}

/// A rule of a schema that a document breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The value that breaks it (RFC 6901), as far as the schema names the way to it: other names are content.
    pub pointer: String,
    /// Whether the value is further down.
    pub beneath: bool,
    /// The keyword of the rule.
    pub keyword: String,
}

impl Schema {
    /// Reads and compiles the schema of that file.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn load(path: &Path) -> Result<Schema, String> {
        let text = std::fs::read(path).map_err(|error| format!("it cannot be read: {error}"))?;
        let schema: Value =
            serde_json::from_slice(&text).map_err(|error| format!("it is not JSON: {error}"))?;
        let stated = schema.get("$schema").and_then(Value::as_str);
        if let Some(draft) = stated
            && draft.trim_end_matches('#') != DRAFT
        {
            return Err(format!(
                "its $schema is {draft:?}; it has to be {DRAFT:?}, or left out"
            ));
        }
        let options = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .with_pattern_options(PatternOptions::regex())
            .offline();
        let validator = options.build(&schema).map_err(|error| {
            let place = error.instance_path().as_str();
            format!(
                "it is no JSON Schema 2020-12 that can be used: {place:?}: {error}; what it refers to has to be in it"
            )
        })?;
        let mut names = HashSet::new();
        collect_names(&schema, &mut names);
        Ok(Schema {
            path: path.into(),
            compiled: Arc::new(Compiled { validator, names }),
        })
    }

    /// The first rule that a document breaks.
    pub fn broken_by(&self, document: &Value) -> Option<Broken> {
        let Compiled { validator, names } = &*self.compiled;
        // Without reasons it is several times as fast.
        if validator.is_valid(document) {
            return None;
        }
        let error = validator.validate(document).err()?;
        let mut pointer = String::new();
        let mut at = Some(document);
        let path = error.instance_path();
        let segments = path.as_str().split('/').skip(1);
        let beneath = segments.into_iter().any(|segment| {
            let known = match at {
                Some(Value::Array(_)) => true,
                _ => names.contains(segment),
            };
            if !known || pointer.len() + segment.len() >= POINTER_BYTES_MAX {
                return true;
            }
            pointer.push('/');
            pointer.push_str(segment);
            at = document.pointer(&pointer);
            false
        });
        Some(Broken {
            pointer,
            beneath,
            keyword: error.kind().keyword().to_owned(),
        })
    }
}

/// The names beneath each `properties`.
fn collect_names(schema: &Value, names: &mut HashSet<String>) {
    match schema {
        Value::Object(members) => {
            if let Some(Value::Object(properties)) = members.get("properties") {
                let escaped = |name: &String| name.replace('~', "~0").replace('/', "~1");
                names.extend(properties.keys().map(escaped));
            }
            members
                .values()
                .for_each(|member| collect_names(member, names));
        }
        Value::Array(items) => items.iter().for_each(|item| collect_names(item, names)),
        _ => {}
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({})", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn load(schema: &str) -> Result<Schema, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("schema.json");
        std::fs::write(&path, schema).unwrap();
        Schema::load(&path)
    }

    #[test]
    fn what_cannot_be_used_says_why() {
        for (schema, says) in [
            ("{", "not JSON"),
            (r#"{"type": "text"}"#, "\"/type\""),
            (r#"{"pattern": "("}"#, "pattern"),
            (r#"{"pattern": "(a)\\1"}"#, "pattern"),
            (
                r#"{"$ref": "https://example.com/a.json"}"#,
                "has to be in it",
            ),
            (r#"{"$ref": "file:///etc/a.json"}"#, "has to be in it"),
            (r#"{"$ref": "other.json"}"#, "has to be in it"),
            (
                r#"{"$schema": "http://json-schema.org/draft-07/schema#"}"#,
                "draft/2020-12",
            ),
        ] {
            let why = load(schema).expect_err(schema);
            assert!(why.contains(says), "{schema}: {why}");
        }
        let why = Schema::load(Path::new("/nowhere/schema.json")).unwrap_err();
        assert!(why.contains("cannot be read"), "{why}");
    }

    #[test]
    fn what_is_broken_is_told_without_what_the_document_holds() {
        let schema = load(
            r##"{
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "properties": {
                "a/b": {"items": {"$ref": "#/$defs/amount"}},
                "open": {"additionalProperties": {"type": "string"}},
                "card": {"pattern": "^(a+)+$"}
            },
            "required": ["a/b"],
            "$defs": {"amount": {"type": "number", "minimum": 0}}
        }"##,
        )
        .unwrap();
        let broken = |pointer: &str, beneath, keyword: &str| {
            Some(Broken {
                pointer: pointer.into(),
                beneath,
                keyword: keyword.into(),
            })
        };
        for (document, expected) in [
            (json!({"a/b": [1, 2]}), None),
            (json!({}), broken("", false, "required")),
            (json!({"a/b": [1, -2]}), broken("/a~1b/1", false, "minimum")),
            (
                json!({"a/b": [], "open": {"4111111111111111": 1}}),
                broken("/open", true, "type"),
            ),
            (
                json!({"a/b": [], "card": "a".repeat(1 << 20) + "!"}),
                broken("/card", false, "pattern"),
            ),
        ] {
            assert_eq!(schema.broken_by(&document), expected);
        }
    }
}
