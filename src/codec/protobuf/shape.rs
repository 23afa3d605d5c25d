//! A message as columns: which Arrow types its fields become, and how each is read. `docs/types.md` has the table for
//! users.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field as ArrowField, Fields, Schema, SchemaRef, TimeUnit};
use protox::prost_reflect::{EnumDescriptor, EnumValueDescriptor, FieldDescriptor, Kind, MessageDescriptor};

use super::file::SchemaError;
use super::wire;
use crate::codec::limits::{DEPTH_MAX, FIELDS_MAX, SCHEMA_BYTES_MAX, TYPE_BYTES};
use crate::config::plan::Recursion;

/// Numbers up to this are found by their place.
const DENSE_MAX: u32 = 1024;

/// Likewise of an enum.
const DENSE_SYMBOLS_MAX: i32 = 256;

/// No field.
const NONE: u16 = u16::MAX;

/// How the records of a route are read.
#[derive(Debug)]
pub struct Shape {
    pub message: Message,
    /// Messages that contain themselves, and those in them, for [`Op::Tree`].
    pub trees: Vec<Message>,
}

/// How a message is read: one field for each column, in the order of the file.
#[derive(Debug)]
pub struct Message {
    pub fields: Vec<Field>,
    pub oneof_count: usize,
    /// Columns without columns below it: what a message that is absent costs.
    pub width: usize,
    by_number: Vec<u16>,
    others: Vec<(u32, u16)>,
}

#[derive(Debug)]
pub struct Field {
    pub name: String,
    /// Of the message's oneofs, at most one field is present.
    pub oneof: Option<usize>,
    pub read: Read,
    pub absent: Absent,
    pub width: usize,
}

#[derive(Debug)]
pub enum Read {
    One(Op),
    List(Op),
    Map { key: Op, value: Op },
}

/// What a field that is not in a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    Null,
    /// Proto3 does not write zeros and empty texts.
    Default,
    /// Proto2's `required`.
    Bad,
}

/// How one value is read.
#[derive(Debug)]
pub enum Op {
    Int32,
    Sint32,
    Sfixed32,
    Uint32,
    Fixed32,
    Int64,
    Sint64,
    Sfixed64,
    Uint64,
    Fixed64,
    Float,
    Double,
    Bool,
    Text,
    Bytes,
    Enum(Arc<Symbols>),
    Message(Message),
    /// `google.protobuf.Timestamp`
    Timestamp,
    /// `google.protobuf.StringValue` and its like: null if absent, else field 1.
    Wrapper(Box<Op>),
    /// `google.protobuf.Struct`, `Value`, `ListValue`: recursive, as JSON text.
    Json(Json),
    /// One of [`Shape::trees`], as JSON text.
    Tree(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Json {
    Struct,
    Value,
    List,
}

/// Names of an enum's numbers. A number without one is kept as its digits, as Protobuf's JSON has it.
#[derive(Debug)]
pub struct Symbols {
    /// Of the numbers from 0, empty where there is none: most enums have no others.
    dense: Vec<String>,
    others: HashMap<i32, String>,
}

impl Symbols {
    pub fn get(&self, number: i32) -> Option<&str> {
        let dense = usize::try_from(number).ok().and_then(|number| self.dense.get(number));
        match dense {
            Some(name) => (!name.is_empty()).then_some(name),
            None => self.others.get(&number).map(String::as_str),
        }
    }
}

impl Op {
    pub fn kind(&self) -> wire::Kind {
        match self {
            Self::Int32
            | Self::Sint32
            | Self::Uint32
            | Self::Int64
            | Self::Sint64
            | Self::Uint64
            | Self::Bool
            | Self::Enum(_) => wire::Kind::Varint,
            Self::Sfixed32 | Self::Fixed32 | Self::Float => wire::Kind::Bits32,
            Self::Sfixed64 | Self::Fixed64 | Self::Double => wire::Kind::Bits64,
            Self::Text
            | Self::Bytes
            | Self::Message(_)
            | Self::Timestamp
            | Self::Wrapper(_)
            | Self::Json(_)
            | Self::Tree(_) => wire::Kind::Bytes,
        }
    }

    /// Repeated numbers may share one length.
    pub fn is_packable(&self) -> bool {
        self.kind() != wire::Kind::Bytes
    }

    fn width(&self) -> usize {
        if let Self::Message(message) = self { message.width } else { 1 }
    }
}

impl Message {
    fn new(fields: Vec<(u32, Field)>, oneof_count: usize) -> Self {
        let width = fields.iter().map(|(_, field)| field.width).sum::<usize>().max(1);
        let dense = fields.iter().map(|(number, _)| *number).filter(|number| *number <= DENSE_MAX).max();
        let mut by_number = vec![NONE; dense.map_or(0, |number| number as usize + 1)];
        let mut others = Vec::new();
        for (index, (number, _)) in (0_u16..).zip(&fields) {
            match by_number.get_mut(*number as usize) {
                Some(place) => *place = index,
                None => others.push((*number, index)),
            }
        }
        others.sort_unstable();
        Self {
            fields: fields.into_iter().map(|(_, field)| field).collect(),
            oneof_count,
            width,
            by_number,
            others,
        }
    }

    /// The place of a field.
    pub fn find(&self, number: u32) -> Option<usize> {
        if let Some(index) = self.by_number.get(number as usize) {
            return (*index != NONE).then_some(usize::from(*index));
        }
        let place = self.others.binary_search_by_key(&number, |(own, _)| *own).ok()?;
        Some(usize::from(self.others[place].1))
    }
}

/// How a message of a top-level value is read, and its columns.
///
/// # Errors
/// [`SchemaError`] with the path of a field that has no Arrow form.
pub fn compile(
    descriptor: &MessageDescriptor,
    nullable: bool,
    recursion: Recursion,
) -> Result<(Shape, SchemaRef), SchemaError> {
    let mut compiler = Compiler {
        recursion,
        is_tree: false,
        wanted: Vec::new(),
        open: Vec::new(),
        path: Vec::new(),
        field_count: 0,
        bytes_left: SCHEMA_BYTES_MAX,
        symbols: HashMap::new(),
    };
    let (message, fields) = compiler.message(descriptor)?;
    if fields.is_empty() {
        return Err(SchemaError::Empty);
    }
    let trees = compiler.trees()?;
    let fields: Fields = if nullable {
        fields.iter().map(|field| field.as_ref().clone().with_nullable(true)).collect()
    } else {
        fields
    };
    Ok((Shape { message, trees }, Arc::new(Schema::new(fields))))
}

struct Compiler {
    recursion: Recursion,
    /// Messages are compiled one by one, and point at one another.
    is_tree: bool,
    /// What trees are wanted of, in their order.
    wanted: Vec<MessageDescriptor>,
    /// Full names of the messages around this one.
    open: Vec<String>,
    path: Vec<String>,
    field_count: usize,
    /// Of [`SCHEMA_BYTES_MAX`].
    bytes_left: usize,
    /// Of enums, by their full names: many fields may have one.
    symbols: HashMap<String, Arc<Symbols>>,
}

impl Compiler {
    /// The trees that are wanted, and those that these want.
    fn trees(&mut self) -> Result<Vec<Message>, SchemaError> {
        self.is_tree = true;
        let mut trees = Vec::new();
        while let Some(descriptor) = self.wanted.get(trees.len()).cloned() {
            trees.push(self.message(&descriptor)?.0);
        }
        Ok(trees)
    }

    fn tree(&mut self, descriptor: &MessageDescriptor) -> Op {
        let known = self.wanted.iter().position(|wanted| wanted == descriptor);
        let index = known.unwrap_or(self.wanted.len());
        if known.is_none() {
            self.wanted.push(descriptor.clone());
        }
        Op::Tree(index)
    }

    fn message(&mut self, descriptor: &MessageDescriptor) -> Result<(Message, Fields), SchemaError> {
        let name = descriptor.full_name().to_owned();
        if self.open.contains(&name) {
            return Err(SchemaError::Recursive { path: self.path.join("."), name });
        }
        if self.open.len() >= DEPTH_MAX {
            return Err(SchemaError::TooDeep(DEPTH_MAX));
        }
        let mut descriptors: Vec<FieldDescriptor> = descriptor.fields().collect();
        self.field_count += descriptors.len();
        if self.field_count > FIELDS_MAX {
            return Err(SchemaError::TooWide(FIELDS_MAX));
        }
        // By number; a file's own order is what people know.
        descriptors.sort_by_key(|field| field.path().last().copied());
        let oneofs: Vec<String> = descriptor
            .oneofs()
            .filter(|oneof| !oneof.is_synthetic())
            .map(|oneof| oneof.name().to_owned())
            .collect();
        self.open.push(name);
        let mut fields = Vec::with_capacity(descriptors.len());
        let mut columns = Vec::with_capacity(descriptors.len());
        for descriptor in &descriptors {
            self.path.push(descriptor.name().to_owned());
            let (mut field, column) = self.field(descriptor)?;
            self.path.pop();
            field.oneof = descriptor
                .containing_oneof()
                .and_then(|oneof| oneofs.iter().position(|name| name == oneof.name()));
            fields.push((descriptor.number(), field));
            columns.push(column);
        }
        self.open.pop();
        Ok((Message::new(fields, oneofs.len()), columns.into()))
    }

    fn field(&mut self, descriptor: &FieldDescriptor) -> Result<(Field, ArrowField), SchemaError> {
        let (read, data_type) = self.read(descriptor)?;
        let absent = match &read {
            Read::List(_) | Read::Map { .. } => Absent::Default,
            Read::One(_) if descriptor.is_required() => Absent::Bad,
            Read::One(_) if descriptor.supports_presence() => Absent::Null,
            Read::One(_) => Absent::Default,
        };
        let width = match &read {
            Read::One(op) => op.width(),
            Read::List(_) | Read::Map { .. } => 1,
        };
        let name = descriptor.name().to_owned();
        // The field's own, and that of its column.
        let left = self.bytes_left.checked_sub(TYPE_BYTES + 2 * name.len());
        self.bytes_left = left.ok_or(SchemaError::TooLarge(SCHEMA_BYTES_MAX))?;
        let column = ArrowField::new(&name, data_type, absent == Absent::Null);
        Ok((Field { name, oneof: None, read, absent, width }, column))
    }

    fn read(&mut self, descriptor: &FieldDescriptor) -> Result<(Read, DataType), SchemaError> {
        let kind = descriptor.kind();
        if let Kind::Message(entry) = &kind
            && descriptor.is_map()
        {
            let (key, key_type) = self.op(&entry.map_entry_key_field().kind())?;
            let (value, value_type) = self.op(&entry.map_entry_value_field().kind())?;
            let entries =
                vec![ArrowField::new("key", key_type, false), ArrowField::new("value", value_type, false)];
            let entries = ArrowField::new("entries", DataType::Struct(entries.into()), false);
            return Ok((Read::Map { key, value }, DataType::Map(Arc::new(entries), false)));
        }
        let (op, data_type) = self.op(&kind)?;
        if descriptor.is_list() {
            let item = ArrowField::new("item", data_type, false);
            return Ok((Read::List(op), DataType::List(Arc::new(item))));
        }
        Ok((Read::One(op), data_type))
    }

    fn op(&mut self, kind: &Kind) -> Result<(Op, DataType), SchemaError> {
        Ok(match kind {
            Kind::Double => (Op::Double, DataType::Float64),
            Kind::Float => (Op::Float, DataType::Float32),
            Kind::Int32 => (Op::Int32, DataType::Int32),
            Kind::Sint32 => (Op::Sint32, DataType::Int32),
            Kind::Sfixed32 => (Op::Sfixed32, DataType::Int32),
            Kind::Uint32 => (Op::Uint32, DataType::UInt32),
            Kind::Fixed32 => (Op::Fixed32, DataType::UInt32),
            Kind::Int64 => (Op::Int64, DataType::Int64),
            Kind::Sint64 => (Op::Sint64, DataType::Int64),
            Kind::Sfixed64 => (Op::Sfixed64, DataType::Int64),
            Kind::Uint64 => (Op::Uint64, DataType::UInt64),
            Kind::Fixed64 => (Op::Fixed64, DataType::UInt64),
            Kind::Bool => (Op::Bool, DataType::Boolean),
            Kind::String => (Op::Text, DataType::Utf8),
            Kind::Bytes => (Op::Bytes, DataType::Binary),
            Kind::Enum(descriptor) => (Op::Enum(self.symbols(descriptor)), DataType::Utf8),
            Kind::Message(descriptor) => {
                if let Some(known) = self.well_known(descriptor)? {
                    return Ok(known);
                }
                let is_again = || self.open.iter().any(|open| open.as_str() == descriptor.full_name());
                if self.is_tree || (self.recursion == Recursion::Json && is_again()) {
                    return Ok((self.tree(descriptor), DataType::Utf8));
                }
                let (message, fields) = self.message(descriptor)?;
                (Op::Message(message), DataType::Struct(fields))
            }
        })
    }

    fn symbols(&mut self, descriptor: &EnumDescriptor) -> Arc<Symbols> {
        let known = self.symbols.entry(descriptor.full_name().to_owned());
        known.or_insert_with(|| Arc::new(symbols(descriptor))).clone()
    }

    /// Messages that stand for something else than a struct of their fields.
    fn well_known(&mut self, descriptor: &MessageDescriptor) -> Result<Option<(Op, DataType)>, SchemaError> {
        let Some(name) = descriptor.full_name().strip_prefix("google.protobuf.") else {
            return Ok(None);
        };
        Ok(Some(match name {
            "Timestamp" => {
                (Op::Timestamp, DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC"))))
            }
            "Struct" => (Op::Json(Json::Struct), DataType::Utf8),
            "Value" => (Op::Json(Json::Value), DataType::Utf8),
            "ListValue" => (Op::Json(Json::List), DataType::Utf8),
            "DoubleValue" | "FloatValue" | "Int64Value" | "UInt64Value" | "Int32Value" | "UInt32Value"
            | "BoolValue" | "StringValue" | "BytesValue" => {
                let Some(field) = descriptor.get_field(1) else {
                    return Ok(None);
                };
                let (op, data_type) = self.op(&field.kind())?;
                (Op::Wrapper(Box::new(op)), data_type)
            }
            _ => return Ok(None),
        }))
    }
}

fn symbols(descriptor: &EnumDescriptor) -> Symbols {
    let mut values: Vec<EnumValueDescriptor> = descriptor.values().collect();
    // They come by number, and of one number in no order that is told.
    values.sort_by_key(|value| value.path().last().copied());
    let mut others = HashMap::new();
    for value in values {
        // With aliases, the first name of the file is the one.
        others.entry(value.number()).or_insert_with(|| value.name().to_owned());
    }
    let largest = others.keys().copied().filter(|number| *number < DENSE_SYMBOLS_MAX).max();
    let dense = (0..=largest.unwrap_or(-1)).map(|number| others.remove(&number).unwrap_or_default());
    Symbols { dense: dense.collect(), others }
}
