//! Values of several types: a struct with a member for each, of which one is not null.
//!
//! Members of simple types are called `boolean`, `integer` or `number`, `string`. An object or an array is called by
//! its title, else by where its `$ref` leads, else `object` or `array`.

use std::collections::HashSet;

use serde_json::Value;

use super::facts::{Facts, kinds};
use super::refs::At;
use super::{Compiler, SchemaError, integer, json, number, string};
use crate::codec::avro::node::{Arm, Kind, Node, When};
use crate::codec::limits::{TYPE_BYTES, cut};

/// Types without values inside: each is one member, whole numbers and others together.
const SIMPLE: [u8; 3] = [kinds::BOOLEAN, kinds::NUMBER, kinds::STRING];

impl<'s> Compiler<'s> {
    /// A `type` of several names, null apart.
    pub(super) fn types(&mut self, types: u8, facts: &Facts<'s>) -> Result<Node, SchemaError> {
        let groups = SIMPLE.into_iter().filter(|group| types & group != 0);
        let mut arms: Vec<Arm> = groups.map(|group| simple(types & group, facts)).collect();
        if types & kinds::ARRAY != 0 {
            arms.push(arm("array", self.array(facts)?));
        }
        if types & kinds::OBJECT != 0 {
            arms.push(arm("object", self.object(facts)?));
        }
        self.one_of(arms)
    }

    /// `oneOf` or `anyOf` of several types.
    pub(super) fn choice(&mut self, facts: &Facts<'s>) -> Result<Node, SchemaError> {
        // What stands beside the choice would hold for every arm.
        if facts.has_parts() {
            return Ok(json());
        }
        let (path, open, depth) = (self.path.len(), self.open.len(), self.depth);
        match self.arms(facts) {
            // Text has no end that would have to be found.
            Err(SchemaError::Recursive { .. }) => {
                self.path.truncate(path);
                self.open.truncate(open);
                self.depth = depth;
                Ok(json())
            }
            arms => self.one_of(arms?),
        }
    }

    fn one_of(&mut self, mut arms: Vec<Arm>) -> Result<Node, SchemaError> {
        self.count_fields(arms.len())?;
        Ok(match arms.pop() {
            Some(only) if arms.is_empty() => only.node,
            last => {
                arms.extend(last);
                Node::plain(Kind::Choice(arms))
            }
        })
    }

    /// In the order of the schema; all arms of a simple type are one member, where the first of them stands.
    fn arms(&mut self, facts: &Facts<'s>) -> Result<Vec<Arm>, SchemaError> {
        let nothing = Facts::default();
        let all = facts.arms.iter().fold(0, |all, (_, arm)| all | arm.kinds());
        let mut done = 0;
        let mut arms: Vec<Arm> = Vec::new();
        for (at, said) in &facts.arms {
            let types = said.kinds() & !kinds::NULL;
            if types & !kinds::SIMPLE == 0 {
                for group in SIMPLE.into_iter().filter(|group| types & group != 0) {
                    if done & group == 0 {
                        done |= group;
                        let mut member = simple(all & group, alike(&facts.arms, group).unwrap_or(&nothing));
                        member.name = self.free_name(&member.name, &arms);
                        arms.push(member);
                    }
                }
                continue;
            }
            let name = self.free_name(name(*at, said), &arms);
            let (node, _) = self.nested(&name, &[*at])?;
            self.keep(name.len() + bytes_of_when(said))?;
            arms.push(Arm { name, node, when: when(said) });
        }
        Ok(arms)
    }

    /// Two members have two names.
    fn free_name(&mut self, name: &str, arms: &[Arm]) -> String {
        self.looks += 2 * arms.len();
        let name = cut(name.to_owned());
        let taken: HashSet<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
        if !taken.contains(name.as_str()) {
            return name;
        }
        let mut numbered = (2..).map(|number: u32| format!("{name}_{number}"));
        numbered.find(|name| !taken.contains(name.as_str())).unwrap_or_default()
    }
}

fn arm(name: &str, node: Node) -> Arm {
    Arm { name: name.to_owned(), node, when: When::default() }
}

fn simple(types: u8, facts: &Facts<'_>) -> Arm {
    match types {
        kinds::BOOLEAN => arm("boolean", Node::plain(Kind::Boolean)),
        kinds::STRING => arm("string", string(facts)),
        kinds::INTEGER => arm("integer", integer(facts)),
        _ => arm("number", number(facts)),
    }
}

/// What is said of a simple type, if all arms that have it say the same.
fn alike<'f, 's>(arms: &'f [(At<'s>, Facts<'s>)], group: u8) -> Option<&'f Facts<'s>> {
    let mut facts = arms.iter().map(|(_, facts)| facts).filter(|facts| facts.kinds() & group != 0);
    let first = facts.next()?;
    // A title says something of numbers only.
    let title = |facts: &Facts<'s>| facts.title.filter(|_| group == kinds::NUMBER);
    let is_same = |other: &Facts<'s>| {
        other.format == first.format
            && other.connect_type == first.connect_type
            && title(other) == title(first)
    };
    facts.all(is_same).then_some(first)
}

fn name<'s>(at: At<'s>, facts: &Facts<'s>) -> &'s str {
    let target = at.schema.get("$ref").and_then(Value::as_str);
    let last = target.and_then(|target| target.rsplit(['/', '#']).find(|part| !part.is_empty()));
    let last = last.map(|part| part.strip_suffix(".json").unwrap_or(part));
    let kind = if facts.kinds() & kinds::ARRAY != 0 { "array" } else { "object" };
    facts.title.or(last).unwrap_or(kind)
}

/// The values that a property may have.
fn values<'s>(schemas: &[At<'s>]) -> Option<&'s [Value]> {
    schemas.iter().find_map(|at| match (at.schema.get("const"), at.schema.get("enum")) {
        (Some(value), _) => Some(std::slice::from_ref(value)),
        (None, Some(Value::Array(values))) => Some(values.as_slice()),
        _ => None,
    })
}

/// What [`when`] takes of the schema.
fn bytes_of_when(facts: &Facts<'_>) -> usize {
    let names = facts.required.iter().copied().chain(facts.properties.iter().map(|(name, _)| *name));
    let all = facts.properties.iter().filter_map(|(_, schemas)| values(schemas)).flatten();
    names.map(|name| TYPE_BYTES + name.len()).sum::<usize>()
        + all.map(|value| TYPE_BYTES + value.to_string().len()).sum::<usize>()
}

/// What tells objects of an arm from those of others, as far as it stands at the top of the arm.
fn when(facts: &Facts<'_>) -> When {
    let names = || facts.properties.iter().map(|(name, _)| (*name).to_owned());
    let values = facts
        .properties
        .iter()
        .filter_map(|(name, schemas)| values(schemas).map(|values| ((*name).to_owned(), values.to_vec())));
    When {
        required: facts.required.iter().map(|name| (*name).to_owned()).collect(),
        values: values.collect(),
        only: (facts.is_closed && !facts.has_patterns).then(|| names().collect()),
    }
}
