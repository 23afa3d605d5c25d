//! What becomes of a writer's schema in the reader: changes that Avro allows, and some that it does not.

use std::sync::Arc;

use super::generate::{Extra, Generator, RENAMED_FIELD, RENAMED_TYPE, name_of, plain};
use super::rules::{is_readable, known};
use super::values::has_json;
use crate::codec::avro::node::{Enum, Field, Kind, Logical, Node, Record};

impl Generator {
    /// A reader's schema for a writer's: every step is one that Avro allows.
    pub fn reader_of(&mut self, writer: &Node) -> Node {
        self.evolved.clear();
        // A new field with a type of the writer's would need the reader's version of it.
        self.profile.repeats = false;
        let mut reader = self.evolve_plain(writer);
        if let Kind::Record(record) = &mut reader.kind
            && record.fields.is_empty()
        {
            let field = self.new_field();
            record.fields.push(field);
        }
        reader
    }

    fn evolve(&mut self, node: &Node) -> Node {
        match &node.kind {
            Kind::Null => {
                let other = self.new_node();
                let is_branch = !matches!(other.kind, Kind::Null | Kind::Union(_));
                if is_branch { plain(Kind::Union(vec![plain(Kind::Null), other])) } else { node.clone() }
            }
            Kind::Union(arms) => self.evolve_union(arms),
            _ => {
                let evolved = self.evolve_plain(node);
                if self.one_in(5) { self.nullable(evolved) } else { evolved }
            }
        }
    }

    fn nullable(&mut self, node: Node) -> Node {
        let mut arms = vec![plain(Kind::Null), node];
        if self.random.bool() {
            arms.swap(0, 1);
        }
        if self.profile.oddities && self.one_in(8) {
            arms.retain(|arm| arm.kind != Kind::Null);
        }
        plain(Kind::Union(arms))
    }

    /// The reader keeps one branch besides null: it may have no more.
    fn evolve_union(&mut self, arms: &[Node]) -> Node {
        let others: Vec<&Node> = arms.iter().filter(|arm| arm.kind != Kind::Null).collect();
        let Some(arm) = self.random.choice(others) else {
            return plain(Kind::Union(arms.to_vec()));
        };
        let has_types = matches!(arm.kind, Kind::Array(_) | Kind::Map(_) | Kind::Record(_));
        if !self.one_in(6) || (has_types && !self.profile.unwraps) {
            let evolved = self.evolve_plain(arm);
            return self.nullable(evolved);
        }
        if self.profile.unwraps { self.evolve_plain(arm) } else { arm.clone() }
    }

    fn evolve_plain(&mut self, node: &Node) -> Node {
        if let Some(done) = name_of(node).and_then(|name| self.evolved.get(name)) {
            return done.clone();
        }
        let evolved = match (&node.kind, node.logical) {
            (Kind::Fixed { name, size }, _) => {
                let kind = Kind::Fixed { name: self.maybe_renamed(name), size: *size };
                Node { kind, logical: node.logical }
            }
            (_, Some(_)) => node.clone(),
            (Kind::Int, None) => self.one_of(
                &[Kind::Int, Kind::Int, Kind::Long, Kind::Float, Kind::Double],
                Kind::Int,
                &[Logical::Date, Logical::TimeMillis],
            ),
            (Kind::Long, None) => self.one_of(
                &[Kind::Long, Kind::Long, Kind::Float, Kind::Double],
                Kind::Long,
                &[Logical::TimeMicros, Logical::TimestampMicros, Logical::LocalTimestampNanos],
            ),
            (Kind::Float, None) => self.one_of(&[Kind::Float, Kind::Double], Kind::Float, &[]),
            (Kind::Bytes, None) => self.one_of(&[Kind::Bytes, Kind::Bytes, Kind::String], Kind::Bytes, &[]),
            (Kind::String, None) => self.one_of(&[Kind::String, Kind::Bytes], Kind::String, &[]),
            (Kind::Array(item), None) => {
                let item = self.evolve(item);
                // Items without bytes are refused.
                let item = if item.size_min() > 0 { item } else { plain(Kind::Union(vec![item])) };
                plain(Kind::Array(Box::new(item)))
            }
            (Kind::Map(value), None) => plain(Kind::Map(Box::new(self.evolve(value)))),
            (Kind::Enum(symbols), None) => plain(Kind::Enum(self.evolve_enum(symbols))),
            (Kind::Record(record), None) => plain(Kind::Record(self.evolve_record(record))),
            (_, None) => node.clone(),
        };
        if let Some(name) = name_of(node) {
            self.evolved.insert(name.to_owned(), evolved.clone());
        }
        evolved
    }

    /// One of `kinds`, or sometimes `kind` with a meaning that the writer does not give it.
    fn one_of(&mut self, kinds: &[Kind], kind: Kind, meanings: &[Logical]) -> Node {
        if self.one_in(6)
            && let Some(meaning) = self.random.choice(meanings)
        {
            return Node { kind, logical: Some(*meaning) };
        }
        plain(self.random.choice(kinds).cloned().unwrap_or(kind))
    }

    fn evolve_enum(&mut self, writer: &Enum) -> Enum {
        let mut symbols = writer.symbols.clone();
        while symbols.len() > 1 && self.one_in(3) {
            symbols.pop();
        }
        if self.one_in(3) {
            symbols.push(Arc::from(self.fresh("New")));
        }
        self.random.shuffle(&mut symbols);
        let default = if self.random.bool() { symbols.first().cloned() } else { None };
        Enum { name: self.maybe_renamed(&writer.name), symbols, default }
    }

    fn evolve_record(&mut self, writer: &Record) -> Record {
        let mut fields: Vec<Field> = Vec::new();
        let mut dropped = None;
        for field in &writer.fields {
            if self.one_in(6) {
                dropped = Some(field.name.clone());
                continue;
            }
            let node = self.evolve(&field.node);
            let mut evolved = Field {
                name: field.name.clone(),
                aliases: Vec::new(),
                default: self.default_or_none(&node),
                node,
            };
            if self.one_in(6) {
                evolved.name.push_str(RENAMED_FIELD);
                evolved.aliases = vec!["elsewhere".to_owned(), field.name.clone()];
            }
            fields.push(evolved);
        }
        // An alias that is the name of another of the writer's fields: the name wins, nothing is read twice.
        if let (Some(gone), Some(field)) = (dropped, fields.first_mut())
            && field.aliases.is_empty()
        {
            field.aliases.push(gone);
        }
        let new_min = usize::from(fields.is_empty() && !self.profile.oddities);
        for _ in 0..self.random.usize(new_min..3) {
            fields.push(self.new_field());
        }
        self.random.shuffle(&mut fields);
        Record { name: self.maybe_renamed(&writer.name), fields }
    }

    fn new_field(&mut self) -> Field {
        let node = self.new_node();
        Field { name: self.fresh("a"), aliases: Vec::new(), default: Some(self.default(&node)), node }
    }

    /// A type that the writer does not have, with a default. It is the reader's: no union that it refuses.
    fn new_node(&mut self) -> Node {
        let extra = std::mem::replace(&mut self.profile.extra, Extra::Nothing);
        let node = loop {
            let node = self.node(1);
            if has_json(&node) {
                break node;
            }
        };
        self.profile.extra = extra;
        node
    }

    fn maybe_renamed(&mut self, name: &str) -> String {
        if self.one_in(6) { format!("{name}{RENAMED_TYPE}") } else { name.to_owned() }
    }

    /// A writer's and a reader's schema of which no value can be read, if it reaches everything
    /// ([`Profile::reaching`](super::generate::Profile)); and why.
    pub fn unreadable(&mut self) -> (Node, Node, &'static str) {
        let (mut writer, mut reader, why) = self.unreadable_core();
        for _ in 0..self.random.usize(..4) {
            (writer, reader) = self.layer(writer, reader);
        }
        let top = |node| {
            let field = Field { name: "f".to_owned(), aliases: Vec::new(), default: None, node };
            plain(Kind::Record(Record { name: "t.Top".to_owned(), fields: vec![field] }))
        };
        (top(writer), top(reader), why)
    }

    fn unreadable_core(&mut self) -> (Node, Node, &'static str) {
        match self.random.u32(..6) {
            0 => {
                let writer = self.record(0, 1);
                let mut reader = writer.clone();
                if let Kind::Record(record) = &mut reader.kind {
                    let node = self.node(1);
                    let field = Field { name: self.fresh("a"), aliases: Vec::new(), default: None, node };
                    record.fields.push(field);
                }
                (writer, reader, "a field that the writer lacks, without a default")
            }
            1 => {
                let fixed = |size| plain(Kind::Fixed { name: "t.Fixed".to_owned(), size });
                (fixed(3), fixed(4), "a fixed of another size")
            }
            2 => {
                let symbols = |symbol: &str| {
                    let name = "t.Enum".to_owned();
                    plain(Kind::Enum(Enum { name, symbols: vec![Arc::from(symbol)], default: None }))
                };
                (symbols("OLD"), symbols("NEW"), "a symbol that the reader lacks, without a default")
            }
            _ => loop {
                let (writer, reader) = (self.node(1), self.node(1));
                let is_union = [&writer, &reader].iter().any(|node| matches!(node.kind, Kind::Union(_)));
                if !is_union && !is_readable(&writer.kind, &reader.kind) && known(&writer, &reader).is_none()
                {
                    return (writer, reader, "types that have nothing in common");
                }
            },
        }
    }

    /// Both types one level deeper.
    fn layer(&mut self, writer: Node, reader: Node) -> (Node, Node) {
        match self.random.u32(..4) {
            0 => (plain(Kind::Array(Box::new(writer))), plain(Kind::Array(Box::new(reader)))),
            1 => (plain(Kind::Map(Box::new(writer))), plain(Kind::Map(Box::new(reader)))),
            2 if !matches!(writer.kind, Kind::Union(_)) => (self.nullable(writer), self.nullable(reader)),
            _ => {
                let name = self.fresh("t.L");
                let sibling = self.node(0);
                let both = [writer, reader].map(|node| {
                    let field = |name: &str, node| Field {
                        name: name.to_owned(),
                        aliases: Vec::new(),
                        default: None,
                        node,
                    };
                    let fields = vec![field("s", sibling.clone()), field("f", node)];
                    plain(Kind::Record(Record { name: name.clone(), fields }))
                });
                both.into()
            }
        }
    }
}
