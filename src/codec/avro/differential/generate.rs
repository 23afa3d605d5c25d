//! Random schemas: everything from one seed.

use std::collections::HashMap;
use std::mem::discriminant;
use std::sync::Arc;

use super::values::size_for;
use crate::codec::avro::node::{Enum, Field, Kind, Logical, Node, Record};

/// Ends the name of a reader's field that the writer has without it; its alias is the writer's name.
pub const RENAMED_FIELD: &str = "_renamed";

/// Ends the name of a reader's type that the writer has without it; its alias is the writer's name.
pub const RENAMED_TYPE: &str = "_now";

/// Every named type is of this namespace.
pub const NAMESPACE: &str = "t";

/// What a union may have besides null and one other type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    Nothing,
    Boolean,
    Anything,
}

/// What generated schemas and values are like.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    /// The type null by itself, records without fields, unions of one branch, JSON that leaves fields to
    /// their defaults.
    pub oddities: bool,
    pub extra: Extra,
    /// A named type may occur again, by its name.
    pub repeats: bool,
    /// A writer's union may be read as one of its branches without null, whatever that branch becomes;
    /// else only as one that has no types inside, and unchanged.
    pub unwraps: bool,
    /// Values in JSON are of any branch of a union, not of the first.
    pub any_branch: bool,
    /// Values have something of every type: no empty array or map, no null that could be something else.
    pub reaching: bool,
    /// Decimals on bytes take few bytes, or more than they need; else what their digits may need.
    pub odd_decimals: bool,
}

impl Profile {
    /// What both the codec and apache-avro can read as it was written.
    pub const PLAIN: Self = Self {
        oddities: true,
        extra: Extra::Nothing,
        repeats: true,
        unwraps: true,
        any_branch: false,
        reaching: false,
        odd_decimals: true,
    };
}

pub struct Generator {
    pub random: fastrand::Rng,
    pub profile: Profile,
    name_count: usize,
    /// Named types that may occur again.
    named: Vec<Node>,
    /// The reader's version of each of the writer's named types: one for all places.
    pub(super) evolved: HashMap<String, Node>,
}

impl Generator {
    pub fn new(seed: u64, profile: Profile) -> Self {
        // Neighbouring seeds shall have nothing in common.
        let random = fastrand::Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self { random, profile, name_count: 0, named: Vec::new(), evolved: HashMap::new() }
    }

    pub fn one_in(&mut self, count: u32) -> bool {
        self.random.u32(..count) == 0
    }

    pub fn fresh(&mut self, prefix: &str) -> String {
        self.name_count += 1;
        format!("{prefix}{}", self.name_count)
    }

    fn type_name(&mut self) -> String {
        let name = self.fresh("N");
        format!("{NAMESPACE}.{name}")
    }

    /// A record, nested up to `depth` levels below its fields.
    pub fn top(&mut self, depth: usize) -> Node {
        self.record(depth, 1)
    }

    pub fn record(&mut self, depth: usize, fields_min: usize) -> Node {
        let name = self.type_name();
        let count = self.random.usize(fields_min..5);
        let mut fields = Vec::with_capacity(count);
        for index in 0..count {
            let node = self.node(depth);
            let default = self.default_or_none(&node);
            fields.push(Field { name: format!("f{index}"), aliases: Vec::new(), default, node });
        }
        plain(Kind::Record(Record { name, fields }))
    }

    pub fn node(&mut self, depth: usize) -> Node {
        if depth == 0 {
            return self.leaf();
        }
        if self.profile.repeats
            && self.one_in(6)
            && let Some(node) = self.random.choice(&self.named)
        {
            return node.clone();
        }
        let node = match self.random.u32(..8) {
            0..=2 => self.leaf(),
            3 => loop {
                // Items without bytes are refused.
                let item = self.node(depth - 1);
                if item.size_min() > 0 {
                    break plain(Kind::Array(Box::new(item)));
                }
            },
            4 => plain(Kind::Map(Box::new(self.node(depth - 1)))),
            5 | 6 => self.union(depth - 1),
            _ => {
                let fields_min = if self.profile.oddities { 0 } else { 1 };
                self.record(depth - 1, fields_min)
            }
        };
        // Deeper records would make schemas of schemas of schemas.
        if name_of(&node).is_some() && depth == 1 {
            self.named.push(node.clone());
        }
        node
    }

    fn union(&mut self, depth: usize) -> Node {
        let mut arms = vec![plain(Kind::Null), self.branch(depth)];
        if self.profile.oddities && self.one_in(8) {
            arms.remove(self.random.usize(..2));
        }
        let extra_max = if self.profile.extra == Extra::Nothing { 0 } else { 2 };
        for _ in 0..self.random.usize(..=extra_max) {
            let is_boolean = self.profile.extra == Extra::Boolean;
            let arm = if is_boolean { plain(Kind::Boolean) } else { self.branch(depth) };
            if !arms.iter().any(|known| is_same_branch(known, &arm)) {
                arms.push(arm);
            }
        }
        self.random.shuffle(&mut arms);
        plain(Kind::Union(arms))
    }

    fn branch(&mut self, depth: usize) -> Node {
        loop {
            let node = self.node(depth);
            if !matches!(node.kind, Kind::Null | Kind::Union(_)) {
                return node;
            }
        }
    }

    fn leaf(&mut self) -> Node {
        loop {
            let leaves = self.leaves();
            let leaf = self.random.choice(leaves);
            if let Some(leaf) = leaf.filter(|leaf| self.profile.oddities || leaf.kind != Kind::Null) {
                return leaf;
            }
        }
    }

    /// One of every type without types in it.
    pub fn leaves(&mut self) -> Vec<Node> {
        use Logical as L;
        let numbers = [
            (Kind::Int, L::Date),
            (Kind::Int, L::TimeMillis),
            (Kind::Long, L::TimeMicros),
            (Kind::Long, L::TimestampMillis),
            (Kind::Long, L::TimestampMicros),
            (Kind::Long, L::TimestampNanos),
            (Kind::Long, L::LocalTimestampMillis),
            (Kind::Long, L::LocalTimestampMicros),
            (Kind::Long, L::LocalTimestampNanos),
            (Kind::String, L::Uuid),
            (Kind::Bytes, L::Uuid),
            (self.fixed(16), L::Uuid),
            (self.fixed(12), L::Duration),
        ];
        let mut leaves: Vec<Node> =
            numbers.map(|(kind, logical)| Node { kind, logical: Some(logical) }).into();
        for digits in [10u8..=38, 39..=76] {
            let precision = self.random.u8(digits);
            let scale = self.random.i8(0..10);
            let logical = Some(L::Decimal { precision, scale });
            leaves.push(Node { kind: Kind::Bytes, logical });
            let size = self.random.usize(size_for(precision)..=32);
            leaves.push(Node { kind: self.fixed(size), logical });
        }
        let kinds = [
            Kind::Null,
            Kind::Boolean,
            Kind::Int,
            Kind::Long,
            Kind::Float,
            Kind::Double,
            Kind::Bytes,
            Kind::String,
            self.fixed(1),
            self.fixed(12),
            self.fixed(16),
            self.symbols(),
        ];
        leaves.extend(kinds.map(plain));
        leaves
    }

    fn fixed(&mut self, size: usize) -> Kind {
        Kind::Fixed { name: self.type_name(), size }
    }

    fn symbols(&mut self) -> Kind {
        let count = self.random.usize(1..5);
        let symbols: Vec<Arc<str>> = (0..count).map(|index| format!("S{index}").into()).collect();
        let default = if self.one_in(3) { symbols.first().cloned() } else { None };
        Kind::Enum(Enum { name: self.type_name(), symbols, default })
    }
}

pub fn plain(kind: Kind) -> Node {
    Node { kind, logical: None }
}

/// The name of a record, enum or fixed.
pub fn name_of(node: &Node) -> Option<&str> {
    match &node.kind {
        Kind::Fixed { name, .. } => Some(name),
        Kind::Enum(symbols) => Some(&symbols.name),
        Kind::Record(record) => Some(&record.name),
        _ => None,
    }
}

/// A union has each type only once: named ones by name, the others by what is on the wire.
fn is_same_branch(one: &Node, other: &Node) -> bool {
    match (name_of(one), name_of(other)) {
        (None, None) => discriminant(&one.kind) == discriminant(&other.kind),
        (one, other) => one == other,
    }
}
