//! Confluent's wire format: a zero byte and the schema id, four bytes big-endian, before the payload.
//!
//! Source: `SchemaId.java` of confluentinc/schema-registry. Newer serialisers put a GUID into a header
//! instead; such a record is a bad record with a code of its own until that framing is supported.

use crate::model::{RecordRef, SchemaId};

use super::Side;

/// Header names that carry a schema id beside the value or the key.
pub const VALUE_ID_HEADER: &[u8] = b"__value_schema_id";
pub const KEY_ID_HEADER: &[u8] = b"__key_schema_id";

/// Why a value or a key has no usable frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("{0} bytes are too few for the magic byte and the schema id")]
    Short(usize),
    #[error(
        "the first byte is {0:#04x}, not the magic byte 0x00: it was not written with a registry serialiser"
    )]
    Magic(u8),
    #[error("its schema id is in a header, which is not supported yet")]
    Header,
}

impl FrameError {
    pub fn code(&self) -> &'static str {
        match self {
            Self::Header => "header_schema_id",
            Self::Short(_) | Self::Magic(_) => "framing",
        }
    }
}

/// The schema id and the payload of a record's value or key, which is `bytes`.
///
/// # Errors
/// [`FrameError`]
pub fn parse<'a>(
    side: Side,
    record: &RecordRef<'_>,
    bytes: &'a [u8],
) -> Result<(SchemaId, &'a [u8]), FrameError> {
    let id_header = match side {
        Side::Value => VALUE_ID_HEADER,
        Side::Key => KEY_ID_HEADER,
    };
    if record.headers().any(|(name, _)| name == id_header) {
        return Err(FrameError::Header);
    }
    prefix(bytes)
}

/// The schema id and the payload behind a prefix.
///
/// # Errors
/// [`FrameError`]
pub fn prefix(value: &[u8]) -> Result<(SchemaId, &[u8]), FrameError> {
    match value {
        [0, a, b, c, d, payload @ ..] => Ok((SchemaId(u32::from_be_bytes([*a, *b, *c, *d])), payload)),
        [0, ..] | [] => Err(FrameError::Short(value.len())),
        [other, ..] => Err(FrameError::Magic(*other)),
    }
}

/// The prefix before a payload of schema `id`.
pub fn write_prefix(id: SchemaId, bytes: &mut Vec<u8>) {
    bytes.push(0);
    bytes.extend_from_slice(&id.0.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_told_apart() {
        assert_eq!(prefix(&[0, 0, 0, 1, 2, 9]), Ok((SchemaId(258), &[9][..])));
        assert_eq!(prefix(&[0, 0, 0]), Err(FrameError::Short(3)));
        assert_eq!(prefix(b""), Err(FrameError::Short(0)));
        assert_eq!(prefix(b"{\"a\":1}"), Err(FrameError::Magic(b'{')));
        let mut bytes = Vec::new();
        write_prefix(SchemaId(7), &mut bytes);
        assert_eq!(prefix(&bytes), Ok((SchemaId(7), &[][..])));
    }
}
