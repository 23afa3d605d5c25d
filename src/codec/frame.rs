//! How a record names its schema: a zero byte and the id, four bytes big-endian, before the payload; or a header.
//!
//! Sources: `SchemaId.java` and `DualSchemaIdDeserializer.java` of confluentinc/schema-registry, whose newer serialisers
//! put a GUID into a header; `DefaultIdHandler.java` of Apicurio/apicurio-registry for ids of eight bytes. Which of them
//! a route reads is said in its `framing`, never guessed from the bytes.

use uuid::Uuid;

use crate::config::plan::Framing;
use crate::model::{RecordRef, SchemaId, SchemaKey, code};

use super::Side;

/// Header names that carry a schema's id or GUID beside the value or the key.
pub const VALUE_ID_HEADER: &str = "__value_schema_id";
pub const KEY_ID_HEADER: &str = "__key_schema_id";

/// A value or a key, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub schema: SchemaKey,
    /// What a header has behind the id: Protobuf's message indexes, which are else at the start of the payload.
    pub beside: Option<&'a [u8]>,
    pub payload: &'a [u8],
}

/// Why a value or a key has no usable frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("{0} bytes are too few for the magic byte and the schema id")]
    Short(usize),
    #[error(
        "the first byte is {0:#04x}, not the magic byte 0x00: it was not written with a registry serialiser"
    )]
    Magic(u8),
    #[error("its schema id {0} is beyond 32 bits, and registries answer for shorter ones only")]
    Wide(u64),
    #[error("it has no header `{0}`, and this route says `framing: header`")]
    NoHeader(&'static str),
    #[error(
        "its header `{0}` is neither 0x01 with the 16 bytes of a GUID nor 0x00 with the 4 bytes of a schema id"
    )]
    Header(&'static str),
    #[error("its headers `{0}` contradict one another")]
    Contradiction(&'static str),
}

impl FrameError {
    pub const CODE: &'static str = code::FRAMING;
}

/// The schema and the payload of a record's value or key, which is `bytes`.
///
/// # Errors
/// [`FrameError`]
pub fn parse<'a>(
    framing: Framing,
    side: Side,
    record: &RecordRef<'a>,
    bytes: &'a [u8],
) -> Result<Frame<'a>, FrameError> {
    match framing {
        Framing::Prefix => prefix(bytes),
        Framing::Apicurio => wide_prefix(bytes),
        Framing::Confluent | Framing::Header => match header(side, record)? {
            Some((schema, beside)) => Ok(Frame { schema, beside: Some(beside), payload: bytes }),
            None if framing == Framing::Header => Err(FrameError::NoHeader(header_name(side))),
            None => prefix(bytes),
        },
    }
}

fn header_name(side: Side) -> &'static str {
    match side {
        Side::Value => VALUE_ID_HEADER,
        Side::Key => KEY_ID_HEADER,
    }
}

/// What the header says, if there is one. The same thing said twice is no contradiction.
fn header<'a>(side: Side, record: &RecordRef<'a>) -> Result<Option<(SchemaKey, &'a [u8])>, FrameError> {
    let name = header_name(side);
    let mut values = record.headers().filter(|(own, _)| *own == name.as_bytes()).map(|(_, value)| value);
    let Some(first) = values.next() else {
        return Ok(None);
    };
    if values.any(|other| other != first) {
        return Err(FrameError::Contradiction(name));
    }
    let said = first.and_then(|value| {
        let (magic, rest) = value.split_first()?;
        match magic {
            0 => {
                let (id, beside) = rest.split_first_chunk()?;
                Some((SchemaId(u32::from_be_bytes(*id)).into(), beside))
            }
            1 => {
                let (guid, beside) = rest.split_first_chunk()?;
                Some((SchemaKey::Guid(Uuid::from_bytes(*guid)), beside))
            }
            _ => None,
        }
    });
    said.map(Some).ok_or(FrameError::Header(name))
}

/// The schema id and the payload behind a prefix.
///
/// # Errors
/// [`FrameError`]
pub fn prefix(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let (id, payload) = behind_magic(bytes)?;
    Ok(Frame { schema: SchemaId(u32::from_be_bytes(*id)).into(), beside: None, payload })
}

fn wide_prefix(bytes: &[u8]) -> Result<Frame<'_>, FrameError> {
    let (id, payload) = behind_magic(bytes)?;
    let id = u64::from_be_bytes(*id);
    let narrow = u32::try_from(id).map_err(|_| FrameError::Wide(id))?;
    Ok(Frame { schema: SchemaId(narrow).into(), beside: None, payload })
}

/// The `N` bytes of an id behind the magic byte, and what follows.
fn behind_magic<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), FrameError> {
    match bytes {
        [0, rest @ ..] => rest.split_first_chunk().ok_or(FrameError::Short(bytes.len())),
        [] => Err(FrameError::Short(0)),
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
    use crate::model::{
        Chunk, ChunkBuilder, Incoming, Offset, Partition, TimestampType, TopicName, TopicPartition,
    };

    type Header<'a> = (&'a str, Option<&'a [u8]>);

    fn chunk(headers: &[Header<'_>]) -> Chunk {
        let source = TopicPartition::new(&TopicName::new("t"), Partition(0));
        let mut builder = ChunkBuilder::new(source, 1, Offset::ZERO);
        let incoming = Incoming {
            offset: Offset::ZERO,
            timestamp_ms: 0,
            timestamp_type: TimestampType::Create,
            epoch: None,
            key: None,
            value: Some(b""),
        };
        builder.push(incoming, headers.iter().map(|(name, value)| (name.as_bytes(), *value)));
        builder.finish(Offset::ZERO)
    }

    /// The schema, what is beside the value, the payload.
    type Parts = (SchemaKey, Option<Vec<u8>>, Vec<u8>);

    /// What a value with these headers is, as `framing` reads it.
    fn value(framing: Framing, headers: &[Header<'_>], bytes: &[u8]) -> Result<Parts, FrameError> {
        let chunk = chunk(headers);
        let record = chunk.records().next().unwrap();
        let frame = parse(framing, Side::Value, &record, bytes)?;
        Ok((frame.schema, frame.beside.map(<[u8]>::to_vec), frame.payload.to_vec()))
    }

    /// A value's header of these bytes, among others.
    fn beside(bytes: &[u8]) -> [Header<'_>; 3] {
        [("other", None), (VALUE_ID_HEADER, Some(bytes)), (KEY_ID_HEADER, None)]
    }

    fn id(id: u32) -> SchemaKey {
        SchemaId(id).into()
    }

    #[test]
    fn prefixes_are_told_apart() {
        let frame = |schema: u32, payload: &'static [u8]| {
            Ok::<_, FrameError>(Frame { schema: id(schema), beside: None, payload })
        };
        assert_eq!(prefix(&[0, 0, 0, 1, 2, 9]), frame(258, &[9]));
        assert_eq!(prefix(&[0, 0, 0]), Err(FrameError::Short(3)));
        assert_eq!(prefix(b""), Err(FrameError::Short(0)));
        assert_eq!(prefix(b"{\"a\":1}"), Err(FrameError::Magic(b'{')));
        let mut bytes = Vec::new();
        write_prefix(SchemaId(7), &mut bytes);
        assert_eq!(prefix(&bytes), frame(7, &[]));
    }

    #[test]
    fn ids_of_eight_bytes_have_to_fit_into_four() {
        let read = |bytes: &[u8]| value(Framing::Apicurio, &[], bytes);
        assert_eq!(read(&[0, 0, 0, 0, 0, 0, 0, 1, 2, 9]), Ok((id(258), None, vec![9])));
        assert_eq!(read(&[0, 0, 0, 0, 1, 0, 0, 0, 0, 9]), Err(FrameError::Wide(1 << 32)));
        assert_eq!(read(&[0, 0, 0, 0, 0, 0, 0, 1]), Err(FrameError::Short(8)));
        assert_eq!(read(&[1; 20]), Err(FrameError::Magic(1)));
    }

    #[test]
    fn a_header_wins_where_the_route_reads_headers() {
        let guid: [u8; 16] = std::array::from_fn(|at| at as u8);
        let named = SchemaKey::Guid(Uuid::from_bytes(guid));
        let with_guid = [&[1][..], &guid].concat();
        let with_indexes = [&with_guid[..], &[2, 2]].concat();
        let framed = [0, 0, 0, 0, 5, 9];
        for framing in [Framing::Confluent, Framing::Header] {
            let read = |bytes: &[u8]| value(framing, &beside(bytes), &framed);
            assert_eq!(read(&with_guid), Ok((named, Some(vec![]), framed.to_vec())));
            assert_eq!(read(&with_indexes), Ok((named, Some(vec![2, 2]), framed.to_vec())));
            assert_eq!(read(&[0, 0, 0, 0, 7]), Ok((id(7), Some(vec![]), framed.to_vec())));
            for wrong in [&b""[..], &[0, 0, 0, 7], &with_guid[..16], &[2; 17]] {
                assert_eq!(read(wrong), Err(FrameError::Header(VALUE_ID_HEADER)), "{wrong:?}");
            }
            let null = [(VALUE_ID_HEADER, None)];
            assert_eq!(value(framing, &null, &framed), Err(FrameError::Header(VALUE_ID_HEADER)));
        }
        assert_eq!(value(Framing::Prefix, &beside(&with_guid), &framed), Ok((id(5), None, vec![9])));
        assert_eq!(value(Framing::Confluent, &[], &framed), Ok((id(5), None, vec![9])));
        assert_eq!(value(Framing::Header, &[], &framed), Err(FrameError::NoHeader(VALUE_ID_HEADER)));
    }

    #[test]
    fn headers_may_repeat_but_not_contradict_one_another() {
        let (seven, eight) = ([0, 0, 0, 0, 7], [0, 0, 0, 0, 8]);
        let twice = |other: Option<&'static [u8]>| {
            let headers = [(VALUE_ID_HEADER, Some(&seven[..])), ("x", None), (VALUE_ID_HEADER, other)];
            value(Framing::Confluent, &headers, b"{}")
        };
        assert_eq!(twice(Some(&[0, 0, 0, 0, 7])), Ok((id(7), Some(vec![]), b"{}".to_vec())));
        assert_eq!(twice(None), Err(FrameError::Contradiction(VALUE_ID_HEADER)));
        let headers = [(VALUE_ID_HEADER, Some(&seven[..])), (VALUE_ID_HEADER, Some(&eight[..]))];
        assert_eq!(value(Framing::Header, &headers, b"{}"), Err(FrameError::Contradiction(VALUE_ID_HEADER)));
        assert!(value(Framing::Prefix, &headers, &[0, 0, 0, 0, 1]).is_ok());
    }
}
