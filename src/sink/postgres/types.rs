//! Which column of PostgreSQL takes which Arrow type (`docs/sinks/postgres.md`). Pure.

use arrow::datatypes::{DataType, TimeUnit};

/// What a column takes, as far as its bytes in a binary `COPY` are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    /// Digits behind the point, if the column says how many.
    Numeric {
        scale: Option<i32>,
    },
    /// Everything that takes the bytes of text: `text`, `varchar`, `char`, `citext`, enums.
    Text,
    Bytea,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Interval,
    Uuid,
    Json,
    Jsonb,
}

/// A type as `pg_type` has it; of a domain the one below it.
#[derive(Debug, Clone, Copy)]
pub struct PgType<'a> {
    pub name: &'a str,
    /// It is one of PostgreSQL's own.
    pub is_built_in: bool,
    pub is_enum: bool,
    /// As `pg_attribute.atttypmod`: -1 if there is none.
    pub modifier: i32,
}

impl Form {
    /// `None`: nothing we write fits into such a column.
    pub fn of(pg: PgType<'_>) -> Option<Self> {
        if pg.is_enum || pg.name == "citext" {
            return Some(Self::Text);
        }
        if !pg.is_built_in {
            return None;
        }
        Some(match pg.name {
            "bool" => Self::Bool,
            "int2" => Self::Int2,
            "int4" => Self::Int4,
            "int8" => Self::Int8,
            "float4" => Self::Float4,
            "float8" => Self::Float8,
            "numeric" => Self::Numeric { scale: scale(pg.modifier) },
            "text" | "varchar" | "bpchar" => Self::Text,
            "bytea" => Self::Bytea,
            "date" => Self::Date,
            "time" => Self::Time,
            "timestamp" => Self::Timestamp,
            "timestamptz" => Self::TimestampTz,
            "interval" => Self::Interval,
            "uuid" => Self::Uuid,
            "json" => Self::Json,
            "jsonb" => Self::Jsonb,
            _ => return None,
        })
    }

    /// May it be part of a key? What has no equality cannot.
    pub fn has_equality(self) -> bool {
        self != Self::Json
    }
}

/// The scale in the modifier of a `numeric`: its lower 11 bits, with a sign, behind a header of four.
fn scale(modifier: i32) -> Option<i32> {
    let packed = modifier.checked_sub(4).filter(|packed| *packed >= 0)? & 0x7ff;
    Some((packed ^ 1024) - 1024)
}

/// The type of a column that we create.
///
/// # Errors
/// What the Arrow type is, if there is none for it.
pub fn declared(data_type: &DataType) -> Result<String, String> {
    Ok(match data_type {
        DataType::Dictionary(_, value) => return declared(value),
        DataType::Boolean => "boolean".to_owned(),
        DataType::Int8 | DataType::Int16 | DataType::UInt8 => "smallint".to_owned(),
        DataType::Int32 | DataType::UInt16 => "integer".to_owned(),
        DataType::Int64 | DataType::UInt32 => "bigint".to_owned(),
        DataType::UInt64 => "numeric(20,0)".to_owned(),
        DataType::Float16 | DataType::Float32 => "real".to_owned(),
        DataType::Float64 => "double precision".to_owned(),
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => {
            // A negative scale is zeros before the point.
            let zeros = u32::from(scale.min(&0).unsigned_abs());
            format!("numeric({},{})", u32::from(*precision) + zeros, scale.max(&0))
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Null => "text".to_owned(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "bytea".to_owned()
        }
        DataType::Date32 | DataType::Date64 => "date".to_owned(),
        DataType::Time32(_) | DataType::Time64(_) => "time".to_owned(),
        DataType::Timestamp(_, None) => "timestamp".to_owned(),
        DataType::Timestamp(_, Some(_)) => "timestamptz".to_owned(),
        DataType::Duration(_) | DataType::Interval(_) => "interval".to_owned(),
        nested if is_nested(nested) => "jsonb".to_owned(),
        other => return Err(other.to_string()),
    })
}

pub fn is_nested(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Struct(_)
            | DataType::List(_)
            | DataType::LargeList(_)
            | DataType::FixedSizeList(..)
            | DataType::Map(..)
    )
}

/// May values of this type be written to a column that takes `form`? Whole numbers are looked at one by one; everything
/// else fits by its type or not at all, so that nothing is rounded but fractions of a microsecond.
pub fn fits(data_type: &DataType, form: Form) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => fits(value, form),
        DataType::Null => true,
        DataType::Boolean => form == Form::Bool,
        data_type if data_type.is_integer() => whole_fits(data_type, form),
        DataType::Float16 | DataType::Float32 => matches!(form, Form::Float4 | Form::Float8),
        DataType::Float64 => form == Form::Float8,
        DataType::Decimal128(_, own) | DataType::Decimal256(_, own) => match form {
            Form::Numeric { scale } => scale.is_none_or(|scale| i32::from(*own) <= scale),
            _ => false,
        },
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            matches!(form, Form::Text | Form::Uuid | Form::Json | Form::Jsonb)
        }
        DataType::FixedSizeBinary(16) => matches!(form, Form::Bytea | Form::Uuid),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            form == Form::Bytea
        }
        DataType::Date32 | DataType::Date64 => form == Form::Date,
        DataType::Time32(_) | DataType::Time64(_) => form == Form::Time,
        DataType::Timestamp(_, zone) => {
            form == if zone.is_some() { Form::TimestampTz } else { Form::Timestamp }
        }
        DataType::Duration(_) | DataType::Interval(_) => form == Form::Interval,
        nested if is_nested(nested) => matches!(form, Form::Json | Form::Jsonb | Form::Text),
        _ => false,
    }
}

fn whole_fits(data_type: &DataType, form: Form) -> bool {
    let bits = data_type.primitive_width().unwrap_or(8) * 8;
    match form {
        Form::Int2 | Form::Int4 | Form::Int8 => true,
        Form::Numeric { scale } => scale.is_none_or(|scale| scale >= 0),
        // Floats hold whole numbers of 53 and of 24 bits.
        Form::Float8 => bits <= 32,
        Form::Float4 => bits <= 16,
        _ => false,
    }
}

/// Is there a column that takes values of both types?
pub fn share_a_column(one: &DataType, other: &DataType) -> bool {
    const FORMS: [Form; 17] = [
        Form::Bool,
        Form::Int2,
        Form::Int4,
        Form::Int8,
        Form::Float4,
        Form::Float8,
        Form::Numeric { scale: None },
        Form::Text,
        Form::Bytea,
        Form::Date,
        Form::Time,
        Form::Timestamp,
        Form::TimestampTz,
        Form::Interval,
        Form::Uuid,
        Form::Json,
        Form::Jsonb,
    ];
    FORMS.iter().any(|form| fits(one, *form) && fits(other, *form))
}

/// Microseconds of a unit, as a factor and a divisor.
pub fn micros(unit: TimeUnit) -> (i64, i64) {
    match unit {
        TimeUnit::Second => (1_000_000, 1),
        TimeUnit::Millisecond => (1_000, 1),
        TimeUnit::Microsecond => (1, 1),
        TimeUnit::Nanosecond => (1, 1_000),
    }
}
