//! Compiles a writer's and a reader's schema into a program that reads the one into columns of the other.
//!
//! All questions of Avro's schema resolution (promotions, field order, aliases, defaults, unions, enum
//! symbols) are answered once per schema id; a record costs only the steps.

use std::sync::Arc;

use super::arrow_type;
use super::encode;
use super::node::{Enum, Field, Kind, Logical, Node, Record, SchemaError};

/// Reads one record of a writer's schema into the columns of the reader's schema.
#[derive(Debug)]
pub struct Program {
    pub record: RecordOp,
}

/// How one value is read into one column.
#[derive(Debug)]
pub enum Op {
    /// Nothing on the wire; a null in the column.
    Null,
    Value(ValueOp),
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
    /// The reader's symbol for each of the writer's.
    Enum(Vec<Option<Arc<str>>>),
    List(Box<Op>),
    Map(Box<Op>),
    Record(RecordOp),
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
    Array { item: Box<SkipOp>, size_min: usize },
    Map { value: Box<SkipOp>, size_min: usize },
    Record(Vec<SkipOp>),
    Union(Vec<SkipOp>),
}

/// Compiles `writer` for `reader`.
///
/// # Errors
/// [`SchemaError::Incompatible`] and [`SchemaError::MissingField`] name the field.
pub fn compile(writer: &Node, reader: &Node) -> Result<Program, SchemaError> {
    match (&writer.kind, &reader.kind) {
        (Kind::Record(from), Kind::Record(into)) => {
            let mut path = Vec::new();
            Ok(Program { record: record(from, into, &mut path)? })
        }
        (Kind::Record(_), _) => Err(SchemaError::NotARecord("the reader's type")),
        _ => Err(SchemaError::NotARecord("the writer's type")),
    }
}

fn record(writer: &Record, reader: &Record, path: &mut Vec<String>) -> Result<RecordOp, SchemaError> {
    let mut op = RecordOp::default();
    let mut is_read = vec![false; reader.fields.len()];
    for from in &writer.fields {
        path.push(from.name.clone());
        match target(&from.name, writer, reader, &is_read) {
            Some(column) => {
                is_read[column] = true;
                op.steps.push(Step::Read {
                    name: from.name.clone(),
                    column,
                    op: value(&from.node, &reader.fields[column].node, path)?,
                });
            }
            None => op.steps.push(Step::Skip(skip(&from.node))),
        }
        path.pop();
    }
    for (column, into) in reader.fields.iter().enumerate() {
        if !is_read[column] {
            path.push(into.name.clone());
            op.defaults.push(default(column, into, path)?);
            path.pop();
        }
    }
    Ok(op)
}

/// The reader's field for a writer's: by name, else by one of the reader's aliases. What the writer has by
/// its name is not read by an alias as well: two values would go into one column.
fn target(name: &str, writer: &Record, reader: &Record, is_read: &[bool]) -> Option<usize> {
    let by_name = reader.fields.iter().position(|field| field.name == name);
    by_name.or_else(|| {
        reader.fields.iter().enumerate().position(|(column, field)| {
            !is_read[column]
                && field.aliases.iter().any(|alias| alias == name)
                && writer.fields.iter().all(|from| from.name != field.name)
        })
    })
}

fn default(column: usize, field: &Field, path: &mut Vec<String>) -> Result<DefaultOp, SchemaError> {
    let Some(json) = &field.default else {
        return Err(SchemaError::MissingField { path: path.join(".") });
    };
    // The default of a union belongs to the branch it fits; it is encoded with that branch's number.
    let bytes = encode::value(&field.node, json).map_err(|error| SchemaError::Unsupported {
        path: path.join("."),
        what: format!("its default does not fit its type: {error}"),
    })?;
    Ok(DefaultOp { column, bytes, op: value(&field.node, &field.node, path)? })
}

fn value(writer: &Node, reader: &Node, path: &mut Vec<String>) -> Result<Op, SchemaError> {
    if let Kind::Union(arms) = &writer.kind {
        return union(writer, arms, reader, path);
    }
    let Some((target, is_nullable)) = arrow_type::nullable(reader) else {
        return Err(SchemaError::Union { path: path.join(".") });
    };
    if writer.kind == Kind::Null {
        return match (is_nullable, &target.kind) {
            (_, Kind::Null) => Ok(Op::Value(ValueOp::Nothing)),
            (true, _) => Ok(Op::Null),
            (false, _) => Err(incompatible(writer, reader, path)),
        };
    }
    plain(writer, target, path).map(Op::Value)
}

fn union(writer: &Node, arms: &[Node], reader: &Node, path: &mut Vec<String>) -> Result<Op, SchemaError> {
    let depth = path.len();
    let mut missing = None;
    let mut ops = Vec::with_capacity(arms.len());
    for arm in arms {
        // A branch that never occurs does no harm; a record that has it is bad.
        let why = match value(arm, reader, path) {
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
        path.truncate(depth);
        ops.push(Op::Refused(why));
    }
    let is_hopeless = ops.iter().all(|op| matches!(op, Op::Refused(_)));
    if is_hopeless {
        Err(missing.unwrap_or_else(|| incompatible(writer, reader, path)))
    } else {
        Ok(Op::Union(ops))
    }
}

fn plain(writer: &Node, reader: &Node, path: &mut Vec<String>) -> Result<ValueOp, SchemaError> {
    if let Some(logical) = reader.logical {
        return logical_value(writer, reader, logical, path);
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
        (Kind::Enum(from), Kind::String) => ValueOp::Enum(from.symbols.iter().cloned().map(Some).collect()),
        (Kind::Array(from), Kind::Array(into)) => ValueOp::List(Box::new(nested("items", from, into, path)?)),
        (Kind::Map(from), Kind::Map(into)) => ValueOp::Map(Box::new(nested("values", from, into, path)?)),
        (Kind::Record(from), Kind::Record(into)) => ValueOp::Record(record(from, into, path)?),
        _ => return Err(incompatible(writer, reader, path)),
    })
}

fn nested(step: &str, writer: &Node, reader: &Node, path: &mut Vec<String>) -> Result<Op, SchemaError> {
    path.push(step.to_owned());
    let op = value(writer, reader, path);
    path.pop();
    op
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

fn logical_value(
    writer: &Node,
    reader: &Node,
    logical: Logical,
    path: &[String],
) -> Result<ValueOp, SchemaError> {
    let refused = || incompatible(writer, reader, path);
    Ok(match (logical, &writer.kind) {
        (Logical::Date | Logical::TimeMillis, Kind::Int) => match writer.logical {
            None => ValueOp::IntToI32,
            Some(same) if same == logical => ValueOp::IntToI32,
            Some(_) => return Err(refused()),
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
                _ => return Err(refused()),
            };
            if !fits {
                return Err(refused());
            }
            ValueOp::Decimal { fixed, precision }
        }
        // Bytes that were not written as one are none.
        (Logical::BigDecimal, Kind::Bytes) if writer.logical == Some(Logical::BigDecimal) => {
            ValueOp::BigDecimal
        }
        // 16 bytes of a decimal are no uuid, and 12 no duration.
        (Logical::Uuid | Logical::Duration, _) if writer.logical.is_some_and(|from| from != logical) => {
            return Err(refused());
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
            let factor = unit_factor(writer.logical, logical).ok_or_else(refused)?;
            long(factor, writer.kind == Kind::Int)
        }
        _ => return Err(refused()),
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

fn incompatible(writer: &Node, reader: &Node, path: &[String]) -> SchemaError {
    SchemaError::Incompatible { path: path.join("."), writer: writer.describe(), reader: reader.describe() }
}

fn skip(node: &Node) -> SkipOp {
    match &node.kind {
        Kind::Null => SkipOp::Nothing,
        Kind::Boolean => SkipOp::Boolean,
        Kind::Int | Kind::Long => SkipOp::Zigzag,
        Kind::Float => SkipOp::Bytes(4),
        Kind::Double => SkipOp::Bytes(8),
        Kind::Bytes | Kind::String => SkipOp::Sized,
        Kind::Fixed { size, .. } => SkipOp::Bytes(*size),
        Kind::Enum(symbols) => SkipOp::Enum(symbols.symbols.len()),
        Kind::Array(item) => SkipOp::Array { item: Box::new(skip(item)), size_min: item.size_min() },
        Kind::Map(value) => SkipOp::Map {
            value: Box::new(skip(value)),
            // A key takes at least its length.
            size_min: value.size_min().saturating_add(1),
        },
        Kind::Record(record) => SkipOp::Record(record.fields.iter().map(|field| skip(&field.node)).collect()),
        Kind::Union(arms) => SkipOp::Union(arms.iter().map(skip).collect()),
    }
}
