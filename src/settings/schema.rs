//! A JSON Schema (2020-12) from a file, compiled once. Nothing is fetched: all it refers to is in it. Patterns are matched in linear
//! time, so none can hang.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonschema::error::ValidationErrorKind;
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use serde_json::{Value, json};

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
    /// Says whether a document keeps it.
    validator: Validator,
    /// Says where it does not, see [`Telling`].
    telling: Option<Validator>,
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
    /// The keyword of the rule, if there is one to name.
    pub keyword: Option<String>,
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
        let validator = compile(&schema).map_err(|error| {
            let place = error.instance_path().as_str();
            format!(
                "it is no JSON Schema 2020-12 that can be used: {place:?}: {error}; what it refers to has to be in it"
            )
        })?;
        let mut names = HashSet::new();
        collect_names(&schema, &mut names);
        let telling = Telling::of(&schema).and_then(|schema| compile(&schema).ok());
        Ok(Schema {
            path: path.into(),
            compiled: Arc::new(Compiled {
                validator,
                telling,
                names,
            }),
        })
    }

    /// The first rule that a document breaks.
    pub fn broken_by(&self, document: &Value) -> Option<Broken> {
        let Compiled {
            validator,
            telling,
            names,
        } = &*self.compiled;
        // Without reasons it is several times as fast.
        if validator.is_valid(document) {
            return None;
        }
        let told = telling.as_ref();
        let Some(error) = told.and_then(|telling| telling.validate(document).err()) else {
            return Some(Broken {
                pointer: String::new(),
                beneath: true,
                keyword: None,
            });
        };
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
            keyword: Some(keyword_of(&error)),
        })
    }
}

fn compile(schema: &Value) -> Result<Validator, ValidationError<'_>> {
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .with_pattern_options(PatternOptions::regex())
        .offline()
        .build(schema)
}

/// The same schema, in which it costs little to say what is broken. Of `anyOf` and `oneOf` a validator gathers what is wrong with each
/// branch, and of the branches in these; where several ways lead to a part of the schema that leads back to itself, it goes each of them
/// at each level: exponentially much in the depth of a document. What is not not so is so, and the validator has nothing to say of why,
/// and remembers what it has found.
struct Telling<'s> {
    schema: &'s Value,
    /// What each reference leads to, as references; `None`: that is not known.
    ways: HashMap<&'s str, Option<Vec<&'s str>>>,
}

impl<'s> Telling<'s> {
    /// That of a schema. `None`: it would be another schema, since `unevaluatedProperties` and `unevaluatedItems` see through one
    /// `not` only.
    fn of(schema: &'s Value) -> Option<Value> {
        let mut telling = Telling {
            schema,
            ways: HashMap::new(),
        };
        let mut references = Vec::new();
        collect_references(schema, &mut references);
        for reference in references {
            if !telling.ways.contains_key(reference) {
                let way = telling.way_of(reference);
                telling.ways.insert(reference, way);
            }
        }
        telling.rewritten(schema)
    }

    fn way_of(&self, reference: &str) -> Option<Vec<&'s str>> {
        let pointer = reference.strip_prefix('#')?;
        let is_pointer = pointer.is_empty() || pointer.starts_with('/');
        let known = is_pointer && !pointer.contains('%') && !has_other_base(self.schema, true);
        let mut references = Vec::new();
        collect_references(
            self.schema.pointer(pointer).filter(|_| known)?,
            &mut references,
        );
        Some(references)
    }

    /// Whether a reference leads back to itself, or may.
    fn is_recursive(&self, reference: &str) -> bool {
        let (mut seen, mut next) = (HashSet::new(), vec![reference]);
        while let Some(from) = next.pop() {
            let Some(Some(way)) = self.ways.get(from) else {
                return true;
            };
            for &reached in way {
                if reached == reference {
                    return true;
                }
                if seen.insert(reached) {
                    next.push(reached);
                }
            }
        }
        false
    }

    fn rewritten(&self, schema: &Value) -> Option<Value> {
        let members = match schema {
            Value::Object(members) => members,
            Value::Array(items) => {
                return items.iter().map(|item| self.rewritten(item)).collect();
            }
            other => return Some(other.clone()),
        };
        let mut told = serde_json::Map::new();
        let mut parts = Vec::new();
        for (keyword, value) in members {
            let branches = value.as_array();
            let branches = branches.filter(|all| all.iter().all(is_schema));
            let mut not_not = |value: Value| {
                let inner: Value = [(keyword.clone(), value)].into_iter().collect();
                parts.push(json!({"not": {"not": inner}}));
            };
            match &**keyword {
                "unevaluatedProperties" | "unevaluatedItems" => return None,
                "anyOf" | "oneOf" if branches.is_some() => not_not(self.rewritten(value)?),
                "$ref" if value.as_str().is_some_and(|it| self.is_recursive(it)) => {
                    not_not(value.clone());
                }
                "$dynamicRef" if value.is_string() => not_not(value.clone()),
                "const" | "enum" | "default" | "examples" => {
                    told.insert(keyword.clone(), value.clone());
                }
                _ => {
                    told.insert(keyword.clone(), self.rewritten(value)?);
                }
            }
        }
        if !parts.is_empty() {
            let all = told.entry("allOf").or_insert_with(|| json!([]));
            all.as_array_mut()?.extend(parts);
        }
        Some(Value::Object(told))
    }
}

/// What a part of a schema refers to.
fn collect_references<'s>(schema: &'s Value, references: &mut Vec<&'s str>) {
    match schema {
        Value::Object(members) => {
            let of = |keyword| members.get(keyword).and_then(Value::as_str);
            references.extend(["$ref", "$dynamicRef"].into_iter().filter_map(of));
            let values = members.values();
            values.for_each(|member| collect_references(member, references));
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| collect_references(item, references)),
        _ => {}
    }
}

/// Whether a part of a schema says itself what references in it begin at.
fn has_other_base(schema: &Value, is_root: bool) -> bool {
    match schema {
        Value::Object(members) => {
            let has = !is_root && members.get("$id").is_some_and(Value::is_string);
            has || members.values().any(|it| has_other_base(it, false))
        }
        Value::Array(items) => items.iter().any(|it| has_other_base(it, false)),
        _ => false,
    }
}

fn is_schema(value: &Value) -> bool {
    value.is_object() || value.is_boolean()
}

/// The keyword that is not kept, as it is in the schema that a [`Telling`] was made of.
fn keyword_of(error: &ValidationError<'_>) -> String {
    if let ValidationErrorKind::Not { schema } = error.kind()
        && let Some(Value::Object(inner)) = schema.get("not")
        && let Some(keyword) = inner.keys().next()
        && matches!(&**keyword, "anyOf" | "oneOf" | "$ref" | "$dynamicRef")
    {
        return keyword.clone();
    }
    error.kind().keyword().to_owned()
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
                keyword: Some(keyword.into()),
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

    /// Documents that go on beneath `c`, so deep.
    fn nested(depth: usize) -> Value {
        (0..depth).fold(json!({}), |beneath, _| json!({"c": beneath}))
    }

    #[test]
    fn branches_within_branches_cost_no_more_than_their_number() {
        for keyword in ["anyOf", "oneOf"] {
            let branch =
                |name: &str| json!({"properties": {"c": {"$ref": "#"}}, "required": [name]});
            let schema = load(&json!({keyword: [branch("x"), branch("y")]}).to_string()).unwrap();
            let broken = schema.broken_by(&nested(100)).expect("neither is there");
            assert_eq!(broken.keyword.as_deref(), Some(keyword));
            assert_eq!((&*broken.pointer, broken.beneath), ("", false));
        }
        // Nor does a long list, of which each item is wrong in each branch.
        let items = |kind: &str| json!({"items": {"type": kind}});
        let schema = json!({"properties": {"a": {"anyOf": [items("string"), items("object")]}}});
        let schema = load(&schema.to_string()).unwrap();
        let broken = schema.broken_by(&json!({"a": vec![1; 100_000]})).unwrap();
        assert_eq!(broken.pointer, "/a");
    }

    #[test]
    fn ways_that_meet_again_at_each_level_cost_no_more_than_the_levels() {
        let again = |reference: &str| json!({"properties": {"c": {"$ref": reference}}});
        let dynamic = json!({"properties": {"c": {"$dynamicRef": "#n"}}});
        for (at, node) in [
            (
                "#/$defs/n",
                json!({"allOf": [again("#/$defs/n"), again("#/$defs/n")]}),
            ),
            (
                "#/$defs/n",
                json!({"$ref": "#/$defs/m", "properties": {"c": {"$ref": "#/$defs/n"}}}),
            ),
            (
                "#n",
                json!({"$anchor": "n", "if": again("#n"), "then": again("#n")}),
            ),
            (
                "#/$defs/n",
                json!({"$dynamicAnchor": "n", "allOf": [dynamic, dynamic]}),
            ),
            (
                "#/$defs/n",
                json!({"patternProperties": {"c": {"$ref": "#/$defs/n"}}, "properties": {"c": {"$ref": "#/$defs/n"}}}),
            ),
        ] {
            let schema = json!({
                "properties": {"a": {"$ref": at}, "z": {"type": "string"}},
                "$defs": {"n": node, "m": again("#/$defs/n")},
            });
            let schema = load(&schema.to_string()).unwrap();
            let broken = schema.broken_by(&json!({"a": nested(100), "z": 1}));
            assert_eq!(broken.map(|it| it.pointer).as_deref(), Some("/z"), "{node}");
        }
    }

    #[test]
    fn what_is_broken_further_down_in_a_recursion_is_told_as_its_beginning() {
        let schema = load(
            r##"{
            "properties": {"tree": {"$ref": "#/$defs/node"}, "price": {"$ref": "#/$defs/amount"}},
            "$defs": {
                "node": {"properties": {"name": {"type": "string"}, "children": {"items": {"$ref": "#/$defs/node"}}}},
                "amount": {"properties": {"value": {"$ref": "#/$defs/number"}}},
                "number": {"type": "number"}
            }
        }"##,
        )
        .unwrap();
        let broken = |document| {
            let broken = schema.broken_by(&document).expect("it is broken");
            (broken.pointer, broken.keyword.expect("it is known"))
        };
        let tree = json!({"tree": {"children": [{"name": "a"}, {"name": 1}]}});
        assert_eq!(broken(tree), ("/tree".into(), "$ref".into()));
        let price = json!({"price": {"value": "1"}});
        assert_eq!(broken(price), ("/price/value".into(), "type".into()));
    }

    #[test]
    fn what_is_told_of_branches_is_told_of_the_schema_itself() {
        let schema = load(
            r##"{
            "properties": {
                "anyOf": {"type": "array", "items": {"$ref": "#/$defs/one"}},
                "not": {"not": {"type": "null"}},
                "both": {"allOf": [{"minimum": 2}], "anyOf": [{"type": "integer"}, true], "oneOf": [{"maximum": 4}, {"const": 9}]}
            },
            "dependentRequired": {"anyOf": ["not"]},
            "$defs": {"one": {"oneOf": [{"type": "string"}, {"enum": [{"anyOf": [{}]}]}]}}
        }"##,
        )
        .unwrap();
        for (document, expected) in [
            (
                json!({"anyOf": ["a", {"anyOf": [{}]}], "not": 1, "both": 9}),
                None,
            ),
            (json!({"anyOf": [], "not": 1, "both": 3}), None),
            (
                json!({"anyOf": ["a", 1], "not": 1}),
                Some(("/anyOf/1", "oneOf")),
            ),
            (json!({"anyOf": []}), Some(("", "required"))),
            (json!({"not": null}), Some(("/not", "not"))),
            (json!({"both": 1}), Some(("/both", "minimum"))),
            (json!({"both": 5}), Some(("/both", "oneOf"))),
        ] {
            let broken = schema.broken_by(&document);
            let told = broken
                .as_ref()
                .map(|it| (&*it.pointer, it.keyword.as_deref().unwrap()));
            assert_eq!(told, expected, "{document}");
        }
        // Where that cannot be said, it is not.
        let schema =
            load(r#"{"anyOf": [{"properties": {"a": true}}], "unevaluatedProperties": false}"#)
                .unwrap();
        assert_eq!(schema.broken_by(&json!({"a": 1})), None);
        let broken = schema.broken_by(&json!({"b": 1})).unwrap();
        assert_eq!((broken.keyword, broken.beneath), (None, true));
    }
}
