//! Protobuf's wire format: tags, varints, lengths. Every length is checked against the bytes that are left.

use crate::codec::limits::GROUP_DEPTH_MAX;
use crate::model::code;

use super::Bad;

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Varint,
    Bits64,
    Bytes,
    /// Deprecated: bytes between two tags.
    Group,
    Bits32,
}

/// One value as it is written. Bytes are a range of the record's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Raw {
    Varint(u64),
    Bits64(u64),
    Bits32(u32),
    Bytes { start: usize, end: usize },
}

/// Reads a range of a record.
#[derive(Debug)]
pub struct Wire<'a> {
    /// Up to the end of the range.
    bytes: &'a [u8],
    at: usize,
}

pub fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

pub fn write_varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

impl<'a> Wire<'a> {
    pub fn new(bytes: &'a [u8], start: usize, end: usize) -> Self {
        Self { bytes: &bytes[..end.min(bytes.len())], at: start }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    #[inline]
    pub fn varint(&mut self) -> Result<u64, Bad> {
        match self.bytes.get(self.at) {
            // Most tags, lengths and numbers.
            Some(byte) if *byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Bad> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or_else(Bad::truncated)?;
            self.at += 1;
            // The tenth byte has room for one bit.
            if shift == 63 && byte > 1 {
                return Err(Bad::overflow());
            }
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(Bad::overflow())
    }

    /// The number of the next field and how its value is written.
    pub fn tag(&mut self) -> Result<(u32, Kind), Bad> {
        let tag = self.varint()?;
        let kind = match tag & 7 {
            0 => Kind::Varint,
            1 => Kind::Bits64,
            2 => Kind::Bytes,
            3 => Kind::Group,
            5 => Kind::Bits32,
            other => {
                return Err(Bad::new(code::TYPE_MISMATCH, format!("wire type {other} has no meaning here")));
            }
        };
        match u32::try_from(tag >> 3) {
            Ok(number @ 1..) => Ok((number, kind)),
            _ => Err(Bad::new(code::TYPE_MISMATCH, "a field number is 0, or too large".to_owned())),
        }
    }

    /// The value behind a tag. Of a group, what is between its tags.
    pub fn value(&mut self, number: u32, kind: Kind) -> Result<Raw, Bad> {
        Ok(match kind {
            Kind::Varint => Raw::Varint(self.varint()?),
            Kind::Bits64 => Raw::Bits64(u64::from_le_bytes(self.array()?)),
            Kind::Bits32 => Raw::Bits32(u32::from_le_bytes(self.array()?)),
            Kind::Bytes => {
                let len = usize::try_from(self.varint()?).map_err(|_| Bad::truncated())?;
                let start = self.at;
                if len > self.bytes.len() - start {
                    return Err(Bad::truncated());
                }
                self.at += len;
                Raw::Bytes { start, end: self.at }
            }
            Kind::Group => {
                let start = self.at;
                let end = self.skip_group(number, 1)?;
                Raw::Bytes { start, end }
            }
        })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let rest = self.bytes.get(self.at..).ok_or_else(Bad::truncated)?;
        let array = rest.first_chunk::<N>().ok_or_else(Bad::truncated)?;
        self.at += N;
        Ok(*array)
    }

    /// Goes past a group's end tag; where the tag begins.
    fn skip_group(&mut self, number: u32, depth: usize) -> Result<usize, Bad> {
        if depth > GROUP_DEPTH_MAX {
            return Err(Bad::new(code::DEPTH, format!("groups nest deeper than {GROUP_DEPTH_MAX} levels")));
        }
        loop {
            let before = self.at;
            let mut ahead = Wire { bytes: self.bytes, at: before };
            let tag = ahead.varint()?;
            if tag & 7 == 4 {
                if tag >> 3 != u64::from(number) {
                    return Err(Bad::new(code::TYPE_MISMATCH, "a group ends that did not begin".to_owned()));
                }
                self.at = ahead.at;
                return Ok(before);
            }
            let (inner, kind) = self.tag()?;
            match kind {
                Kind::Group => {
                    self.skip_group(inner, depth + 1)?;
                }
                other => {
                    self.value(inner, other)?;
                }
            }
        }
    }
}
