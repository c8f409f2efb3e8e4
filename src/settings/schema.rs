//! A JSON Schema, compiled.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonschema::{Draft, PatternOptions, Validator};

/// A JSON Schema (2020-12, unless it says otherwise by `$schema`) from a file.
#[derive(Clone)]
pub struct Schema {
    path: PathBuf,
    validator: Arc<Validator>,
}

impl Schema {
    /// Reads and compiles it. Nothing that it refers to is fetched. Its regular expressions run in linear time.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(path: &Path) -> Result<Schema, String> {
        let text = std::fs::read(path).map_err(|error| format!("it cannot be read: {error}"))?;
        let schema: serde_json::Value =
            serde_json::from_slice(&text).map_err(|error| format!("it is no JSON: {error}"))?;
        let draft = match schema.get("$schema") {
            Some(_) => None,
            None => Some(Draft::Draft202012),
        };
        let options = jsonschema::options()
            .offline()
            .with_pattern_options(PatternOptions::regex());
        let options = match draft {
            Some(draft) => options.with_draft(draft),
            None => options,
        };
        let validator = options
            .build(&schema)
            .map_err(|error| format!("it is no JSON Schema that can be used: {error}"))?;
        Ok(Schema {
            path: path.into(),
            validator: Arc::new(validator),
        })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The first rule that a document breaks: where in the document, and where in the schema. Never the value.
    pub fn broken_by(&self, document: &serde_json::Value) -> Option<(String, String)> {
        let error = self.validator.validate(document).err()?;
        let places = (error.instance_path(), error.schema_path());
        Some((places.0.to_string(), places.1.to_string()))
    }
}

impl PartialEq for Schema {
    fn eq(&self, other: &Schema) -> bool {
        Arc::ptr_eq(&self.validator, &other.validator)
    }
}

impl Eq for Schema {}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Schema({})", self.path.display())
    }
}
