//! Where a `$ref` leads: into its document, or to a reference that the registry has with the schema. Never elsewhere.

use serde_json::{Map, Value};

use super::{Compiler, SchemaError};

/// A text with a name of its own: the schema, one of its references, or a part that has an `$id`.
#[derive(Debug, Clone, Copy)]
pub struct Document<'s> {
    root: &'s Value,
    /// Its `$id`, else the name it is referenced by.
    base: &'s str,
}

/// A schema, and the document it stands in.
#[derive(Debug, Clone, Copy)]
pub struct At<'s> {
    pub schema: &'s Value,
    pub document: Document<'s>,
}

impl<'s> At<'s> {
    /// A part of it.
    pub fn inside(self, schema: &'s Value) -> Self {
        Self { schema, document: self.document }
    }
}

impl<'s> Document<'s> {
    pub fn of(root: &'s Value, name: &'s str) -> Self {
        Self { root, base: id(root).unwrap_or(name) }
    }

    pub fn whole(self) -> At<'s> {
        At { schema: self.root, document: self }
    }

    /// Its parts that are there to be referenced.
    fn definitions(self) -> impl Iterator<Item = &'s Value> {
        self.definition_maps().flat_map(|map| map.values())
    }

    pub fn definition_count(self) -> usize {
        self.definition_maps().map(Map::len).sum()
    }

    fn definition_maps(self) -> impl Iterator<Item = &'s Map<String, Value>> {
        let places = ["$defs", "definitions"].into_iter();
        places.filter_map(move |place| self.root.get(place).and_then(Value::as_object))
    }

    /// The schema behind `#`.
    fn at(self, fragment: &str) -> Option<&'s Value> {
        if fragment.is_empty() {
            return Some(self.root);
        }
        let fragment = unescape(fragment)?;
        if fragment.starts_with('/') {
            return self.root.pointer(&fragment);
        }
        let is_it = |schema: &Value| {
            let anchor = schema.get("$anchor").and_then(Value::as_str);
            let of_id = any_id(schema).and_then(|id| id.strip_prefix('#'));
            [anchor, of_id].contains(&Some(fragment.as_str()))
        };
        self.definitions().find(|schema| is_it(schema))
    }
}

/// `$id`, which draft 4 calls `id`.
fn any_id(schema: &Value) -> Option<&str> {
    schema.get("$id").or_else(|| schema.get("id")).and_then(Value::as_str)
}

/// The name a schema gives itself; one that begins with `#` is an anchor.
pub fn id(schema: &Value) -> Option<&str> {
    any_id(schema).filter(|id| !id.is_empty() && !id.starts_with('#'))
}

impl<'s> Compiler<'s> {
    /// Where a `$ref` in `document` leads.
    pub(super) fn resolve(&self, target: &str, document: Document<'s>) -> Result<At<'s>, SchemaError> {
        let (name, fragment) = target.split_once('#').unwrap_or((target, ""));
        let home = if name.is_empty() || is_same(document.base, document.base, name) {
            Some(document)
        } else {
            self.document(name, document)
        };
        let Some(home) = home else {
            return Err(self.unsupported(format!(
                "`$ref` to `{target}` is no reference that the registry has with the schema, and nothing else is fetched"
            )));
        };
        let schema = home.at(fragment);
        let schema = schema.ok_or_else(|| self.unsupported(format!("`$ref` to `{target}` leads nowhere")))?;
        Ok(At { schema, document: home })
    }

    fn document(&self, name: &str, from: Document<'s>) -> Option<Document<'s>> {
        let is_it = |other: &str| is_same(from.base, other, name);
        let references = self.references;
        let found = references.iter().find(|(own, root)| is_it(own) || id(root).is_some_and(is_it));
        if let Some((own, root)) = found {
            return Some(Document::of(root, own));
        }
        let embedded = from.definitions().find(|schema| id(schema).is_some_and(is_it));
        embedded.map(|schema| Document::of(schema, ""))
    }
}

/// Whether two names mean one document for a schema that is called `base`: names may be relative to it.
pub fn is_same(base: &str, one: &str, other: &str) -> bool {
    let full = |name: &str| join(base, name.trim_end_matches('#'));
    one == other || full(one) == full(other)
}

/// A URI relative to another one. Dots in it are not followed: such a `$ref` is refused, or named like that.
fn join(base: &str, name: &str) -> String {
    let authority = base.find("://").map_or(0, |at| at + 3);
    if name.contains("://") {
        return name.to_owned();
    }
    let kept = if name.starts_with('/') {
        base[authority..].find('/').map_or(base, |at| &base[..authority + at])
    } else {
        base[authority..].rfind('/').map_or("", |at| &base[..=authority + at])
    };
    format!("{kept}{}", name.strip_prefix("./").unwrap_or(name))
}

/// `%24defs` as `$defs`; `None` if that is no text.
fn unescape(fragment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}
