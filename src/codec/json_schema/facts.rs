//! What schemas say of one value, put together.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use crate::config::plan::Recursion;

use super::refs::At;
use super::{Compiler, SchemaError};

/// Sets of JSON types. A number is a whole one or one with a fraction.
pub mod kinds {
    pub const NULL: u8 = 1;
    pub const BOOLEAN: u8 = 2;
    pub const STRING: u8 = 4;
    pub const INTEGER: u8 = 8;
    pub const FRACTION: u8 = 16;
    pub const NUMBER: u8 = INTEGER | FRACTION;
    pub const ARRAY: u8 = 32;
    pub const OBJECT: u8 = 64;
    pub const ALL: u8 = 127;

    /// Those without values inside.
    pub const SIMPLE: u8 = BOOLEAN | STRING | NUMBER;
}

/// All that is said of a value.
pub struct Facts<'s> {
    /// Of [`kinds`]: those that no schema excludes.
    types: u8,
    /// A choice that has null as an arm, whatever else is said there.
    pub may_be_null: bool,
    /// It has no type but that of any JSON.
    pub is_anything: bool,
    /// A choice of several types, each with what is said of it at its top.
    pub arms: Vec<(At<'s>, Facts<'s>)>,
    /// In the order of the schemas, each with all that is said of it.
    pub properties: Vec<(&'s str, Vec<At<'s>>)>,
    places: HashMap<&'s str, usize>,
    pub required: BTreeSet<&'s str>,
    pub additional: Vec<At<'s>>,
    pub has_patterns: bool,
    /// There are no other properties.
    pub is_closed: bool,
    pub items: Vec<At<'s>>,
    pub is_tuple: bool,
    pub format: Option<&'s str>,
    pub title: Option<&'s str>,
    pub connect_type: Option<&'s str>,
    pub default: Option<&'s Value>,
    /// `oneOf` and `anyOf` that have not been looked into.
    choices: Vec<Vec<At<'s>>>,
    /// Where the `$ref`s of this value lead.
    pub targets: Vec<&'s Value>,
    /// Those of them that are being gathered.
    chain: Vec<&'s Value>,
    /// Of an arm of a choice, which is only looked at: it may lead to where it stands.
    is_arm: bool,
}

impl Default for Facts<'_> {
    fn default() -> Self {
        Self {
            types: kinds::ALL,
            may_be_null: false,
            is_anything: false,
            arms: Vec::new(),
            properties: Vec::new(),
            places: HashMap::new(),
            required: BTreeSet::new(),
            additional: Vec::new(),
            has_patterns: false,
            is_closed: false,
            items: Vec::new(),
            is_tuple: false,
            format: None,
            title: None,
            connect_type: None,
            default: None,
            choices: Vec::new(),
            targets: Vec::new(),
            chain: Vec::new(),
            is_arm: false,
        }
    }
}

impl<'s> Facts<'s> {
    /// The types it may have. Without `type`, what only objects or arrays have says that it is one.
    pub fn kinds(&self) -> u8 {
        if self.types != kinds::ALL {
            self.types
        } else if !self.properties.is_empty() || !self.additional.is_empty() {
            kinds::OBJECT
        } else if !self.items.is_empty() || self.is_tuple {
            kinds::ARRAY
        } else {
            kinds::ALL
        }
    }

    fn property(&mut self, name: &'s str, at: At<'s>) {
        let place = *self.places.entry(name).or_insert(self.properties.len());
        match self.properties.get_mut(place) {
            Some((_, schemas)) => schemas.push(at),
            None => self.properties.push((name, vec![at])),
        }
    }

    /// Whether an arm can be a member of a struct, or simple ones several.
    fn has_one_type(&self) -> bool {
        let kinds = self.kinds() & !kinds::NULL;
        let is_one = kinds & !kinds::SIMPLE == 0 || kinds == kinds::ARRAY || kinds == kinds::OBJECT;
        is_one && !self.is_anything
    }

    /// Whether more is said than which types it has.
    pub fn has_parts(&self) -> bool {
        !(self.properties.is_empty() && self.additional.is_empty() && self.items.is_empty())
            || self.has_patterns
            || self.is_tuple
    }

    /// Whether an arm of a choice only narrows what is known: `{"required": ["a"]}` beside properties.
    fn knows(&self, arm: &Self) -> bool {
        self.kinds() & arm.kinds() == self.kinds()
            && arm.properties.iter().all(|(name, _)| self.places.contains_key(name))
            && arm.additional.is_empty()
            && arm.items.is_empty()
            && !arm.is_tuple
            && arm.choices.is_empty()
            && arm.format.is_none()
    }
}

fn types_of(value: &Value) -> u8 {
    match value {
        Value::Null => kinds::NULL,
        Value::Bool(_) => kinds::BOOLEAN,
        Value::String(_) => kinds::STRING,
        Value::Number(number) if number.is_f64() => kinds::NUMBER,
        Value::Number(_) => kinds::INTEGER,
        Value::Array(_) => kinds::ARRAY,
        Value::Object(_) => kinds::OBJECT,
    }
}

impl<'s> Compiler<'s> {
    fn invalid(&self, what: &str) -> SchemaError {
        SchemaError::InvalidJsonSchema(format!("`{}`: {what}", self.path()))
    }

    /// Adds what a schema says, and those that hold beside it.
    pub(super) fn gather(&mut self, at: At<'s>, facts: &mut Facts<'s>) -> Result<(), SchemaError> {
        let map = match at.schema {
            Value::Bool(true) => return Ok(()),
            Value::Bool(false) => {
                facts.types = 0;
                return Ok(());
            }
            Value::Object(map) => map,
            _ => return Err(self.invalid("a schema is an object, true or false")),
        };
        self.enter()?;
        if let Some(keyword) = ["$dynamicRef", "$recursiveRef"].iter().find(|key| map.contains_key(**key)) {
            return Err(self.unsupported(format!("`{keyword}` is not supported")));
        }
        if let Some(target) = map.get("$ref") {
            let Value::String(target) = target else { return Err(self.invalid("`$ref` is no text")) };
            self.follow(target, at, facts)?;
        }
        self.gather_types(map, facts)?;
        self.looks += ["properties", "required", "enum"].into_iter().map(|key| len(map, key)).sum::<usize>();
        gather_parts(map, at, facts);
        if let Some(Value::Array(all)) = map.get("allOf") {
            for schema in all {
                self.gather(at.inside(schema), facts)?;
            }
        }
        for choice in ["oneOf", "anyOf"] {
            if let Some(Value::Array(arms)) = map.get(choice) {
                facts.choices.push(arms.iter().map(|arm| at.inside(arm)).collect());
            }
        }
        self.depth -= 1;
        Ok(())
    }

    fn follow(&mut self, target: &'s str, at: At<'s>, facts: &mut Facts<'s>) -> Result<(), SchemaError> {
        self.looks +=
            looks_for(target, self.references.len(), at) + (self.open.len() + facts.targets.len()) / 64;
        let found = self.resolve(target, at.document)?;
        let is_in = |open: &[&Value]| open.iter().any(|open| std::ptr::eq(*open, found.schema));
        let is_again = !facts.is_arm && is_in(&self.open);
        if is_again && self.recursion == Recursion::Json && !is_in(&facts.chain) {
            facts.is_anything = true;
            return Ok(());
        }
        if is_again || is_in(&facts.chain) {
            return Err(SchemaError::Recursive { path: self.path(), name: target.to_owned() });
        }
        // Said twice is said once.
        if is_in(&facts.targets) {
            return Ok(());
        }
        facts.targets.push(found.schema);
        facts.chain.push(found.schema);
        self.gather(found, facts)?;
        facts.chain.pop();
        Ok(())
    }

    fn gather_types(&self, map: &Map<String, Value>, facts: &mut Facts<'_>) -> Result<(), SchemaError> {
        let named = |name: &Value| match name.as_str() {
            Some("null") => Ok(kinds::NULL),
            Some("boolean") => Ok(kinds::BOOLEAN),
            Some("string") => Ok(kinds::STRING),
            Some("integer") => Ok(kinds::INTEGER),
            Some("number") => Ok(kinds::NUMBER),
            Some("array") => Ok(kinds::ARRAY),
            Some("object") => Ok(kinds::OBJECT),
            _ => Err(self.invalid("`type` is one of null, boolean, string, integer, number, array, object")),
        };
        facts.types &= match (map.get("type"), map.get("const"), map.get("enum")) {
            (Some(Value::Array(names)), _, _) => {
                names.iter().try_fold(0, |all, name| named(name).map(|kind| all | kind))?
            }
            (Some(name), _, _) => named(name)?,
            (None, Some(value), _) => types_of(value),
            (None, None, Some(Value::Array(values))) => {
                values.iter().fold(0, |all, value| all | types_of(value))
            }
            _ => kinds::ALL,
        };
        Ok(())
    }

    /// Looks into the choices: one arm beside null is what the value is, arms of one simple type are that type, and
    /// several types are a choice.
    pub(super) fn choose(&mut self, facts: &mut Facts<'s>) -> Result<(), SchemaError> {
        while let Some(choice) = facts.choices.pop() {
            let mut arms: Vec<(At<'s>, Facts<'s>)> = Vec::new();
            for at in choice {
                // Only at the top of each: what is below has no type of its own if the arms differ.
                let mut arm = Facts { is_arm: true, ..Facts::default() };
                self.gather(at, &mut arm)?;
                if arm.types != 0 {
                    arms.push((at, arm));
                }
            }
            let has_null = arms.iter().any(|(_, arm)| arm.types == kinds::NULL);
            let can_be_null = facts.types & kinds::NULL != 0;
            arms.retain(|(_, arm)| arm.types != kinds::NULL);
            match arms.as_slice() {
                [] => facts.types &= if has_null { kinds::NULL } else { 0 },
                [(at, _)] => {
                    facts.may_be_null |= has_null && can_be_null;
                    self.gather(*at, facts)?;
                }
                _ => {
                    facts.may_be_null |= has_null && can_be_null;
                    join(arms, facts);
                }
            }
        }
        Ok(())
    }
}

/// Parts of one keyword of a schema.
fn len(map: &Map<String, Value>, key: &str) -> usize {
    match map.get(key) {
        Some(Value::Object(parts)) => parts.len(),
        Some(Value::Array(parts)) => parts.len(),
        _ => 0,
    }
}

/// What is looked at for a `$ref`. Names and anchors are looked for one by one, and a long pointer is long each time.
pub fn looks_for(target: &str, reference_count: usize, at: At<'_>) -> usize {
    let by_name = if target.starts_with("#/") { 0 } else { reference_count + at.document.definition_count() };
    by_name + target.len() / 16
}

/// Several arms besides null.
fn join<'s>(arms: Vec<(At<'s>, Facts<'s>)>, facts: &mut Facts<'s>) {
    if arms.iter().all(|(_, arm)| facts.knows(arm)) {
        return;
    }
    let types = arms.iter().fold(0, |all, (_, arm)| all | arm.kinds());
    facts.types = facts.kinds() & types;
    let simple = [kinds::BOOLEAN, kinds::STRING, kinds::INTEGER, kinds::FRACTION, kinds::NUMBER];
    let is_open = arms.iter().any(|(_, arm)| !arm.choices.is_empty());
    if is_open || !facts.arms.is_empty() {
        facts.is_anything = true;
        return;
    }
    if !simple.contains(&(facts.types & !kinds::NULL)) {
        if arms.iter().all(|(_, arm)| arm.has_one_type()) {
            facts.arms = arms;
        } else {
            facts.is_anything = true;
        }
        return;
    }
    let mut formats = arms.iter().map(|(_, arm)| arm.format);
    let first = formats.next().flatten();
    if formats.all(|format| format == first) {
        facts.format = facts.format.or(first);
    } else {
        facts.format = None;
    }
}

/// What needs no look elsewhere.
fn gather_parts<'s>(map: &'s Map<String, Value>, at: At<'s>, facts: &mut Facts<'s>) {
    let object = |key: &str| map.get(key).and_then(Value::as_object).filter(|map| !map.is_empty());
    let array = |key: &str| map.get(key).and_then(Value::as_array);
    let text = |key: &str| map.get(key).and_then(Value::as_str);
    for (name, schema) in object("properties").into_iter().flatten() {
        facts.property(name, at.inside(schema));
    }
    facts.required.extend(array("required").into_iter().flatten().filter_map(Value::as_str));
    facts.has_patterns |= object("patternProperties").is_some();
    // `true` and `{}` say no more than nothing; `false` only forbids.
    if let Some(additional) =
        map.get("additionalProperties").filter(|_| object("additionalProperties").is_some())
    {
        facts.additional.push(at.inside(additional));
    }
    facts.is_closed |= ["additionalProperties", "unevaluatedProperties"]
        .iter()
        .any(|keyword| map.get(*keyword) == Some(&Value::Bool(false)));
    match map.get("items") {
        Some(Value::Array(_)) => facts.is_tuple = true,
        Some(items) => facts.items.push(at.inside(items)),
        None => {}
    }
    facts.is_tuple |= array("prefixItems").is_some();
    facts.format = text("format").or(facts.format);
    facts.title = text("title").or(facts.title);
    facts.connect_type = text("connect.type").or(facts.connect_type);
    facts.default = map.get("default").or(facts.default);
}
