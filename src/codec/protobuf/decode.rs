//! From the wire into columns, without an object tree.
//!
//! Fields come in any order, and what comes last counts, so a message is read in two steps: single values are noted
//! where they are, repeated ones go to their columns at once; then every column gets its value, in order.

use std::collections::HashMap;
use std::ops::{Deref, DerefMut};

use super::shape::{Absent, Field, Message, Op, Read, Shape};
use super::wire::{Kind, Raw, Wire, zigzag};
use super::{json, tree};
use crate::codec::columns::{Column, Data, Overflow, push_offset};
use crate::codec::limits::{Spare, Spent, VALUE_DEPTH_MAX};
use crate::model::code;

/// Entries of a map whose keys are compared with one another: so few cost less than a table of them.
const PAIRS_MAX: usize = 16;

/// What is wrong with a record's bytes. Codes are stable: they are in metrics and dead letters.
///
/// One word: it is in the result of every step, and almost never there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bad(Box<Problem>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub code: &'static str,
    pub message: String,
    /// Field names, from the top.
    pub path: Vec<String>,
}

impl Deref for Bad {
    type Target = Problem;

    fn deref(&self) -> &Problem {
        &self.0
    }
}

impl DerefMut for Bad {
    fn deref_mut(&mut self) -> &mut Problem {
        &mut self.0
    }
}

impl Bad {
    #[cold]
    pub fn new(code: &'static str, message: String) -> Self {
        Self(Box::new(Problem { code, message, path: Vec::new() }))
    }

    pub fn truncated() -> Self {
        Self::new(code::TRUNCATED, "the record ends in the middle of a value".to_owned())
    }

    pub fn overflow() -> Self {
        Self::new(code::OVERFLOW, "a number is longer than its type allows".to_owned())
    }

    fn size() -> Self {
        Self::new(code::SIZE, "the columns of the batch grew too large; set a smaller `batch:`".to_owned())
    }

    pub fn depth() -> Self {
        Self::new(code::DEPTH, format!("a value nests deeper than {VALUE_DEPTH_MAX} levels"))
    }

    pub fn at(mut self, field: &Field) -> Self {
        self.path.insert(0, field.name.clone());
        self
    }
}

impl From<Overflow> for Bad {
    fn from(_: Overflow) -> Self {
        Self::size()
    }
}

impl From<Spent> for Bad {
    fn from(_: Spent) -> Self {
        let message = "it fills more columns, or becomes more text, than a record of its size may";
        Self::new(code::SIZE, message.to_owned())
    }
}

pub type Result<T> = std::result::Result<T, Bad>;

/// What is noted of the messages that are open; kept between records for its memory.
#[derive(Debug, Default)]
pub struct Scratch {
    slots: Vec<Slot>,
    entries: Vec<Entry>,
    pairs: Vec<(Raw, Raw)>,
}

/// What was found of a field that is not repeated, or which field of a oneof is present.
#[derive(Debug)]
enum Slot {
    Absent,
    Raw(Raw),
    /// A message in several parts: together they are the message.
    Joined(Vec<u8>),
    Member(usize),
}

/// An entry of a map: the place of its field, and its bytes.
#[derive(Debug, Clone, Copy)]
struct Entry {
    field: usize,
    start: usize,
    end: usize,
}

/// A map's key, however it was written.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key<'a> {
    Number(u64),
    Text(&'a [u8]),
}

/// Appends the message that begins at `start` of `bytes`.
///
/// # Errors
/// What is wrong; then the columns hold parts of the record and have to be truncated.
pub fn record(
    shape: &Shape,
    bytes: &[u8],
    start: usize,
    columns: &mut [Column],
    scratch: &mut Scratch,
) -> Result<()> {
    scratch.slots.clear();
    scratch.entries.clear();
    scratch.pairs.clear();
    let mut reader = Reader { trees: &shape.trees, bytes, spare: Spare::of(bytes.len()), scratch };
    reader.message(&shape.message, start, bytes.len(), columns)
}

struct Reader<'a, 's> {
    trees: &'a [Message],
    bytes: &'a [u8],
    spare: Spare,
    scratch: &'s mut Scratch,
}

impl<'a> Reader<'a, '_> {
    fn message(&mut self, message: &Message, start: usize, end: usize, columns: &mut [Column]) -> Result<()> {
        let slots = self.scratch.slots.len();
        let entries = self.scratch.entries.len();
        let count = message.fields.len() + message.oneof_count;
        self.scratch.slots.resize_with(slots + count, || Slot::Absent);
        let mut wire = Wire::new(self.bytes, start, end);
        while !wire.is_at_end() {
            let (number, kind) = wire.tag()?;
            let raw = wire.value(number, kind);
            let Some(index) = message.find(number) else {
                // A field of another version.
                raw?;
                continue;
            };
            let field = &message.fields[index];
            raw.and_then(|raw| self.take(message, index, slots, kind, raw, &mut columns[index]))
                .map_err(|bad| bad.at(field))?;
        }
        if self.scratch.entries.len() - entries > 1 {
            // Stable: of two entries with one key the later one counts.
            self.scratch.entries[entries..].sort_by_key(|entry| entry.field);
        }
        let mut from = entries;
        for (index, (field, column)) in message.fields.iter().zip(columns).enumerate() {
            let mut to = from;
            if matches!(field.read, Read::Map { .. }) {
                let own = self.scratch.entries[from..].iter().take_while(|entry| entry.field == index);
                to += own.count();
            }
            self.close(field, slots + index, from..to, column).map_err(|bad| bad.at(field))?;
            from = to;
        }
        self.scratch.slots.truncate(slots);
        self.scratch.entries.truncate(entries);
        Ok(())
    }

    /// Notes a value, or appends it if its field is repeated.
    fn take(
        &mut self,
        message: &Message,
        index: usize,
        slots: usize,
        kind: Kind,
        raw: Raw,
        column: &mut Column,
    ) -> Result<()> {
        let field = &message.fields[index];
        match &field.read {
            Read::One(op) => {
                expect(op, kind)?;
                if let Some(oneof) = field.oneof {
                    let place = slots + message.fields.len() + oneof;
                    if let Slot::Member(other) = self.scratch.slots[place]
                        && other != index
                    {
                        self.scratch.slots[slots + other] = Slot::Absent;
                    }
                    self.scratch.slots[place] = Slot::Member(index);
                }
                self.note(op, slots + index, raw);
                Ok(())
            }
            Read::List(op) => {
                let Data::List { item, .. } = &mut column.data else {
                    return Err(misfit());
                };
                match raw {
                    Raw::Bytes { start, end } if op.is_packable() && kind == Kind::Bytes => {
                        let mut packed = Wire::new(self.bytes, start, end);
                        while !packed.is_at_end() {
                            let raw = packed.value(0, op.kind())?;
                            self.value(op, raw, item)?;
                        }
                        Ok(())
                    }
                    raw => {
                        expect(op, kind)?;
                        self.value(op, raw, item)
                    }
                }
            }
            Read::Map { .. } => match raw {
                Raw::Bytes { start, end } if kind == Kind::Bytes => {
                    self.scratch.entries.push(Entry { field: index, start, end });
                    Ok(())
                }
                _ => Err(mismatch(kind)),
            },
        }
    }

    fn note(&mut self, op: &Op, place: usize, raw: Raw) {
        let slot = &mut self.scratch.slots[place];
        if matches!(slot, Slot::Absent) {
            *slot = Slot::Raw(raw);
            return;
        }
        let is_message =
            matches!(op, Op::Message(_) | Op::Timestamp | Op::Wrapper(_) | Op::Json(_) | Op::Tree(_));
        *slot = match (std::mem::replace(slot, Slot::Absent), raw) {
            (Slot::Raw(Raw::Bytes { start, end }), Raw::Bytes { start: again, end: to }) if is_message => {
                Slot::Joined([&self.bytes[start..end], &self.bytes[again..to]].concat())
            }
            (Slot::Joined(mut joined), Raw::Bytes { start, end }) if is_message => {
                joined.extend_from_slice(&self.bytes[start..end]);
                Slot::Joined(joined)
            }
            (_, raw) => Slot::Raw(raw),
        };
    }

    /// Gives a column the value of one message.
    fn close(
        &mut self,
        field: &Field,
        place: usize,
        entries: std::ops::Range<usize>,
        column: &mut Column,
    ) -> Result<()> {
        match &field.read {
            Read::One(op) => match std::mem::replace(&mut self.scratch.slots[place], Slot::Absent) {
                Slot::Raw(raw) => self.value(op, raw, column),
                Slot::Joined(joined) => {
                    let mut scratch = Scratch::default();
                    let mut reader = Reader {
                        trees: self.trees,
                        bytes: &joined,
                        spare: self.spare,
                        scratch: &mut scratch,
                    };
                    let done = reader.value(op, Raw::Bytes { start: 0, end: joined.len() }, column);
                    self.spare = reader.spare;
                    done
                }
                Slot::Absent | Slot::Member(_) => self.absent(field, op, column),
            },
            Read::List(_) => self.close_list(column),
            Read::Map { key, value } => {
                self.map(key, value, entries, column)?;
                self.close_list(column)
            }
        }
    }

    /// An empty list costs nothing on the wire either.
    fn close_list(&mut self, column: &mut Column) -> Result<()> {
        self.spare.take(1)?;
        let Data::List { offsets, item } = &mut column.data else {
            return Err(misfit());
        };
        push_offset(offsets, item.len())?;
        column.mark_valid();
        Ok(())
    }

    fn absent(&mut self, field: &Field, op: &Op, column: &mut Column) -> Result<()> {
        self.spare.take(field.width)?;
        match field.absent {
            Absent::Null => {
                column.push_null();
                Ok(())
            }
            Absent::Default => self.value(op, default(op), column),
            Absent::Bad => Err(Bad::new(code::TYPE_MISMATCH, "a required field is missing".to_owned())),
        }
    }

    fn map(
        &mut self,
        key: &Op,
        value: &Op,
        entries: std::ops::Range<usize>,
        column: &mut Column,
    ) -> Result<()> {
        let Data::List { item, .. } = &mut column.data else {
            return Err(misfit());
        };
        let before = self.scratch.pairs.len();
        for index in entries {
            let Entry { start, end, .. } = self.scratch.entries[index];
            self.scratch.pairs.push(pair(self.bytes, key, value, start, end)?);
        }
        let count = self.scratch.pairs.len() - before;
        let table = (count > PAIRS_MAX).then(|| self.last_of_keys(key, before));
        for index in before..before + count {
            let (raw_key, raw_value) = self.scratch.pairs[index];
            let is_last = match &table {
                Some(table) => table.get(&self.key(key, raw_key)) == Some(&index),
                None => {
                    let own = self.key(key, raw_key);
                    let later = &self.scratch.pairs[index + 1..before + count];
                    !later.iter().any(|(other, _)| self.key(key, *other) == own)
                }
            };
            if !is_last {
                continue;
            }
            let Data::Struct { len, fields } = &mut item.data else {
                return Err(misfit());
            };
            let [keys, values] = fields.as_mut_slice() else {
                return Err(misfit());
            };
            self.value(key, raw_key, keys)?;
            self.value(value, raw_value, values)?;
            *len += 1;
            item.mark_valid();
        }
        self.scratch.pairs.truncate(before);
        Ok(())
    }

    /// Of each key, the pair that counts.
    fn last_of_keys(&self, op: &Op, from: usize) -> HashMap<Key<'a>, usize> {
        let pairs = self.scratch.pairs.iter().enumerate().skip(from);
        pairs.map(|(index, (raw, _))| (self.key(op, *raw), index)).collect()
    }

    fn key(&self, op: &Op, raw: Raw) -> Key<'a> {
        match raw {
            // What fits no key of 32 bits is refused when it is read.
            Raw::Varint(number) if matches!(op, Op::Bool) => Key::Number(number.min(1)),
            Raw::Varint(number) | Raw::Bits64(number) => Key::Number(number),
            Raw::Bits32(number) => Key::Number(u64::from(number)),
            Raw::Bytes { start, end } => Key::Text(&self.bytes[start..end]),
        }
    }

    /// Appends one value, which is there.
    fn value(&mut self, op: &Op, raw: Raw, column: &mut Column) -> Result<()> {
        if let Op::Wrapper(inner) = op {
            let raw = wrapped(self.bytes, inner, raw)?;
            return self.value(inner, raw, column);
        }
        match (op, raw, &mut column.data) {
            (Op::Int32, Raw::Varint(number), Data::I32(values)) => values.push(int32(number)?),
            (Op::Sint32, Raw::Varint(number), Data::I32(values)) => {
                values.push(i32::try_from(zigzag(number)).map_err(|_| Bad::overflow())?);
            }
            (Op::Uint32, Raw::Varint(number), Data::U32(values)) => {
                values.push(u32::try_from(number).map_err(|_| Bad::overflow())?);
            }
            (Op::Int64, Raw::Varint(number), Data::I64(values)) => values.push(number as i64),
            (Op::Sint64, Raw::Varint(number), Data::I64(values)) => values.push(zigzag(number)),
            (Op::Uint64, Raw::Varint(number), Data::U64(values)) => values.push(number),
            (Op::Bool, Raw::Varint(number), Data::Boolean(values)) => values.append(number != 0),
            (Op::Sfixed32, Raw::Bits32(bits), Data::I32(values)) => values.push(bits as i32),
            (Op::Fixed32, Raw::Bits32(bits), Data::U32(values)) => values.push(bits),
            (Op::Float, Raw::Bits32(bits), Data::F32(values)) => values.push(f32::from_bits(bits)),
            (Op::Sfixed64, Raw::Bits64(bits), Data::I64(values)) => values.push(bits as i64),
            (Op::Fixed64, Raw::Bits64(bits), Data::U64(values)) => values.push(bits),
            (Op::Double, Raw::Bits64(bits), Data::F64(values)) => values.push(f64::from_bits(bits)),
            (Op::Enum(symbols), Raw::Varint(number), Data::Bytes { offsets, bytes }) => {
                let number = int32(number)?;
                match symbols.get(number) {
                    Some(name) => {
                        self.spare.take_text(name)?;
                        bytes.extend_from_slice(name.as_bytes());
                    }
                    None => bytes.extend_from_slice(number.to_string().as_bytes()),
                }
                push_offset(offsets, bytes.len())?;
            }
            (Op::Text, Raw::Bytes { start, end }, Data::Bytes { offsets, bytes }) => {
                let text = &self.bytes[start..end];
                std::str::from_utf8(text)
                    .map_err(|_| Bad::new(code::INVALID_UTF8, "a text is not UTF-8".to_owned()))?;
                bytes.extend_from_slice(text);
                push_offset(offsets, bytes.len())?;
            }
            (Op::Bytes, Raw::Bytes { start, end }, Data::Bytes { offsets, bytes }) => {
                bytes.extend_from_slice(&self.bytes[start..end]);
                push_offset(offsets, bytes.len())?;
            }
            (Op::Timestamp, Raw::Bytes { start, end }, Data::I64(values)) => {
                values.push(timestamp(self.bytes, start, end)?);
            }
            (Op::Json(kind), Raw::Bytes { start, end }, Data::Bytes { offsets, bytes }) => {
                bytes.extend_from_slice(json::text(*kind, self.bytes, start, end)?.as_bytes());
                push_offset(offsets, bytes.len())?;
            }
            (Op::Tree(index), Raw::Bytes { start, end }, Data::Bytes { offsets, bytes }) => {
                let text = tree::text(self.trees, *index, self.bytes, start..end, &mut self.spare)?;
                bytes.extend_from_slice(text.as_bytes());
                push_offset(offsets, bytes.len())?;
            }
            (Op::Message(message), Raw::Bytes { start, end }, Data::Struct { len, fields }) => {
                self.message(message, start, end, fields)?;
                *len += 1;
            }
            _ => return Err(misfit()),
        }
        column.mark_valid();
        Ok(())
    }
}

/// What is in a wrapper; nothing is the type's default.
pub fn wrapped(bytes: &[u8], inner: &Op, raw: Raw) -> Result<Raw> {
    let Raw::Bytes { start, end } = raw else {
        return Err(misfit());
    };
    let [value, _] = two(bytes, [Some(inner), None], start, end)?;
    Ok(value.unwrap_or_else(|| default(inner)))
}

/// Key and value of a map's entry, either of which may be left out.
pub fn pair(bytes: &[u8], key: &Op, value: &Op, start: usize, end: usize) -> Result<(Raw, Raw)> {
    let [raw_key, raw_value] = two(bytes, [Some(key), Some(value)], start, end)?;
    Ok((raw_key.unwrap_or_else(|| default(key)), raw_value.unwrap_or_else(|| default(value))))
}

/// The last values of fields 1 and 2 of a small message.
fn two(bytes: &[u8], ops: [Option<&Op>; 2], start: usize, end: usize) -> Result<[Option<Raw>; 2]> {
    let mut found = [None, None];
    let mut wire = Wire::new(bytes, start, end);
    while !wire.is_at_end() {
        let (number, kind) = wire.tag()?;
        let raw = wire.value(number, kind)?;
        let place = match number {
            1 => 0,
            2 => 1,
            _ => continue,
        };
        if let Some(op) = ops[place] {
            expect(op, kind)?;
            found[place] = Some(raw);
        }
    }
    Ok(found)
}

/// Microseconds since 1970; finer digits are cut off.
pub fn timestamp(bytes: &[u8], start: usize, end: usize) -> Result<i64> {
    let [seconds, nanos] = two(bytes, [Some(&Op::Int64), Some(&Op::Int32)], start, end)?;
    let number = |raw| if let Some(Raw::Varint(number)) = raw { number } else { 0 };
    let seconds = number(seconds) as i64;
    let nanos = int32(number(nanos))?;
    if !(0..1_000_000_000).contains(&nanos) {
        return Err(Bad::new(code::OVERFLOW, "nanoseconds of a timestamp are not below a second".to_owned()));
    }
    let micros =
        seconds.checked_mul(1_000_000).and_then(|micros| micros.checked_add(i64::from(nanos) / 1000));
    micros.ok_or_else(Bad::overflow)
}

/// Of a negative number all 64 bits are written.
pub fn int32(number: u64) -> Result<i32> {
    i32::try_from(number as i64).map_err(|_| Bad::overflow())
}

/// What is not written.
pub fn default(op: &Op) -> Raw {
    match op.kind() {
        Kind::Varint => Raw::Varint(0),
        Kind::Bits64 => Raw::Bits64(0),
        Kind::Bits32 => Raw::Bits32(0),
        Kind::Bytes | Kind::Group => Raw::Bytes { start: 0, end: 0 },
    }
}

/// Is the value written as its type is? Another version may have given the number to another type.
#[inline]
pub fn expect(op: &Op, kind: Kind) -> Result<()> {
    let is_group = || kind == Kind::Group && matches!(op, Op::Message(_) | Op::Tree(_));
    if op.kind() == kind || is_group() { Ok(()) } else { Err(mismatch(kind)) }
}

pub fn mismatch(kind: Kind) -> Bad {
    Bad::new(code::TYPE_MISMATCH, format!("it is written as {kind:?}, which is no way to write this field"))
}

/// A defect of ours.
pub fn misfit() -> Bad {
    Bad::new(code::TYPE_MISMATCH, "the column is of another type".to_owned())
}
