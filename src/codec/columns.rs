//! Growable columns that can be cut back to the last good row.
//!
//! Decoding appends to a tree of columns field by field. When a record turns out to be bad half-way,
//! [`Column::truncate`] takes every column back to where the record began, so a bad record never
//! shifts its neighbours. At the end the buffers become Arrow arrays without being copied.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, FixedSizeBinaryArray, ListArray,
    MapArray, NullArray, PrimitiveArray, StringArray, StructArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Decimal256Type, FieldRef, Float32Type,
    Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, Time32MillisecondType, Time64MicrosecondType,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, UInt32Type,
    UInt64Type, i256,
};
use arrow::error::ArrowError;

use super::limits::CELL_BYTES;

/// One column under construction.
#[derive(Debug)]
pub struct Column {
    field: FieldRef,
    validity: Option<BooleanBufferBuilder>,
    /// See [`Column::width`].
    width: usize,
    pub data: Data,
}

/// The values of a column. Lengths are those of the column, nulls have a placeholder.
#[derive(Debug)]
pub enum Data {
    Null(usize),
    Boolean(BooleanBufferBuilder),
    I8(Vec<i8>),
    I16(Vec<i16>),
    I32(Vec<i32>),
    U32(Vec<u32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    I128(Vec<i128>),
    I256(Vec<i256>),
    /// Text or bytes.
    Bytes {
        offsets: Vec<i32>,
        bytes: Vec<u8>,
    },
    Fixed {
        width: usize,
        bytes: Vec<u8>,
    },
    /// A list, or a map as a list of key-value structs.
    List {
        offsets: Vec<i32>,
        item: Box<Column>,
    },
    Struct {
        len: usize,
        fields: Vec<Column>,
    },
}

/// A column grew beyond what 32-bit offsets can address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overflow;

impl Column {
    /// An empty column of the field's type.
    ///
    /// # Errors
    /// If no codec makes this type.
    pub fn new(field: &FieldRef) -> Result<Self, ArrowError> {
        let data = match field.data_type() {
            DataType::Null => Data::Null(0),
            DataType::Boolean => Data::Boolean(BooleanBufferBuilder::new(0)),
            DataType::Int8 => Data::I8(Vec::new()),
            DataType::Int16 => Data::I16(Vec::new()),
            DataType::Int32 | DataType::Date32 | DataType::Time32(TimeUnit::Millisecond) => {
                Data::I32(Vec::new())
            }
            DataType::UInt32 => Data::U32(Vec::new()),
            DataType::UInt64 => Data::U64(Vec::new()),
            DataType::Int64 | DataType::Time64(TimeUnit::Microsecond) | DataType::Timestamp(_, _) => {
                Data::I64(Vec::new())
            }
            DataType::Float32 => Data::F32(Vec::new()),
            DataType::Float64 => Data::F64(Vec::new()),
            DataType::Decimal128(_, _) => Data::I128(Vec::new()),
            DataType::Decimal256(_, _) => Data::I256(Vec::new()),
            DataType::Utf8 | DataType::Binary => Data::Bytes { offsets: vec![0], bytes: Vec::new() },
            DataType::FixedSizeBinary(width) => {
                Data::Fixed { width: usize::try_from(*width).unwrap_or_default(), bytes: Vec::new() }
            }
            DataType::List(item) | DataType::Map(item, _) => {
                Data::List { offsets: vec![0], item: Box::new(Column::new(item)?) }
            }
            DataType::Struct(fields) => {
                Data::Struct { len: 0, fields: fields.iter().map(Column::new).collect::<Result<_, _>>()? }
            }
            other => {
                return Err(ArrowError::NotYetImplemented(format!("a decoded column of type {other}")));
            }
        };
        let width = match &data {
            Data::Struct { fields, .. } => fields.iter().map(Self::width).sum::<usize>().max(1),
            Data::Fixed { width, .. } => (width / CELL_BYTES).max(1),
            _ => 1,
        };
        Ok(Self {
            field: field.clone(),
            validity: field.is_nullable().then(|| BooleanBufferBuilder::new(0)),
            width,
            data,
        })
    }

    /// How many columns a null fills: a struct's all have a placeholder, and a long `fixed` is like several.
    pub fn width(&self) -> usize {
        self.width
    }

    pub fn len(&self) -> usize {
        match &self.data {
            Data::Null(len) | Data::Struct { len, .. } => *len,
            Data::Boolean(values) => values.len(),
            Data::I8(values) => values.len(),
            Data::I16(values) => values.len(),
            Data::I32(values) => values.len(),
            Data::U32(values) => values.len(),
            Data::U64(values) => values.len(),
            Data::I64(values) => values.len(),
            Data::F32(values) => values.len(),
            Data::F64(values) => values.len(),
            Data::I128(values) => values.len(),
            Data::I256(values) => values.len(),
            Data::Bytes { offsets, .. } | Data::List { offsets, .. } => offsets.len() - 1,
            // A width of 0 has no bytes to count; schemas with it are refused where it matters.
            Data::Fixed { width, bytes } => bytes.len().checked_div(*width).unwrap_or_default(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn is_nullable(&self) -> bool {
        self.validity.is_some()
    }

    /// Bytes that its buffers have room for.
    #[cfg(test)]
    pub fn capacity_bytes(&self) -> usize {
        fn of<T>(values: &Vec<T>) -> usize {
            values.capacity() * size_of::<T>()
        }
        let bits = |values: &BooleanBufferBuilder| values.capacity().div_ceil(8);
        let own = match &self.data {
            Data::Null(_) => 0,
            Data::Boolean(values) => bits(values),
            Data::I8(values) => of(values),
            Data::I16(values) => of(values),
            Data::I32(values) => of(values),
            Data::U32(values) => of(values),
            Data::U64(values) => of(values),
            Data::I64(values) => of(values),
            Data::F32(values) => of(values),
            Data::F64(values) => of(values),
            Data::I128(values) => of(values),
            Data::I256(values) => of(values),
            Data::Bytes { offsets, bytes } => of(offsets) + of(bytes),
            Data::Fixed { bytes, .. } => of(bytes),
            Data::List { offsets, item } => of(offsets) + item.capacity_bytes(),
            Data::Struct { fields, .. } => fields.iter().map(Self::capacity_bytes).sum(),
        };
        own + self.validity.as_ref().map_or(0, bits)
    }

    /// Cuts the column back to `len` rows.
    pub fn truncate(&mut self, len: usize) {
        if let Some(validity) = &mut self.validity {
            validity.truncate(len);
        }
        match &mut self.data {
            Data::Null(count) => *count = len,
            Data::Boolean(values) => values.truncate(len),
            Data::I8(values) => values.truncate(len),
            Data::I16(values) => values.truncate(len),
            Data::I32(values) => values.truncate(len),
            Data::U32(values) => values.truncate(len),
            Data::U64(values) => values.truncate(len),
            Data::I64(values) => values.truncate(len),
            Data::F32(values) => values.truncate(len),
            Data::F64(values) => values.truncate(len),
            Data::I128(values) => values.truncate(len),
            Data::I256(values) => values.truncate(len),
            Data::Bytes { offsets, bytes } => {
                offsets.truncate(len + 1);
                bytes.truncate(last(offsets));
            }
            Data::Fixed { width, bytes } => bytes.truncate(len * *width),
            Data::List { offsets, item } => {
                offsets.truncate(len + 1);
                item.truncate(last(offsets));
            }
            Data::Struct { len: count, fields } => {
                *count = len;
                for field in fields {
                    field.truncate(len);
                }
            }
        }
    }

    /// Marks the value that was just appended to [`Column::data`] as present.
    pub fn mark_valid(&mut self) {
        if let Some(validity) = &mut self.validity {
            validity.append(true);
        }
    }

    /// Appends a null. In a column that is not nullable this is the placeholder below a null parent.
    pub fn push_null(&mut self) {
        if let Some(validity) = &mut self.validity {
            validity.append(false);
        }
        match &mut self.data {
            Data::Null(len) => *len += 1,
            Data::Boolean(values) => values.append(false),
            Data::I8(values) => values.push(0),
            Data::I16(values) => values.push(0),
            Data::I32(values) => values.push(0),
            Data::U32(values) => values.push(0),
            Data::U64(values) => values.push(0),
            Data::I64(values) => values.push(0),
            Data::F32(values) => values.push(0.0),
            Data::F64(values) => values.push(0.0),
            Data::I128(values) => values.push(0),
            Data::I256(values) => values.push(i256::ZERO),
            Data::Bytes { offsets, .. } | Data::List { offsets, .. } => {
                offsets.push(offsets.last().copied().unwrap_or_default());
            }
            Data::Fixed { width, bytes } => bytes.resize(bytes.len() + *width, 0),
            Data::Struct { len, fields } => {
                *len += 1;
                fields.iter_mut().for_each(Column::push_null);
            }
        }
    }

    /// The finished array.
    ///
    /// # Errors
    /// If the columns of a struct have different lengths: a bug of a codec, caught here.
    pub fn finish(self) -> Result<ArrayRef, ArrowError> {
        self.finish_below(None)
    }

    /// What is below a null struct is null itself. Arrow does not ask for it, but DataFusion's field access
    /// does not look at the struct (apache/datafusion#25120): `s['n']` would be the placeholder.
    fn finish_below(self, parent: Option<&NullBuffer>) -> Result<ArrayRef, ArrowError> {
        let len = self.len();
        let own = self.validity.map(|mut validity| NullBuffer::new(validity.finish()));
        // Other lengths are refused by the struct.
        let parent = parent.filter(|parent| parent.len() == len);
        let nulls = NullBuffer::union(own.as_ref(), parent);
        let data_type = self.field.data_type().clone();
        Ok(match self.data {
            Data::Null(_) => Arc::new(NullArray::new(len)),
            Data::Boolean(mut values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            Data::I8(values) => primitive::<Int8Type>(values, nulls, data_type)?,
            Data::I16(values) => primitive::<Int16Type>(values, nulls, data_type)?,
            Data::I32(values) => match data_type {
                DataType::Date32 => primitive::<Date32Type>(values, nulls, data_type)?,
                DataType::Time32(_) => primitive::<Time32MillisecondType>(values, nulls, data_type)?,
                _ => primitive::<Int32Type>(values, nulls, data_type)?,
            },
            Data::U32(values) => primitive::<UInt32Type>(values, nulls, data_type)?,
            Data::U64(values) => primitive::<UInt64Type>(values, nulls, data_type)?,
            Data::I64(values) => finish_i64(values, nulls, data_type)?,
            Data::F32(values) => primitive::<Float32Type>(values, nulls, data_type)?,
            Data::F64(values) => primitive::<Float64Type>(values, nulls, data_type)?,
            Data::I128(values) => primitive::<Decimal128Type>(values, nulls, data_type)?,
            Data::I256(values) => primitive::<Decimal256Type>(values, nulls, data_type)?,
            Data::Bytes { offsets, bytes } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                let bytes = Buffer::from_vec(bytes);
                if data_type == DataType::Utf8 {
                    Arc::new(StringArray::try_new(offsets, bytes, nulls)?)
                } else {
                    Arc::new(BinaryArray::try_new(offsets, bytes, nulls)?)
                }
            }
            Data::Fixed { width, bytes } => {
                let width = i32::try_from(width).unwrap_or(i32::MAX);
                Arc::new(FixedSizeBinaryArray::try_new(width, Buffer::from_vec(bytes), nulls)?)
            }
            Data::List { offsets, item } => {
                let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
                let field = item.field.clone();
                let values = item.finish()?;
                if let DataType::Map(_, is_sorted) = data_type {
                    let entries = values.as_any().downcast_ref::<StructArray>().cloned();
                    let entries = entries.ok_or_else(|| {
                        ArrowError::SchemaError("a map's entries are not a struct".to_owned())
                    })?;
                    Arc::new(MapArray::try_new(field, offsets, entries, nulls, is_sorted)?)
                } else {
                    Arc::new(ListArray::try_new(field, offsets, values, nulls)?)
                }
            }
            Data::Struct { fields, .. } => finish_struct(data_type, fields, nulls, len)?,
        })
    }
}

fn finish_struct(
    data_type: DataType,
    fields: Vec<Column>,
    nulls: Option<NullBuffer>,
    len: usize,
) -> Result<ArrayRef, ArrowError> {
    let DataType::Struct(types) = data_type else {
        return Err(ArrowError::SchemaError("not a struct".to_owned()));
    };
    let arrays = fields.into_iter().map(|field| field.finish_below(nulls.as_ref()));
    let arrays = arrays.collect::<Result<Vec<_>, _>>()?;
    Ok(Arc::new(StructArray::try_new_with_length(types, arrays, nulls, len)?))
}

fn finish_i64(
    values: Vec<i64>,
    nulls: Option<NullBuffer>,
    data_type: DataType,
) -> Result<ArrayRef, ArrowError> {
    match data_type {
        DataType::Time64(_) => primitive::<Time64MicrosecondType>(values, nulls, data_type),
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            primitive::<TimestampMillisecondType>(values, nulls, data_type)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            primitive::<TimestampMicrosecondType>(values, nulls, data_type)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            primitive::<TimestampNanosecondType>(values, nulls, data_type)
        }
        _ => primitive::<Int64Type>(values, nulls, data_type),
    }
}

/// A primitive array of `data_type`: precision, scale and time zone are of the type, not the values.
fn primitive<T: ArrowPrimitiveType>(
    values: Vec<T::Native>,
    nulls: Option<NullBuffer>,
    data_type: DataType,
) -> Result<ArrayRef, ArrowError> {
    let array = PrimitiveArray::<T>::try_new(ScalarBuffer::from(values), nulls)?;
    Ok(Arc::new(array.with_data_type(data_type)))
}

fn last(offsets: &[i32]) -> usize {
    offsets.last().map_or(0, |end| *end as usize)
}

/// Closes the value that was just appended behind `offsets`.
///
/// # Errors
/// [`Overflow`] beyond 2 GiB or 2^31 items in one batch.
pub fn push_offset(offsets: &mut Vec<i32>, end: usize) -> Result<(), Overflow> {
    offsets.push(i32::try_from(end).map_err(|_| Overflow)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{Field, Fields};

    use super::*;

    #[test]
    fn cutting_back_leaves_exactly_the_rows_before() {
        let item = Arc::new(Field::new("item", DataType::Utf8, true));
        let inner = Fields::from(vec![
            Field::new("n", DataType::Int64, false),
            Field::new("xs", DataType::List(item), true),
        ]);
        let field = Arc::new(Field::new("s", DataType::Struct(inner), true));
        let mut column = Column::new(&field).unwrap();
        let push = |column: &mut Column, n: i64, complete: bool| {
            let Data::Struct { len, fields } = &mut column.data else { panic!() };
            let Data::I64(values) = &mut fields[0].data else { panic!() };
            values.push(n);
            let Data::List { offsets, item } = &mut fields[1].data else { panic!() };
            let Data::Bytes { offsets: ends, bytes } = &mut item.data else { panic!() };
            bytes.extend_from_slice(b"text");
            push_offset(ends, bytes.len()).unwrap();
            item.mark_valid();
            if complete {
                let end = item.len();
                push_offset(offsets, end).unwrap();
                fields[1].mark_valid();
                *len += 1;
                column.mark_valid();
            }
        };
        push(&mut column, 1, true);
        column.push_null();
        push(&mut column, 2, false);
        column.truncate(2);
        push(&mut column, 3, true);
        let array = column.finish().unwrap();
        assert_eq!((array.len(), array.null_count()), (3, 1));
        let structs = array.as_any().downcast_ref::<StructArray>().unwrap();
        let numbers = structs.column(0).as_any().downcast_ref::<PrimitiveArray<Int64Type>>().unwrap();
        assert_eq!(numbers.values(), &[1, 0, 3]);
        assert!(!numbers.is_valid(1), "a field of a null struct is null, though its type has no null");
        let lists = structs.column(1).as_any().downcast_ref::<ListArray>().unwrap();
        assert_eq!(lists.values().len(), 2);
    }
}
