//! Which types Avro lets be read as which, and where apache-avro 0.22 and this codec do not keep to it.
//!
//! apache-avro resolves a value, not a schema: when it looks at the reader's type it no longer knows the
//! writer's (<https://github.com/apache/avro-rs/issues/383>). So it reads some values of types that cannot
//! be read, and refuses some that can. This codec reads more than Avro on purpose: `docs/types.md`, "+".

use crate::codec::avro::node::{Field, Kind, Logical, Node, Record};

/// Who reads what the other refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Ours,
    Theirs,
    /// One or the other, by the value.
    Either,
}

/// A difference that is known for a pair of types.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    pub reads: Side,
    pub why: &'static str,
}

pub const NARROWED: Known =
    Known { reads: Side::Theirs, why: "they read a long as an int if it is small, and a double as a float" };
pub const COERCED: Known = Known {
    reads: Side::Theirs,
    why: "what they do to JSON of defaults they also do to values: text or bytes of the right size as fixed, \
          fixed as text, text as a symbol or a decimal, a map as a record, an array as bytes",
};
pub const HIDDEN: Known = Known {
    reads: Side::Ours,
    why: "a logical type hides the type below it from them: no date is an int, no timestamp a long",
};
pub const UNITS: Known = Known { reads: Side::Ours, why: "an addition: times are converted to finer units" };
pub const WIDER: Known = Known { reads: Side::Ours, why: "an addition: enums as text, fixed as bytes" };
pub const DECIMALS: Known = Known {
    reads: Side::Either,
    why: "they want as many bytes as the digits may need, and look neither at digits nor at scales",
};
pub const UUIDS: Known = Known {
    reads: Side::Ours,
    why: "an addition: text (unchecked) and 16 bytes are a uuid whatever the reader's is made of",
};

/// All of them. Each is met by a test, so that one that no longer holds is noticed.
pub const ALL: [&Known; 7] = [&NARROWED, &COERCED, &HIDDEN, &UNITS, &WIDER, &DECIMALS, &UUIDS];

/// The known difference of two types, not counting those inside them.
pub fn known(writer: &Node, reader: &Node) -> Option<&'static Known> {
    let is_read = is_readable(&writer.kind, &reader.kind);
    match (&writer.kind, writer.logical, &reader.kind, reader.logical) {
        (_, Some(Logical::Decimal { .. }), _, Some(Logical::Decimal { .. })) => Some(&DECIMALS),
        (Kind::Bytes | Kind::Fixed { .. }, None, _, Some(Logical::Decimal { .. })) => Some(&DECIMALS),
        (Kind::String, None, _, Some(Logical::Decimal { .. })) => Some(&COERCED),
        (_, Some(Logical::Uuid), _, Some(Logical::Uuid)) => Some(&UUIDS),
        (Kind::String | Kind::Bytes | Kind::Fixed { size: 16, .. }, None, _, Some(Logical::Uuid)) => {
            Some(&UUIDS)
        }
        (_, Some(from), _, Some(into)) if is_finer(from, into) => Some(&UNITS),
        (Kind::Fixed { .. }, Some(_), Kind::Bytes, None) => Some(&HIDDEN),
        (_, Some(_), _, None) if is_read => Some(&HIDDEN),
        (Kind::Long, None, Kind::Int, None) | (Kind::Double, None, Kind::Float, None) => Some(&NARROWED),
        (Kind::Enum(_), None, Kind::String, None) | (Kind::Fixed { .. }, None, Kind::Bytes, None) => {
            Some(&WIDER)
        }
        (Kind::Bytes | Kind::String, None, Kind::Fixed { .. }, None)
        | (Kind::Fixed { .. }, None, Kind::String, None)
        | (Kind::String, None, Kind::Enum(_), None)
        | (Kind::Map(_), None, Kind::Record(_), None)
        | (Kind::Array(_), None, Kind::Bytes, None) => Some(&COERCED),
        _ => None,
    }
}

fn is_finer(from: Logical, into: Logical) -> bool {
    use Logical as L;
    matches!(
        (from, into),
        (L::TimeMillis, L::TimeMicros)
            | (L::TimestampMillis, L::TimestampMicros | L::TimestampNanos)
            | (L::TimestampMicros, L::TimestampNanos)
            | (L::LocalTimestampMillis, L::LocalTimestampMicros | L::LocalTimestampNanos)
            | (L::LocalTimestampMicros, L::LocalTimestampNanos)
    )
}

/// Whether Avro lets the one be read as the other, not counting types inside them and logical types.
/// Names are not compared, by nobody here.
pub fn is_readable(writer: &Kind, reader: &Kind) -> bool {
    match (writer, reader) {
        (Kind::Fixed { size: from, .. }, Kind::Fixed { size: into, .. }) => from == into,
        (Kind::Null, Kind::Null)
        | (Kind::Boolean, Kind::Boolean)
        | (Kind::Int, Kind::Int | Kind::Long | Kind::Float | Kind::Double)
        | (Kind::Long, Kind::Long | Kind::Float | Kind::Double)
        | (Kind::Float, Kind::Float | Kind::Double)
        | (Kind::Double, Kind::Double)
        | (Kind::Bytes | Kind::String, Kind::Bytes | Kind::String)
        | (Kind::Enum(_), Kind::Enum(_))
        | (Kind::Array(_), Kind::Array(_))
        | (Kind::Map(_), Kind::Map(_))
        | (Kind::Record(_), Kind::Record(_)) => true,
        _ => false,
    }
}

/// Whether some value of the one can be read as the other, with everything inside.
fn fits(writer: &Node, reader: &Node) -> bool {
    match (&writer.kind, &reader.kind) {
        (Kind::Union(arms), _) => arms.iter().any(|arm| fits(arm, reader)),
        (_, Kind::Union(arms)) => arms.iter().any(|arm| fits(writer, arm)),
        (Kind::Array(from), Kind::Array(into)) | (Kind::Map(from), Kind::Map(into)) => fits(from, into),
        (Kind::Record(from), Kind::Record(into)) => into.fields.iter().all(|field| {
            source(from, field).map_or_else(|| field.default.is_some(), |from| fits(&from.node, &field.node))
        }),
        (from, into) => is_readable(from, into),
    }
}

/// The writer's field for a reader's.
fn source<'w>(writer: &'w Record, field: &Field) -> Option<&'w Field> {
    let by_name = writer.fields.iter().find(|from| from.name == field.name);
    by_name.or_else(|| writer.fields.iter().find(|from| field.aliases.contains(&from.name)))
}

/// Whether a value that only `side` reads may be one of those differences.
///
/// They are looked for only below a writer's union of several types besides null: the reader has a place
/// for one of them and the others meet it by chance. All other steps of an evolution have to agree.
pub fn is_excused(writer: &Node, reader: &Node, side: Side) -> bool {
    excuse(writer, reader, side, false)
}

fn excuse(writer: &Node, reader: &Node, side: Side, by_chance: bool) -> bool {
    match (&writer.kind, &reader.kind) {
        (Kind::Union(arms), _) => {
            let by_chance = by_chance || arms.iter().filter(|arm| arm.kind != Kind::Null).count() > 1;
            arms.iter().any(|arm| excuse(arm, reader, side, by_chance))
        }
        (_, Kind::Union(arms)) => arms.iter().any(|arm| excuse(writer, arm, side, by_chance)),
        (Kind::Array(from), Kind::Array(into)) | (Kind::Map(from), Kind::Map(into)) => {
            // The codec refuses by the types of the items, they by the items that are there.
            let is_empty_for_them = by_chance && side == Side::Theirs && !fits(from, into);
            is_empty_for_them || excuse(from, into, side, by_chance)
        }
        (Kind::Record(from), Kind::Record(into)) => into.fields.iter().any(|field| {
            source(from, field).is_some_and(|from| excuse(&from.node, &field.node, side, by_chance))
        }),
        _ => {
            by_chance
                && known(writer, reader)
                    .is_some_and(|known| known.reads == side || known.reads == Side::Either)
        }
    }
}
