//! `validate: true`: a record is held against all that its own schema says. The types are not asked again: what the
//! route's schema makes columns of is read as always.
//!
//! The validator is the crate `jsonschema`. It fetches nothing: `$ref`s lead into the document or to references that
//! the registry has with it. Patterns are run by `regex`, whose time grows with the text alone: what that has not
//! (looking around, going back) is refused.

use std::error::Error;

use jsonschema::{PatternOptions, Retrieve, Uri, Validator};
use serde_json::Value;

use crate::codec::json::Unfit;
use crate::config::plan::Recursion;
use crate::model::{Reference, code};

use super::bounds::{Bounds, depth};
use super::refs::{id, is_same};
use super::{Compiler, SchemaError, deep, document, documents};

/// Bytes of one compiled pattern.
const PATTERN_BYTES_MAX: usize = 256 << 10;

/// Levels of a record times levels of its schema that are taken on the thread that is there. Beyond it, which only
/// schemas that contain themselves come to, there is one with a stack of its own.
const LEVELS_HERE_MAX: usize = 1_000;

/// Values of a record times the size of its schema: how often one may be held against a part of the other. Most values
/// meet a few parts; what meets all of them, in an `anyOf`, takes some nanoseconds for each: a tenth of a second together.
/// 20,000 values under a schema of 500 parts, which is a record of half a megabyte, are within it. Text counts besides,
/// for each pattern.
const CHECKS_MAX: u64 = 10_000_000;

/// Bytes of text that a pattern reads in about the time of one check.
const CHECK_BYTES: u64 = 8;

/// What the validator keeps of each object of a schema, about.
const PART_BYTES: usize = 256;

/// And of each pattern, most of which take far less than they may.
const PATTERN_BYTES: usize = 32 << 10;

/// Stack for one of those levels, with room to spare.
const LEVEL_BYTES: usize = 2 << 10;

/// The base of a schema without an `$id`, as the validator has it.
const NO_BASE: &str = "json-schema:///";

/// Validates records of one schema.
#[derive(Debug)]
pub struct Validation {
    validator: Validator,
    bounds: Bounds,
}

impl Validation {
    /// # Errors
    /// [`SchemaError`] if the schema is not valid, too large, or asks for what is not there.
    pub fn new(text: &str, references: &[Reference]) -> Result<Self, SchemaError> {
        deep(|| Self::of(text, references))
    }

    fn of(text: &str, references: &[Reference]) -> Result<Self, SchemaError> {
        let root = document(text)?;
        let others = documents(references)?;
        let bounds = Bounds::of(&Compiler::new(&root, &others, Recursion::Refuse), &root)?;
        let patterns =
            PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX);
        let options = jsonschema::options()
            .with_retriever(Others(others))
            .with_pattern_options(patterns)
            // A record would bring patterns of its own to be compiled.
            .with_format("regex", |_: &str| true);
        let invalid = |error: jsonschema::ValidationError<'_>| {
            SchemaError::InvalidJsonSchema(format!("`{}`: {error}", error.instance_path()))
        };
        let validator = options.build(&root).map_err(invalid)?;
        Ok(Self { validator, bounds })
    }

    /// # Errors
    /// With the keyword that is not kept, and where. Values are not shown, nor names that are values.
    pub fn check(&self, json: &Value) -> Result<(), Unfit> {
        let (values, text) = extent(json);
        let (size, patterns) = (self.bounds.size, self.bounds.pattern_count);
        let of_text = (text / CHECK_BYTES).saturating_mul(patterns as u64);
        if values.saturating_mul(size).saturating_add(of_text) > CHECKS_MAX {
            let message = format!(
                "it is too large to be validated: {values} values and {text} bytes of text, under a schema of {size} \
                 parts and {patterns} patterns, may take more than {CHECKS_MAX} checks"
            );
            return Err(Unfit { code: code::SIZE, message });
        }
        let levels =
            if self.bounds.is_recursive { depth(json).saturating_mul(self.bounds.levels) } else { 0 };
        let is_valid = if levels <= LEVELS_HERE_MAX {
            self.validator.is_valid(json)
        } else {
            on_stack(levels.saturating_mul(LEVEL_BYTES), || self.validator.is_valid(json))?
        };
        if is_valid {
            return Ok(());
        }
        // An error has the errors of all arms of a choice with it: through a schema that contains itself there is no end
        // of them.
        let error = if self.bounds.is_recursive { None } else { self.validator.validate(json).err() };
        let message = match error {
            Some(error) => {
                let place = self.place(error.instance_path().as_str());
                format!("{place}it does not keep to `{}` of its schema", error.kind().keyword())
            }
            None => "it does not keep to its schema".to_owned(),
        };
        Err(Unfit { code: code::INVALID, message })
    }

    /// What it takes besides its text, in bytes, about.
    pub fn size(&self) -> usize {
        self.bounds.size as usize * PART_BYTES + self.bounds.pattern_count * PATTERN_BYTES
    }

    /// Where a pointer leads, as messages begin.
    fn place(&self, pointer: &str) -> String {
        let steps = pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~"));
        let is_told = |step: &String| {
            self.bounds.names.contains(step) || step.bytes().all(|byte| byte.is_ascii_digit())
        };
        let shown: Vec<String> =
            steps.map(|step| if is_told(&step) { step } else { "*".to_owned() }).collect();
        if shown.is_empty() { String::new() } else { format!("field `{}`: ", shown.join(".")) }
    }
}

/// All values within it and itself; and the bytes of its texts, and of names, which patterns may be for too.
fn extent(json: &Value) -> (u64, u64) {
    let (mut count, mut text) = (0, 0);
    let mut open = vec![json];
    while let Some(value) = open.pop() {
        count += 1;
        match value {
            Value::Object(map) => {
                text += map.keys().map(|name| name.len() as u64).sum::<u64>();
                open.extend(map.values());
            }
            Value::Array(items) => open.extend(items),
            Value::String(value) => text += value.len() as u64,
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    (count, text)
}

/// Runs on a thread with a stack of so many bytes. They are memory only as far as they are used.
fn on_stack<T: Send>(bytes: usize, run: impl FnOnce() -> T + Send) -> Result<T, Unfit> {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(bytes);
        let thread = builder.spawn_scoped(scope, run).map_err(|error| Unfit {
            code: code::DEPTH,
            message: format!("it is too deep to be validated here: {error}"),
        })?;
        thread.join().map_err(|_| Unfit { code: code::DEPTH, message: "validating it failed".to_owned() })
    })
}

/// What the registry has with a schema.
struct Others(Vec<(String, Value)>);

impl Retrieve for Others {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn Error + Send + Sync>> {
        let uri = uri.to_string();
        // A name may be relative to any schema that uses it: the validator has joined them.
        let ends = |name: &str| uri.strip_suffix(name).is_some_and(|before| before.ends_with('/'));
        let exact = self.0.iter().find(|(name, root)| {
            is_same(NO_BASE, name, &uri) || id(root).is_some_and(|id| is_same(NO_BASE, id, &uri))
        });
        let found = exact.or_else(|| self.0.iter().find(|(name, _)| ends(name.trim_start_matches("./"))));
        match found {
            Some((_, root)) => Ok(root.clone()),
            None => {
                Err("it is no reference that the registry has with the schema, and nothing else is fetched"
                    .into())
            }
        }
    }
}
