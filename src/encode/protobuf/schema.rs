//! The Protobuf schema of columns, as the text of a file with one message.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use protox::prost_reflect::MessageDescriptor;

use crate::encode::{Unfit, check_name, no_form};

use super::NO_MESSAGE;

/// Numbers of fields end here, and those of [`KEPT`] are Protobuf's own.
const NUMBER_MAX: u32 = (1 << 29) - 1;
const KEPT: Range<u32> = 19_000..20_000;

const TIMESTAMP: &str = "google.protobuf.Timestamp";

/// The file of a message with these columns; `name` is the message's in full. Columns keep the numbers that `before` has
/// for their names; those of columns that are gone are never given to others.
pub fn schema(data_type: &DataType, name: &str, before: Option<&MessageDescriptor>) -> Result<String, Unfit> {
    let DataType::Struct(fields) = data_type else {
        return Err(Unfit::new(NO_MESSAGE));
    };
    let (package, name) = name.rsplit_once('.').unwrap_or(("", name));
    let mut text = Text { body: String::new(), has_timestamps: false };
    text.message(name, fields, before, 0)?;
    let mut file = "syntax = \"proto3\";\n".to_owned();
    if !package.is_empty() {
        file.push_str(&format!("package {package};\n"));
    }
    if text.has_timestamps {
        file.push_str("import \"google/protobuf/timestamp.proto\";\n");
    }
    file.push_str(&text.body);
    Ok(file)
}

struct Text {
    body: String,
    has_timestamps: bool,
}

impl Text {
    fn message(
        &mut self,
        name: &str,
        fields: &Fields,
        before: Option<&MessageDescriptor>,
        depth: usize,
    ) -> Result<(), Unfit> {
        let pad = "  ".repeat(depth);
        self.body.push_str(&format!("{pad}message {name} {{\n"));
        // Fields and messages of a message have one set of names.
        let mut taken: HashSet<String> = fields.iter().map(|field| field.name().clone()).collect();
        let mut numbers = Numbers::after(before);
        let mut lines = Vec::with_capacity(fields.len());
        for field in fields {
            let own = field.name();
            check_name(own)?;
            let before = before.and_then(|before| message_of(before, own));
            let declared = self.field(field, before.as_ref(), &mut taken, depth + 1);
            let declared = declared.map_err(|unfit| unfit.inside(own))?;
            lines.push((numbers.of(own)?, declared, own));
        }
        // In the order of numbers the text does not depend on that of the columns.
        lines.sort_by_key(|(number, ..)| *number);
        for (number, declared, own) in lines {
            self.body.push_str(&format!("{pad}  {declared} {own} = {number};\n"));
        }
        let gone = numbers.gone();
        if !gone.is_empty() {
            self.body.push_str(&format!("{pad}  reserved {};\n", gone.join(", ")));
        }
        self.body.push_str(&format!("{pad}}}\n"));
        Ok(())
    }

    /// Label and type of a field. The message it may be of is written first.
    fn field(
        &mut self,
        field: &Field,
        before: Option<&MessageDescriptor>,
        taken: &mut HashSet<String>,
        depth: usize,
    ) -> Result<String, Unfit> {
        match field.data_type() {
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
                let (item, _) = self.type_of(item.data_type(), field.name(), before, taken, depth)?;
                Ok(format!("repeated {item}"))
            }
            DataType::Map(entries, _) => {
                let DataType::Struct(entry) = entries.data_type() else {
                    return Err(no_form(field.data_type(), "Protobuf"));
                };
                let [key, value] = &entry[..] else {
                    return Err(no_form(field.data_type(), "Protobuf"));
                };
                let key = match scalar(key.data_type()) {
                    Some(name) if !["float", "double", "bytes", TIMESTAMP].contains(&name) => name,
                    _ => return Err(no_form(field.data_type(), "Protobuf")),
                };
                let (value, _) = self.type_of(value.data_type(), field.name(), before, taken, depth)?;
                Ok(format!("map<{key}, {value}>"))
            }
            data_type => {
                let (name, is_message) = self.type_of(data_type, field.name(), before, taken, depth)?;
                // A message that is not there is null already.
                Ok(if field.is_nullable() && !is_message { format!("optional {name}") } else { name })
            }
        }
    }

    /// The name of a type, and whether it is a message.
    fn type_of(
        &mut self,
        data_type: &DataType,
        field: &str,
        before: Option<&MessageDescriptor>,
        taken: &mut HashSet<String>,
        depth: usize,
    ) -> Result<(String, bool), Unfit> {
        if let DataType::Struct(fields) = data_type {
            let name = free_name(field, taken);
            self.message(&name, fields, before, depth)?;
            return Ok((name, true));
        }
        let name = scalar(data_type).ok_or_else(|| no_form(data_type, "Protobuf"))?;
        self.has_timestamps |= name == TIMESTAMP;
        Ok((name.to_owned(), name == TIMESTAMP))
    }
}

/// The message of a field, or of the values of a map.
fn message_of(message: &MessageDescriptor, field: &str) -> Option<MessageDescriptor> {
    let field = message.get_field_by_name(field)?;
    let kind = field.kind();
    let inner = kind.as_message()?;
    if field.is_map() {
        inner.map_entry_value_field().kind().as_message().cloned()
    } else {
        Some(inner.clone())
    }
}

/// `LineItem` for `line_item`, with `_` behind it if something else has that name.
fn free_name(field: &str, taken: &mut HashSet<String>) -> String {
    let mut name = String::new();
    for word in field.split('_').filter(|word| !word.is_empty()) {
        let mut letters = word.chars();
        name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        name.push_str(letters.as_str());
    }
    if name.is_empty() || name.starts_with(|char: char| char.is_ascii_digit()) {
        name.insert(0, 'M');
    }
    while !taken.insert(name.clone()) {
        name.push('_');
    }
    name
}

/// Types that are one value. Dates, times of a day, times without a zone and decimals are text: Protobuf has none of them
/// built in.
fn scalar(data_type: &DataType) -> Option<&'static str> {
    Some(match data_type {
        DataType::Boolean => "bool",
        DataType::Int8 | DataType::Int16 | DataType::Int32 => "int32",
        DataType::Int64 => "int64",
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => "uint32",
        DataType::UInt64 => "uint64",
        DataType::Float16 | DataType::Float32 => "float",
        DataType::Float64 => "double",
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "string",
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "bytes"
        }
        DataType::Date32
        | DataType::Time32(TimeUnit::Millisecond)
        | DataType::Time64(TimeUnit::Microsecond)
        | DataType::Timestamp(_, None)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => "string",
        DataType::Timestamp(_, Some(_)) => TIMESTAMP,
        DataType::Dictionary(_, value) => return scalar(value),
        _ => return None,
    })
}

/// The numbers of a message's fields.
struct Numbers {
    /// Of fields that there were, by name.
    known: HashMap<String, u32>,
    reserved: Vec<Range<u32>>,
    next: u32,
}

impl Numbers {
    fn after(before: Option<&MessageDescriptor>) -> Self {
        let Some(before) = before else {
            return Self { known: HashMap::new(), reserved: Vec::new(), next: 1 };
        };
        let known: HashMap<String, u32> =
            before.fields().map(|field| (field.name().to_owned(), field.number())).collect();
        let reserved: Vec<Range<u32>> = before.reserved_ranges().collect();
        let ends = reserved.iter().map(|range| range.end);
        let next = known.values().map(|number| number + 1).chain(ends).max().unwrap_or(1);
        Self { known, reserved, next }
    }

    /// The number of a field: the one it had, or one that no field ever had.
    fn of(&mut self, name: &str) -> Result<u32, Unfit> {
        if let Some(number) = self.known.remove(name) {
            return Ok(number);
        }
        if KEPT.contains(&self.next) {
            self.next = KEPT.end;
        }
        if self.next > NUMBER_MAX {
            return Err(Unfit::new("is new, and the message has no number left for it").inside(name));
        }
        self.next += 1;
        Ok(self.next - 1)
    }

    /// Numbers that are not to be given again, as they are declared.
    fn gone(self) -> Vec<String> {
        let left = self.known.into_values().map(|number| number..number + 1);
        let mut all: Vec<Range<u32>> = self.reserved.into_iter().chain(left).collect();
        all.sort_by_key(|range| range.start);
        let shown = |range: Range<u32>| {
            let last = range.end - 1;
            if range.start == last { last.to_string() } else { format!("{} to {last}", range.start) }
        };
        all.into_iter().map(shown).collect()
    }
}
