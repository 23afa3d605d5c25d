//! How far a schema can lead a validator, found before it is given to one: schemas are texts that others write.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::facts::looks_for;
use super::refs::{At, Document};
use super::{Compiler, SchemaError};
use crate::codec::limits::LOOKS_MAX;

/// JSON within JSON that one way through the schema can meet, each `$ref`'s target once: validating recurses.
const LEVELS_MAX: usize = 1_000;

/// Objects and arrays of the schema with all its `$ref`s put in place: what may have to be looked at for one value.
const SIZE_MAX: u64 = 100_000;

/// So many texts and numbers, of which an `enum` may have any number, are compared while one object is looked at.
const SCALARS: u64 = 8;

/// Regular expressions: each is compiled, and takes memory.
const PATTERNS_MAX: usize = 256;

/// What is known of a schema that is not refused.
#[derive(Debug)]
pub struct Bounds {
    /// No way through the schema is longer, if it does not go through itself.
    pub levels: usize,
    /// Records decide how often it goes through itself.
    pub is_recursive: bool,
    /// Objects and arrays with all `$ref`s put in place, and texts and numbers at their share. At least 1.
    pub size: u64,
    pub pattern_count: usize,
    /// Names of properties: those of records that are none of these are data.
    pub names: HashSet<String>,
}

impl Bounds {
    /// # Errors
    /// If the schema is too large to be validated with, or has a `$ref` that leads elsewhere.
    pub(super) fn of<'s>(compiler: &Compiler<'s>, root: &'s Value) -> Result<Self, SchemaError> {
        let mut names = HashSet::new();
        let mut targets: Vec<At<'s>> = Vec::new();
        let mut known: HashSet<*const Value> = HashSet::new();
        let (mut pattern_count, mut looks) = (0, 0);
        let too = |what: &str| compiler.unsupported(format!("it has too many {what} to be validated with"));
        let others = compiler.references.iter().map(|(name, root)| Document::of(root, name));
        for document in std::iter::once(Document::of(root, "")).chain(others) {
            each_object(document.whole().schema, |key, value| {
                match (key, value) {
                    ("$ref", Value::String(target)) => {
                        looks += looks_for(target, compiler.references.len(), document.whole());
                        if looks > LOOKS_MAX {
                            return Err(too("`$ref`s"));
                        }
                        let found = compiler.resolve(target, document)?;
                        if known.insert(found.schema) {
                            targets.push(found);
                        }
                    }
                    ("$dynamicRef" | "$recursiveRef", Value::String(_)) => {
                        return Err(compiler.unsupported(format!("`{key}` is not supported")));
                    }
                    ("properties", Value::Object(properties)) => names.extend(properties.keys().cloned()),
                    ("pattern", Value::String(_)) => pattern_count += 1,
                    ("patternProperties", Value::Object(patterns)) => pattern_count += patterns.len(),
                    _ => {}
                }
                Ok(())
            })?;
        }
        let levels = targets.iter().map(|target| depth(target.schema)).sum::<usize>() + depth(root);
        if levels > LEVELS_MAX {
            return Err(too("schemas within schemas"));
        }
        if pattern_count > PATTERNS_MAX {
            return Err(too("patterns"));
        }
        let mut sizes = Sizes { compiler, open: vec![root], known: HashMap::new(), is_recursive: false };
        let size = sizes.of(Document::of(root, "").whole()).div_ceil(SCALARS);
        if size > SIZE_MAX {
            return Err(too("schemas, with all `$ref`s put in place,"));
        }
        Ok(Self { levels, is_recursive: sizes.is_recursive, size, pattern_count, names })
    }
}

/// Every key of every object, at any depth.
fn each_object<'s>(
    value: &'s Value,
    mut visit: impl FnMut(&'s str, &'s Value) -> Result<(), SchemaError>,
) -> Result<(), SchemaError> {
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    visit(key, value)?;
                    open.push(value);
                }
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    Ok(())
}

/// Objects and arrays within one another.
pub fn depth(value: &Value) -> usize {
    let mut deepest = 0;
    let mut open = vec![(value, 1)];
    while let Some((value, level)) = open.pop() {
        match value {
            Value::Object(map) => open.extend(map.values().map(|value| (value, level + 1))),
            Value::Array(items) => open.extend(items.iter().map(|value| (value, level + 1))),
            _ => continue,
        }
        deepest = deepest.max(level);
    }
    deepest
}

struct Sizes<'c, 's> {
    compiler: &'c Compiler<'s>,
    /// Targets around.
    open: Vec<&'s Value>,
    known: HashMap<*const Value, u64>,
    is_recursive: bool,
}

impl<'s> Sizes<'_, 's> {
    /// With its `$ref`s put in place, but for those that lead back; [`SCALARS`] for an object. Recursion is bounded by
    /// [`LEVELS_MAX`].
    fn of(&mut self, at: At<'s>) -> u64 {
        let mut size = SCALARS;
        match at.schema {
            Value::Object(map) => {
                for (key, value) in map {
                    let inner = match (key.as_str(), value) {
                        // They count where they are wanted.
                        ("$defs" | "definitions", _) => 0,
                        ("$ref", Value::String(target)) => self.of_target(target, at),
                        _ => self.of(at.inside(value)),
                    };
                    size = size.saturating_add(inner);
                }
            }
            Value::Array(items) => {
                for item in items {
                    size = size.saturating_add(self.of(at.inside(item)));
                }
            }
            // A schema like any other, mostly.
            Value::Bool(_) => {}
            Value::Null | Value::Number(_) | Value::String(_) => return 1,
        }
        size
    }

    fn of_target(&mut self, target: &'s str, at: At<'s>) -> u64 {
        // It was found before.
        let Ok(found) = self.compiler.resolve(target, at.document) else {
            return 0;
        };
        if self.open.iter().any(|open| std::ptr::eq(*open, found.schema)) {
            self.is_recursive = true;
            return 0;
        }
        let place: *const Value = found.schema;
        if let Some(size) = self.known.get(&place) {
            return *size;
        }
        self.open.push(found.schema);
        let size = self.of(found);
        self.open.pop();
        self.known.insert(place, size);
        size
    }
}
