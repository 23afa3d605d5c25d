//! Compiles a writer's and a reader's schema into a program that reads the one into columns of the other.
//!
//! All questions of Avro's schema resolution (promotions, field order, aliases, defaults, unions, enum
//! symbols) are answered once per schema id; a record costs only the steps.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::arrow_type;
use super::encode;
use super::node::{Enum, Field, Kind, Logical, Node, Record, SchemaError};
use crate::codec::limits::PAIRS_MAX;

/// Reads one record of a writer's schema into the columns of the reader's schema.
#[derive(Debug)]
pub struct Program {
    pub record: RecordOp,
    /// Records that contain themselves, for [`ValueOp::Json`].
    pub texts: Vec<TextOp>,
    /// The same, if the reader does not want them, for [`SkipOp::Again`].
    pub skips: Vec<SkipOp>,
}

/// How a record becomes JSON text.
#[derive(Debug)]
pub struct TextOp {
    pub op: RecordOp,
    /// What it is read as.
    pub record: Record,
}

/// How one value is read into one column.
#[derive(Debug)]
pub enum Op {
    /// Nothing on the wire; a null in the column.
    Null,
    Value(ValueOp),
    /// A value of one member of a struct: the reader's union has several branches besides null.
    Member(usize, ValueOp),
    /// A branch number on the wire.
    Union(Vec<Op>),
    /// A branch the reader has no place for: the record is bad.
    Refused(String),
}

#[derive(Debug)]
pub enum ValueOp {
    /// The reader's type is null.
    Nothing,
    Boolean,
    IntToI32,
    /// A zigzag number, multiplied to the reader's time unit.
    LongToI64 {
        factor: i64,
        is_int: bool,
    },
    ZigzagToF32,
    ZigzagToF64,
    FloatToF32,
    FloatToF64,
    DoubleToF64,
    Text,
    Bytes,
    Fixed(usize),
    FixedToBytes(usize),
    Decimal {
        fixed: Option<usize>,
        precision: u8,
    },
    /// A number with its scale, as text.
    BigDecimal,
    /// 16 bytes, as text.
    Uuid {
        is_fixed: bool,
    },
    Duration,
    /// RFC 3339.
    TextToMicros,
    /// The reader's symbol for each of the writer's.
    Enum(Vec<Option<Arc<str>>>),
    List(Box<Op>),
    Map(Box<Op>),
    Record(RecordOp),
    /// JSON text, by one of [`Program::texts`].
    Json(usize),
}

#[derive(Debug, Default)]
pub struct RecordOp {
    pub steps: Vec<Step>,
    /// Columns the writer does not have: the reader's default, as Avro bytes.
    pub defaults: Vec<DefaultOp>,
}

#[derive(Debug)]
pub enum Step {
    Read { name: String, column: usize, op: Op },
    Skip(SkipOp),
}

#[derive(Debug)]
pub struct DefaultOp {
    pub column: usize,
    pub bytes: Vec<u8>,
    pub op: Op,
}

/// A value that the reader does not want.
#[derive(Debug)]
pub enum SkipOp {
    Nothing,
    Zigzag,
    Boolean,
    Bytes(usize),
    Sized,
    Enum(usize),
    Array {
        item: Box<SkipOp>,
        size_min: usize,
    },
    Map {
        value: Box<SkipOp>,
        size_min: usize,
    },
    Record(Vec<SkipOp>),
    Union(Vec<SkipOp>),
    /// One of [`Program::skips`].
    Again(usize),
}

/// Compiles `writer` for `reader`.
///
/// # Errors
/// [`SchemaError::Incompatible`] and [`SchemaError::MissingField`] name the field.
pub fn compile(writer: &Node, reader: &Node) -> Result<Program, SchemaError> {
    match (&writer.kind, &reader.kind) {
        (Kind::Record(from), Kind::Record(into)) => {
            let mut compiler = Compiler {
                path: Vec::new(),
                pairs_left: PAIRS_MAX,
                writers: records(writer),
                readers: records(reader),
                is_default: false,
                texts: Vec::new(),
                text_places: HashMap::new(),
                skips: Vec::new(),
                skip_places: HashMap::new(),
            };
            let record = compiler.record(from, into)?;
            Ok(Program { record, texts: compiler.texts, skips: compiler.skips })
        }
        (Kind::Record(_), _) => Err(SchemaError::NotARecord("the reader's type")),
        _ => Err(SchemaError::NotARecord("the writer's type")),
    }
}

/// The records of a schema by their names, for where they begin again.
fn records(node: &Node) -> HashMap<&str, &Record> {
    let mut found = HashMap::new();
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        match &node.kind {
            Kind::Record(_) if node.is_again() => {}
            Kind::Record(record) => {
                found.insert(record.name.as_str(), record);
                open.extend(record.fields.iter().map(|field| &field.node));
            }
            Kind::Array(inner) | Kind::Map(inner) => open.push(inner),
            Kind::Union(arms) => open.extend(arms),
            _ => {}
        }
    }
    found
}

struct Compiler<'s> {
    path: Vec<String>,
    pairs_left: usize,
    writers: HashMap<&'s str, &'s Record>,
    readers: HashMap<&'s str, &'s Record>,
    /// The bytes are those of a default: the reader is the writer, too.
    is_default: bool,
    texts: Vec<TextOp>,
    /// By the names of the writer's and the reader's record, and whether it is of a default.
    text_places: HashMap<(&'s str, &'s str, bool), usize>,
    skips: Vec<SkipOp>,
    skip_places: HashMap<&'s str, usize>,
}

impl<'s> Compiler<'s> {
    fn record(&mut self, writer: &'s Record, reader: &'s Record) -> Result<RecordOp, SchemaError> {
        let mut op = RecordOp::default();
        let mut is_read = vec![false; reader.fields.len()];
        let targets = Targets::new(writer, reader);
        for from in &writer.fields {
            self.path.push(from.name.clone());
            match targets.of(&from.name, &is_read) {
                Some(column) => {
                    is_read[column] = true;
                    op.steps.push(Step::Read {
                        name: from.name.clone(),
                        column,
                        op: self.value(&from.node, &reader.fields[column].node)?,
                    });
                }
                None => {
                    let skip = self.skip(&from.node)?;
                    op.steps.push(Step::Skip(skip));
                }
            }
            self.path.pop();
        }
        for (column, into) in reader.fields.iter().enumerate() {
            if !is_read[column] {
                self.path.push(into.name.clone());
                op.defaults.push(self.default(column, into)?);
                self.path.pop();
            }
        }
        Ok(op)
    }

    fn default(&mut self, column: usize, field: &'s Field) -> Result<DefaultOp, SchemaError> {
        let path = || self.path.join(".");
        let Some(json) = &field.default else {
            return Err(SchemaError::MissingField { path: path() });
        };
        // The default of a union belongs to the branch it fits; it is encoded with that branch's number.
        let bytes = encode::value(&field.node, json).map_err(|error| SchemaError::Unsupported {
            path: path(),
            what: format!("its default does not fit its type: {error}"),
        })?;
        let around = std::mem::replace(&mut self.is_default, true);
        let op = self.value(&field.node, &field.node);
        self.is_default = around;
        Ok(DefaultOp { column, bytes, op: op? })
    }

    fn value(&mut self, writer: &'s Node, reader: &'s Node) -> Result<Op, SchemaError> {
        if let Kind::Union(arms) = &writer.kind {
            return self.union(writer, arms, reader);
        }
        let Some((target, is_nullable)) = arrow_type::nullable(reader) else {
            return Err(SchemaError::Union { path: self.path.join(".") });
        };
        if writer.kind == Kind::Null {
            return match (is_nullable, &target.kind) {
                (_, Kind::Null) => Ok(Op::Value(ValueOp::Nothing)),
                (true, _) => Ok(Op::Null),
                (false, _) => Err(self.incompatible(writer, reader)),
            };
        }
        match &target.kind {
            Kind::Union(arms) => self.member(writer, arms, reader),
            _ => self.plain(writer, target).map(Op::Value),
        }
    }

    fn union(&mut self, writer: &Node, arms: &'s [Node], reader: &'s Node) -> Result<Op, SchemaError> {
        let depth = self.path.len();
        let mut missing = None;
        let mut ops = Vec::with_capacity(arms.len());
        for arm in arms {
            // A branch that never occurs does no harm; a record that has it is bad.
            let why = match self.value(arm, reader) {
                Ok(op) => {
                    ops.push(op);
                    continue;
                }
                Err(SchemaError::Incompatible { writer, reader, .. }) => {
                    format!("the writer's {writer} has no place in the reader's {reader}")
                }
                Err(error @ SchemaError::MissingField { .. }) => {
                    let why = error.to_string();
                    missing.get_or_insert(error);
                    why
                }
                Err(error) => return Err(error),
            };
            self.path.truncate(depth);
            ops.push(Op::Refused(why));
        }
        let is_hopeless = ops.iter().all(|op| matches!(op, Op::Refused(_)));
        if is_hopeless {
            Err(missing.unwrap_or_else(|| self.incompatible(writer, reader)))
        } else {
            Ok(Op::Union(ops))
        }
    }

    /// Which branch of a reader's union takes a type: of those that it can be read as, the nearest, then the first. So
    /// do Avro's own libraries; by the word of the specification it is the first, and an `int` before which a `long`
    /// stands would never be read as what it is.
    fn member(&mut self, writer: &'s Node, arms: &'s [Node], reader: &'s Node) -> Result<Op, SchemaError> {
        let depth = self.path.len();
        let mut missing = None;
        let mut order: Vec<(usize, &'s Node)> = arrow_type::members(arms).enumerate().collect();
        order.sort_by_key(|(_, arm)| distance(writer, arm));
        for (index, arm) in order {
            self.pairs_left = self.pairs_left.checked_sub(1).ok_or_else(|| SchemaError::Unsupported {
                path: self.path.join("."),
                what: format!("its unions make more than {PAIRS_MAX} pairs of branches"),
            })?;
            match self.plain(writer, arm) {
                Ok(op) => return Ok(Op::Member(index, op)),
                Err(SchemaError::Incompatible { .. }) => {}
                Err(error @ SchemaError::MissingField { .. }) => {
                    missing.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
            self.path.truncate(depth);
        }
        Err(missing.unwrap_or_else(|| self.incompatible(writer, reader)))
    }

    fn plain(&mut self, writer: &'s Node, reader: &'s Node) -> Result<ValueOp, SchemaError> {
        match (&writer.kind, &reader.kind) {
            (Kind::Record(from), Kind::Record(into)) if reader.is_again() => return self.text(from, into),
            (_, Kind::Record(_)) if reader.is_again() => return Err(self.incompatible(writer, reader)),
            _ => {}
        }
        // Of change events only: Avro's own times are numbers.
        if let (Kind::String, Some(Logical::TimestampMicros)) = (&reader.kind, reader.logical)
            && writer.kind == Kind::String
        {
            return Ok(ValueOp::TextToMicros);
        }
        if let Some(logical) = reader.logical {
            return logical_value(writer, logical).ok_or_else(|| self.incompatible(writer, reader));
        }
        Ok(match (&writer.kind, &reader.kind) {
            (Kind::Boolean, Kind::Boolean) => ValueOp::Boolean,
            (Kind::Int, Kind::Int) => ValueOp::IntToI32,
            (Kind::Int, Kind::Long) => long(1, true),
            (Kind::Long, Kind::Long) => long(1, false),
            (Kind::Int | Kind::Long, Kind::Float) => ValueOp::ZigzagToF32,
            (Kind::Int | Kind::Long, Kind::Double) => ValueOp::ZigzagToF64,
            (Kind::Float, Kind::Float) => ValueOp::FloatToF32,
            (Kind::Float, Kind::Double) => ValueOp::FloatToF64,
            (Kind::Double, Kind::Double) => ValueOp::DoubleToF64,
            (Kind::String | Kind::Bytes, Kind::String) => ValueOp::Text,
            (Kind::String | Kind::Bytes, Kind::Bytes) => ValueOp::Bytes,
            (Kind::Fixed { size: from, .. }, Kind::Fixed { size: into, .. }) if from == into => {
                ValueOp::Fixed(*into)
            }
            (Kind::Fixed { size, .. }, Kind::Bytes) => ValueOp::FixedToBytes(*size),
            (Kind::Enum(from), Kind::Enum(into)) => ValueOp::Enum(symbols(from, into)),
            (Kind::Enum(from), Kind::String) => {
                ValueOp::Enum(from.symbols.iter().cloned().map(Some).collect())
            }
            (Kind::Array(from), Kind::Array(into)) => {
                ValueOp::List(Box::new(self.nested("items", from, into)?))
            }
            (Kind::Map(from), Kind::Map(into)) => ValueOp::Map(Box::new(self.nested("values", from, into)?)),
            (Kind::Record(from), Kind::Record(into)) => {
                let from = self.written(from)?;
                ValueOp::Record(self.record(from, into)?)
            }
            _ => return Err(self.incompatible(writer, reader)),
        })
    }

    fn nested(&mut self, step: &str, writer: &'s Node, reader: &'s Node) -> Result<Op, SchemaError> {
        self.path.push(step.to_owned());
        let op = self.value(writer, reader);
        self.path.pop();
        op
    }

    /// All of a writer's record, also where it begins again.
    fn written(&self, record: &'s Record) -> Result<&'s Record, SchemaError> {
        let known = if self.is_default { &self.readers } else { &self.writers };
        self.known(known, record)
    }

    fn known(
        &self,
        records: &HashMap<&'s str, &'s Record>,
        record: &Record,
    ) -> Result<&'s Record, SchemaError> {
        records.get(record.name.as_str()).copied().ok_or_else(|| SchemaError::Unsupported {
            path: self.path.join("."),
            what: format!("the record `{}` is not defined", record.name),
        })
    }

    /// A record that begins again in the reader.
    fn text(&mut self, from: &'s Record, into: &'s Record) -> Result<ValueOp, SchemaError> {
        let (from, into) = (self.written(from)?, self.known(&self.readers, into)?);
        let place = (from.name.as_str(), into.name.as_str(), self.is_default);
        if let Some(index) = self.text_places.get(&place) {
            return Ok(ValueOp::Json(*index));
        }
        let index = self.texts.len();
        self.text_places.insert(place, index);
        self.texts.push(TextOp { op: RecordOp::default(), record: into.clone() });
        match self.record(from, into) {
            Ok(op) => {
                self.texts[index].op = op;
                Ok(ValueOp::Json(index))
            }
            Err(error) => {
                // What was compiled meanwhile may lead here.
                self.texts.truncate(index);
                self.text_places.retain(|_, place| *place < index);
                Err(error)
            }
        }
    }

    fn skip(&mut self, node: &'s Node) -> Result<SkipOp, SchemaError> {
        Ok(match &node.kind {
            Kind::Null => SkipOp::Nothing,
            Kind::Boolean => SkipOp::Boolean,
            Kind::Int | Kind::Long => SkipOp::Zigzag,
            Kind::Float => SkipOp::Bytes(4),
            Kind::Double => SkipOp::Bytes(8),
            Kind::Bytes | Kind::String => SkipOp::Sized,
            Kind::Fixed { size, .. } => SkipOp::Bytes(*size),
            Kind::Enum(symbols) => SkipOp::Enum(symbols.symbols.len()),
            Kind::Array(item) => {
                SkipOp::Array { item: Box::new(self.skip(item)?), size_min: item.size_min() }
            }
            Kind::Map(value) => SkipOp::Map {
                value: Box::new(self.skip(value)?),
                // A key takes at least its length.
                size_min: value.size_min().saturating_add(1),
            },
            Kind::Record(record) if node.is_again() => {
                let place = record.name.as_str();
                if let Some(index) = self.skip_places.get(place) {
                    return Ok(SkipOp::Again(*index));
                }
                let record = self.written(record)?;
                let index = self.skips.len();
                self.skip_places.insert(place, index);
                self.skips.push(SkipOp::Nothing);
                self.skips[index] = self.skip_fields(record)?;
                SkipOp::Again(index)
            }
            Kind::Record(record) => self.skip_fields(record)?,
            Kind::Union(arms) => {
                SkipOp::Union(arms.iter().map(|arm| self.skip(arm)).collect::<Result<_, _>>()?)
            }
            // It is of JSON Schemas, which nothing is written with.
            Kind::Choice(_) => return Err(self.incompatible(node, node)),
        })
    }

    fn skip_fields(&mut self, record: &'s Record) -> Result<SkipOp, SchemaError> {
        let fields = record.fields.iter().map(|field| self.skip(&field.node));
        Ok(SkipOp::Record(fields.collect::<Result<_, _>>()?))
    }

    fn incompatible(&self, writer: &Node, reader: &Node) -> SchemaError {
        let path = self.path.join(".");
        SchemaError::Incompatible { path, writer: writer.describe(), reader: reader.describe() }
    }
}

/// The reader's fields for a writer's: by name, else by one of the reader's aliases. What the writer has by its name is
/// not read by an alias as well: two values would go into one column.
struct Targets<'s> {
    reader: &'s Record,
    by_name: HashMap<&'s str, usize>,
    by_alias: HashMap<&'s str, Vec<usize>>,
    written: HashSet<&'s str>,
}

impl<'s> Targets<'s> {
    fn new(writer: &'s Record, reader: &'s Record) -> Self {
        let mut by_alias: HashMap<&str, Vec<usize>> = HashMap::new();
        for (column, field) in reader.fields.iter().enumerate() {
            for alias in &field.aliases {
                by_alias.entry(alias).or_default().push(column);
            }
        }
        Self {
            reader,
            by_name: (0..).zip(&reader.fields).map(|(column, field)| (field.name.as_str(), column)).collect(),
            by_alias,
            written: writer.fields.iter().map(|field| field.name.as_str()).collect(),
        }
    }

    fn of(&self, name: &str, is_read: &[bool]) -> Option<usize> {
        let is_free = |column: &usize| {
            !is_read[*column] && !self.written.contains(self.reader.fields[*column].name.as_str())
        };
        let by_name = self.by_name.get(name).copied();
        by_name.or_else(|| self.by_alias.get(name)?.iter().copied().find(is_free))
    }
}

/// How far a branch is from a type: the same, one of its name in another namespace, one of its kind, another one.
fn distance(writer: &Node, arm: &Node) -> u8 {
    if std::mem::discriminant(&writer.kind) != std::mem::discriminant(&arm.kind) {
        3
    } else if writer.branch_name() == arm.branch_name() {
        0
    } else if writer.branch_short_name() == arm.branch_short_name() {
        1
    } else {
        2
    }
}

fn long(factor: i64, is_int: bool) -> ValueOp {
    ValueOp::LongToI64 { factor, is_int }
}

fn symbols(writer: &Enum, reader: &Enum) -> Vec<Option<Arc<str>>> {
    writer
        .symbols
        .iter()
        .map(|symbol| {
            let known = reader.symbols.iter().find(|known| *known == symbol);
            known.or(reader.default.as_ref()).cloned()
        })
        .collect()
}

/// `None` if it cannot be read.
fn logical_value(writer: &Node, logical: Logical) -> Option<ValueOp> {
    Some(match (logical, &writer.kind) {
        (Logical::Date | Logical::TimeMillis, Kind::Int) => match writer.logical {
            None => ValueOp::IntToI32,
            Some(same) if same == logical => ValueOp::IntToI32,
            Some(_) => return None,
        },
        (Logical::Decimal { precision, scale }, kind) => {
            let fits = match writer.logical {
                None => true,
                Some(Logical::Decimal { precision: digits, scale: same }) => {
                    same == scale && digits <= precision
                }
                Some(_) => false,
            };
            let fixed = match kind {
                Kind::Bytes => None,
                Kind::Fixed { size, .. } => Some(*size),
                _ => return None,
            };
            if !fits {
                return None;
            }
            ValueOp::Decimal { fixed, precision }
        }
        // Bytes that were not written as one are none.
        (Logical::BigDecimal, Kind::Bytes) if writer.logical == Some(Logical::BigDecimal) => {
            ValueOp::BigDecimal
        }
        // 16 bytes of a decimal are no uuid, and 12 no duration.
        (Logical::Uuid | Logical::Duration, _) if writer.logical.is_some_and(|from| from != logical) => {
            return None;
        }
        (Logical::Uuid, Kind::String) => ValueOp::Text,
        (Logical::Uuid, Kind::Bytes) => ValueOp::Uuid { is_fixed: false },
        (Logical::Uuid, Kind::Fixed { size: 16, .. }) => ValueOp::Uuid { is_fixed: true },
        (Logical::Duration, Kind::Fixed { size: 12, .. }) => ValueOp::Duration,
        (
            Logical::TimeMicros
            | Logical::TimestampMillis
            | Logical::TimestampMicros
            | Logical::TimestampNanos
            | Logical::LocalTimestampMillis
            | Logical::LocalTimestampMicros
            | Logical::LocalTimestampNanos,
            Kind::Long | Kind::Int,
        ) => {
            let factor = unit_factor(writer.logical, logical)?;
            long(factor, writer.kind == Kind::Int)
        }
        _ => return None,
    })
}

/// What a writer's number is multiplied with, so that a producer that moves from milliseconds to
/// microseconds (or back) does not silently shift time. `None`: no reading keeps the value.
fn unit_factor(writer: Option<Logical>, reader: Logical) -> Option<i64> {
    use Logical as L;
    let Some(writer) = writer else {
        // A number without a meaning takes the reader's.
        return Some(1);
    };
    match (writer, reader) {
        (from, into) if from == into => Some(1),
        (L::TimestampMillis, L::TimestampMicros) => Some(1_000),
        (L::TimestampMillis, L::TimestampNanos) => Some(1_000_000),
        (L::TimestampMicros, L::TimestampNanos) => Some(1_000),
        (L::LocalTimestampMillis, L::LocalTimestampMicros) => Some(1_000),
        (L::LocalTimestampMillis, L::LocalTimestampNanos) => Some(1_000_000),
        (L::LocalTimestampMicros, L::LocalTimestampNanos) => Some(1_000),
        (L::TimeMillis, L::TimeMicros) => Some(1_000),
        _ => None,
    }
}
