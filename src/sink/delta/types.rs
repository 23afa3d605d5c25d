//! Which column of a Delta table takes which Arrow type, and what follows where rows and a table differ
//! (`docs/sinks/delta.md`). Pure.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use delta_kernel::engine::arrow_conversion::TryIntoArrow;
use delta_kernel::schema::{
    ArrayType, DataType as DeltaType, MapType, PrimitiveType, StructField, StructType,
};

/// Digits that a decimal has at most.
const DECIMAL_DIGITS_MAX: u8 = 38;

/// What Parquet and Spark take in no name of a column, without a mapping of columns.
const NOT_IN_NAMES: &str = " ,;{}()\n\t=";

/// The type of the column that takes such values, as it is created. Everything below it may be null.
///
/// # Errors
/// What the Arrow type is, if there is none for it.
pub fn column_type(data_type: &DataType) -> Result<DeltaType, String> {
    let primitive = match data_type {
        DataType::Dictionary(_, value) => return column_type(value),
        DataType::Boolean => PrimitiveType::Boolean,
        DataType::Int8 => PrimitiveType::Byte,
        DataType::Int16 | DataType::UInt8 => PrimitiveType::Short,
        DataType::Int32 | DataType::UInt16 => PrimitiveType::Integer,
        DataType::Int64 | DataType::UInt32 => PrimitiveType::Long,
        DataType::UInt64 => decimal(20, 0).ok_or_else(|| data_type.to_string())?,
        DataType::Float16 | DataType::Float32 => PrimitiveType::Float,
        DataType::Float64 => PrimitiveType::Double,
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            decimal(*precision, *scale).ok_or_else(|| data_type.to_string())?
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => PrimitiveType::String,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            PrimitiveType::Binary
        }
        DataType::Date32 | DataType::Date64 => PrimitiveType::Date,
        DataType::Timestamp(_, None) => PrimitiveType::TimestampNtz,
        DataType::Timestamp(_, Some(_)) => PrimitiveType::Timestamp,
        DataType::Struct(fields) if !fields.is_empty() => {
            let fields = fields.iter().map(|field| {
                Ok(StructField::nullable(field.name().clone(), column_type(field.data_type())?))
            });
            let fields: Vec<StructField> = fields.collect::<Result<_, String>>()?;
            return Ok(StructType::try_new(fields).map_err(|error| error.to_string())?.into());
        }
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            return Ok(ArrayType::new(column_type(item.data_type())?, true).into());
        }
        DataType::Map(entries, _) => {
            let DataType::Struct(pair) = entries.data_type() else {
                return Err(data_type.to_string());
            };
            let [key, value] = &pair[..] else {
                return Err(data_type.to_string());
            };
            let (key, value) = (column_type(key.data_type())?, column_type(value.data_type())?);
            return Ok(MapType::new(key, value, true).into());
        }
        other => return Err(other.to_string()),
    };
    Ok(primitive.into())
}

/// A decimal with these digits; of a negative scale the zeros count, too.
fn decimal(precision: u8, scale: i8) -> Option<PrimitiveType> {
    let zeros = scale.min(0).unsigned_abs();
    let precision = precision.checked_add(zeros).filter(|digits| *digits <= DECIMAL_DIGITS_MAX)?;
    PrimitiveType::decimal(precision, scale.max(0).unsigned_abs()).ok()
}

/// The path of the first name that is none, at any depth.
fn bad_name(path: &str, field: &Field) -> Option<String> {
    let name = field.name();
    let own = format!("{path}{name}");
    if name.is_empty() || name.contains(|char| NOT_IN_NAMES.contains(char)) {
        return Some(own);
    }
    let below = |fields: &Fields| fields.iter().find_map(|field| bad_name(&format!("{own}."), field));
    match field.data_type() {
        DataType::Struct(fields) => below(fields),
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            bad_name(&format!("{own}."), item)
        }
        DataType::Map(entries, _) => bad_name(&format!("{own}."), entries),
        _ => None,
    }
}

/// The columns of a table for rows of this schema, partitioned by these columns: those that the rows lack come last.
///
/// # Errors
/// What is wrong with one of them.
pub fn columns(rows: &Schema, partitions: &[Field]) -> Result<StructType, String> {
    let of_rows = rows.fields().iter().map(|field| {
        let by = partitions.iter().find(|partition| partition.name() == field.name());
        by.unwrap_or_else(|| field.as_ref())
    });
    let only_partitions =
        partitions.iter().filter(|partition| rows.field_with_name(partition.name()).is_err());
    let mut columns = Vec::new();
    for field in of_rows.chain(only_partitions) {
        if let Some(path) = bad_name("", field) {
            return Err(format!(
                "column `{path}` has a name that Delta tables do not take: empty, or with one of `{}`",
                NOT_IN_NAMES.escape_debug()
            ));
        }
        let name = field.name();
        let data_type = column_type(field.data_type());
        let data_type = data_type
            .map_err(|other| format!("column `{name}` is {other}, for which a Delta table has no type"))?;
        columns.push(StructField::nullable(name.clone(), data_type));
    }
    for partition in partitions {
        let data_type = column_type(partition.data_type())?;
        if !has_plain_text(&data_type) {
            return Err(format!(
                "partition `{}` is {data_type}: partitions are text, whole numbers, booleans and dates",
                partition.name()
            ));
        }
    }
    StructType::try_new(columns).map_err(|error| error.to_string())
}

/// Do all readers know values of this type by the text that we write for them?
fn has_plain_text(data_type: &DeltaType) -> bool {
    let DeltaType::Primitive(primitive) = data_type else {
        return false;
    };
    matches!(
        primitive,
        PrimitiveType::String
            | PrimitiveType::Byte
            | PrimitiveType::Short
            | PrimitiveType::Integer
            | PrimitiveType::Long
            | PrimitiveType::Boolean
            | PrimitiveType::Date
    )
}

/// Is there a column of local times anywhere? They need a feature of the table.
pub fn has_local_times(columns: &StructType) -> bool {
    fn is_in(data_type: &DeltaType) -> bool {
        match data_type {
            DeltaType::Primitive(primitive) => *primitive == PrimitiveType::TimestampNtz,
            DeltaType::Struct(columns) => has_local_times(columns),
            DeltaType::Array(array) => is_in(&array.element_type),
            DeltaType::Map(map) => is_in(&map.key_type) || is_in(&map.value_type),
            DeltaType::Variant(_) => false,
        }
    }
    columns.fields().any(|column| is_in(&column.data_type))
}

/// May values of a primitive type be written to a column of another one? Nothing is rounded.
fn fits(own: &PrimitiveType, table: &PrimitiveType) -> bool {
    use PrimitiveType::{Byte, Decimal, Double, Float, Integer, Long, Short};
    match (own, table) {
        (Byte, Short | Integer | Long) | (Short, Integer | Long) | (Integer, Long) | (Float, Double) => true,
        (Decimal(own), Decimal(table)) => {
            let whole = |precision: u8, scale: u8| precision.saturating_sub(scale);
            table.scale() >= own.scale()
                && whole(table.precision(), table.scale()) >= whole(own.precision(), own.scale())
        }
        _ => own == table,
    }
}

/// The columns of a table with those that `own` has besides, at any depth.
///
/// # Errors
/// The columns that do not go together.
pub fn merged(table: &StructType, own: &StructType) -> Result<StructType, String> {
    merged_below("", table, own)
}

fn merged_below(path: &str, table: &StructType, own: &StructType) -> Result<StructType, String> {
    let mut columns: Vec<StructField> = Vec::new();
    for known in table.fields() {
        let Some(column) = own.field(&known.name) else {
            if !known.nullable {
                return Err(format!(
                    "column `{path}{}` takes no null in the table, and the rows lack it",
                    known.name
                ));
            }
            columns.push(known.clone());
            continue;
        };
        let data_type = merged_type(&format!("{path}{}", known.name), &known.data_type, &column.data_type)?;
        columns.push(StructField { data_type, ..known.clone() });
    }
    for column in own.fields().filter(|column| table.field(&column.name).is_none()) {
        let lower = column.name.to_lowercase();
        if let Some(other) = table.fields().find(|known| known.name.to_lowercase() == lower) {
            return Err(format!(
                "column `{path}{}` is `{path}{}` in the table, and capital letters do not tell columns apart",
                column.name, other.name
            ));
        }
        columns.push(column.clone());
    }
    StructType::try_new(columns).map_err(|error| error.to_string())
}

fn merged_type(path: &str, table: &DeltaType, own: &DeltaType) -> Result<DeltaType, String> {
    let below = |name: &str| format!("{path}.{name}");
    match (table, own) {
        (DeltaType::Struct(table), DeltaType::Struct(own)) => {
            if let Some(strict) = table.fields().find(|column| !column.nullable) {
                return Err(format!("column `{}` takes no null in the table", below(&strict.name)));
            }
            Ok(merged_below(&format!("{path}."), table, own)?.into())
        }
        (DeltaType::Array(table), DeltaType::Array(own)) if table.contains_null => {
            let element = merged_type(&below("element"), &table.element_type, &own.element_type)?;
            Ok(ArrayType::new(element, true).into())
        }
        (DeltaType::Map(table), DeltaType::Map(own)) if table.value_contains_null => {
            let key = merged_type(&below("key"), &table.key_type, &own.key_type)?;
            Ok(MapType::new(key, merged_type(&below("value"), &table.value_type, &own.value_type)?, true)
                .into())
        }
        (DeltaType::Primitive(known), DeltaType::Primitive(given)) if fits(given, known) => Ok(table.clone()),
        _ => Err(format!("column `{path}` is {table} in the table, and {own} in the rows")),
    }
}

/// The columns of data files, which are those of the rows, each with the type that it has in the table.
///
/// # Errors
/// If a type of the table has no form in Arrow.
pub fn in_files(table: &StructType, own: &StructType, partitions: &[String]) -> Result<SchemaRef, String> {
    let is_partition = |name: &String| partitions.contains(name);
    let columns = own.fields().filter(|column| !is_partition(&column.name)).map(|column| {
        let known = table.field(&column.name);
        let known = known.ok_or_else(|| format!("the table has no column `{}`", column.name))?;
        Ok(StructField::new(
            column.name.clone(),
            written(&known.data_type, &column.data_type),
            known.nullable,
        ))
    });
    let columns: Vec<StructField> = columns.collect::<Result<_, String>>()?;
    let columns = StructType::try_new(columns).map_err(|error| error.to_string())?;
    let schema: Schema = (&columns).try_into_arrow().map_err(|error| error.to_string())?;
    Ok(Arc::new(schema))
}

/// The fields of `own`, each with the type that the table has for it.
fn written(table: &DeltaType, own: &DeltaType) -> DeltaType {
    match (table, own) {
        (DeltaType::Struct(table), DeltaType::Struct(own)) => {
            let fields = own.fields().map(|field| {
                let known = table.field(&field.name).unwrap_or(field);
                StructField::nullable(field.name.clone(), written(&known.data_type, &field.data_type))
            });
            // The names are those of a struct that is one.
            StructType::try_new(fields).map_or_else(|_| DeltaType::Struct(own.clone()), DeltaType::from)
        }
        (DeltaType::Array(table), DeltaType::Array(own)) => {
            ArrayType::new(written(&table.element_type, &own.element_type), true).into()
        }
        (DeltaType::Map(table), DeltaType::Map(own)) => {
            let key = written(&table.key_type, &own.key_type);
            MapType::new(key, written(&table.value_type, &own.value_type), true).into()
        }
        _ => table.clone(),
    }
}

/// A row that its column cannot take. It holds no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("a value of column `{column}` is beyond what {data_type} holds")]
    Beyond { column: String, data_type: String },
    #[error("null in column `{column}`, which takes none")]
    Null { column: String },
    #[error("no column `{column}`")]
    Missing { column: String },
    #[error("columns of different lengths")]
    Uneven,
}

/// Rows as data files of this schema have them.
///
/// # Errors
/// [`Unfit`]
pub fn cast(rows: &RecordBatch, files: &SchemaRef) -> Result<RecordBatch, Unfit> {
    // A value that does not fit is an error, never null.
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(files.fields().len());
    for field in files.fields() {
        let column = field.name().clone();
        let Some(values) = rows.column_by_name(field.name()) else {
            return Err(Unfit::Missing { column });
        };
        let values = if values.data_type() == field.data_type() {
            values.clone()
        } else {
            // Arrow's own message quotes the value.
            let data_type = field.data_type().to_string();
            let cast = cast_with_options(values, field.data_type(), &options);
            cast.map_err(|_| Unfit::Beyond { column: column.clone(), data_type })?
        };
        if !field.is_nullable() && values.null_count() > 0 {
            return Err(Unfit::Null { column });
        }
        columns.push(values);
    }
    RecordBatch::try_new(files.clone(), columns).map_err(|_| Unfit::Uneven)
}
