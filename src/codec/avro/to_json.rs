//! A record that contains itself as JSON text: from Avro's bytes, in the forms that all text has (`render`).
//!
//! It is what the rest of the record is: the writer's bytes, read as the reader's type. Objects have the writer's order,
//! and then the fields that it lacks. A value of a union of several types is as Avro's own JSON has it, `{"long": 5}`.

use super::arrow_type;
use super::big_decimal;
use super::decode::{Cursor, Problem, Result, push_decimal};
use super::node::{Kind, Logical, Node, Record};
use super::program::{Op, RecordOp, Step, ValueOp};
use crate::codec::columns::Data;
use crate::render;

impl Cursor<'_> {
    /// Appends the record of [`Program::texts`](super::program::Program::texts) that comes next.
    ///
    /// # Errors
    /// What is wrong with its bytes; then a part of the text may have been appended.
    pub fn json(&mut self, index: usize, out: &mut Vec<u8>) -> Result<()> {
        let program = self.program;
        let text = &program.texts[index];
        let start = out.len();
        let end_max = start + self.budget.text;
        self.put_record(&text.op, &text.record, out, end_max)?;
        self.budget.text -= (out.len() - start).min(self.budget.text);
        Ok(())
    }

    fn put_record(
        &mut self,
        op: &RecordOp,
        record: &Record,
        out: &mut Vec<u8>,
        end_max: usize,
    ) -> Result<()> {
        self.deeper(|cursor| {
            let mut sign = b'{';
            let mut name = |name: &str, out: &mut Vec<u8>| {
                out.push(std::mem::replace(&mut sign, b','));
                render::put_text(name, out);
                out.push(b':');
            };
            for step in &op.steps {
                match step {
                    Step::Read { name: written, column, op } => {
                        let field = &record.fields[*column];
                        name(&field.name, out);
                        cursor.put(op, &field.node, out, end_max).map_err(|mut bad| {
                            bad.path.insert(0, written.clone());
                            bad
                        })?;
                    }
                    Step::Skip(skip) => cursor.skip(skip)?,
                }
            }
            for default in &op.defaults {
                let field = &record.fields[default.column];
                name(&field.name, out);
                cursor.with_default(default, |cursor| cursor.put(&default.op, &field.node, out, end_max))?;
            }
            if record.fields.is_empty() {
                out.push(b'{');
            }
            out.push(b'}');
            Ok(())
        })
    }

    fn put(&mut self, op: &Op, node: &Node, out: &mut Vec<u8>, end_max: usize) -> Result<()> {
        let Some((target, _)) = arrow_type::nullable(node) else {
            unreachable!("the program was compiled for this type")
        };
        match op {
            Op::Null => out.extend_from_slice(b"null"),
            Op::Value(value) => self.put_value(value, target, out, end_max)?,
            Op::Member(index, value) => {
                let Kind::Union(arms) = &target.kind else { unreachable!("members are of a union") };
                let Some(arm) = arrow_type::members(arms).nth(*index) else {
                    unreachable!("the program was compiled for this union")
                };
                out.push(b'{');
                render::put_text(arm.branch_name(), out);
                out.push(b':');
                self.deeper(|cursor| cursor.put_value(value, arm, out, end_max))?;
                out.push(b'}');
            }
            Op::Union(arms) => {
                let arm = self.branch(arms)?;
                self.put(arm, node, out, end_max)?;
            }
            Op::Refused(why) => return Err(Problem::Refused(why.clone()).into()),
        }
        if out.len() > end_max { Err(Problem::Amplified.into()) } else { Ok(()) }
    }

    fn put_value(&mut self, op: &ValueOp, node: &Node, out: &mut Vec<u8>, end_max: usize) -> Result<()> {
        match op {
            ValueOp::Nothing => out.extend_from_slice(b"null"),
            ValueOp::Boolean => {
                let value = self.boolean()?;
                out.extend_from_slice(if value { b"true" } else { b"false" });
            }
            ValueOp::IntToI32 => {
                let value = self.int()?;
                match node.logical {
                    Some(Logical::Date) => render::put_date(value, out),
                    Some(Logical::TimeMillis) => render::put_time_of_day(value.into(), 1_000_000, 3, out),
                    _ => put_number(value.into(), out),
                }
            }
            ValueOp::LongToI64 { factor, is_int } => {
                let value = if *is_int { i64::from(self.int()?) } else { self.long()? };
                put_long(value.checked_mul(*factor).ok_or(Problem::Overflow)?, node.logical, out);
            }
            ValueOp::ZigzagToF32 => put_f32(self.long()? as f32, out),
            ValueOp::ZigzagToF64 => put_f64(self.long()? as f64, out),
            ValueOp::FloatToF32 => put_f32(f32::from_le_bytes(self.array()?), out),
            ValueOp::FloatToF64 => put_f64(f64::from(f32::from_le_bytes(self.array()?)), out),
            ValueOp::DoubleToF64 => put_f64(f64::from_le_bytes(self.array()?), out),
            ValueOp::Text | ValueOp::TextToMicros => render::put_text(self.text()?, out),
            ValueOp::Bytes => render::put_bytes(self.sized()?, out),
            ValueOp::Fixed(size) | ValueOp::FixedToBytes(size) => render::put_bytes(self.take(*size)?, out),
            ValueOp::Enum(symbols) => render::put_text(self.symbol(symbols)?, out),
            ValueOp::BigDecimal => render::put_text(&self.big_decimal()?, out),
            ValueOp::Uuid { is_fixed } => {
                render::put_text(&self.uuid(*is_fixed)?.hyphenated().to_string(), out);
            }
            ValueOp::Decimal { fixed, precision } => {
                let raw = match fixed {
                    Some(size) => self.take(*size)?,
                    None => self.sized()?,
                };
                put_decimal(raw, *precision, node, out)?;
            }
            ValueOp::Duration => {
                let [months, days, millis] =
                    [self.array()?, self.array()?, self.array()?].map(u32::from_le_bytes);
                let text = format!("{{\"months\":{months},\"days\":{days},\"millis\":{millis}}}");
                out.extend_from_slice(text.as_bytes());
            }
            ValueOp::List(item) => {
                let Kind::Array(inner) = &node.kind else { unreachable!("an array is read as one") };
                self.deeper(|cursor| {
                    let mut sign = b'[';
                    cursor.blocks(1, |cursor| {
                        out.push(std::mem::replace(&mut sign, b','));
                        cursor.put(item, inner, out, end_max)
                    })?;
                    if sign == b'[' {
                        out.push(sign);
                    }
                    out.push(b']');
                    Ok(())
                })?;
            }
            ValueOp::Map(value) => {
                let Kind::Map(inner) = &node.kind else { unreachable!("a map is read as one") };
                self.deeper(|cursor| {
                    let mut sign = b'{';
                    cursor.blocks(1, |cursor| {
                        out.push(std::mem::replace(&mut sign, b','));
                        render::put_text(cursor.text()?, out);
                        out.push(b':');
                        cursor.put(value, inner, out, end_max)
                    })?;
                    if sign == b'{' {
                        out.push(sign);
                    }
                    out.push(b'}');
                    Ok(())
                })?;
            }
            ValueOp::Record(op) => {
                let Kind::Record(record) = &node.kind else { unreachable!("a record is read as one") };
                self.put_record(op, record, out, end_max)?;
            }
            ValueOp::Json(index) => {
                let program = self.program;
                let text = &program.texts[*index];
                self.put_record(&text.op, &text.record, out, end_max)?;
            }
        }
        Ok(())
    }

    fn text(&mut self) -> Result<&str> {
        Ok(std::str::from_utf8(self.sized()?).map_err(|_| Problem::Utf8)?)
    }
}

fn put_number(value: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(value.to_string().as_bytes());
}

fn put_f32(value: f32, out: &mut Vec<u8>) {
    render::put_float(f64::from(value), &value, out);
}

fn put_f64(value: f64, out: &mut Vec<u8>) {
    render::put_float(value, &value, out);
}

fn put_long(value: i64, logical: Option<Logical>, out: &mut Vec<u8>) {
    use Logical as L;
    match logical {
        Some(L::TimeMicros) => render::put_time_of_day(value, 1_000, 6, out),
        Some(L::TimestampMillis) => render::put_time(true, value, 1_000_000, 3, out),
        Some(L::TimestampMicros) => render::put_time(true, value, 1_000, 6, out),
        Some(L::TimestampNanos) => render::put_time(true, value, 1, 9, out),
        Some(L::LocalTimestampMillis) => render::put_time(false, value, 1_000_000, 3, out),
        Some(L::LocalTimestampMicros) => render::put_time(false, value, 1_000, 6, out),
        Some(L::LocalTimestampNanos) => render::put_time(false, value, 1, 9, out),
        _ => put_number(value, out),
    }
}

/// A number with all its digits, if it has no more than its type.
fn put_decimal(raw: &[u8], precision: u8, node: &Node, out: &mut Vec<u8>) -> Result<()> {
    push_decimal(raw, precision, &mut Data::I256(Vec::new()))?;
    let scale = match node.logical {
        Some(Logical::Decimal { scale, .. }) => scale,
        _ => 0,
    };
    let text = big_decimal::text(raw, scale.into()).ok_or(Problem::Decimal)?;
    out.extend_from_slice(text.as_bytes());
    Ok(())
}
