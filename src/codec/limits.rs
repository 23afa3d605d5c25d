//! What schemas and records may be at most. Whoever may write to a topic, or to a subject, chooses both: neither may
//! cost more than in proportion to its size, and none may end the process.

use std::thread;

/// Levels of a schema below its top. Decoding recurses once per level, and nobody writes deeper ones by hand.
pub const DEPTH_MAX: usize = 64;

/// Fields of a schema, all levels together and each place of a type counted: every one costs a column buffer per batch.
pub const FIELDS_MAX: usize = 10_000;

/// Bytes that a schema takes when it is read: names, symbols and defaults, each place of a type counted. The registry's
/// answers have at most 1 MiB, but a type that is named in thousands of places is kept in all of them.
pub const SCHEMA_BYTES_MAX: usize = 16 << 20;

/// Avro: bytes of a type's name, or its namespace. apache-avro keeps both at each place that names the type.
pub const NAME_BYTES_MAX: usize = 1024;

/// What a type counts for beside its names and defaults, in bytes.
pub const TYPE_BYTES: usize = 64;

/// Branches of a union. Each is compiled against the reader's type, which may have [`FIELDS_MAX`] fields.
pub const BRANCHES_MAX: usize = 1000;

/// JSON Schema: schemas looked at for one type, each time it is met: `$ref`s can make a short text an endless one.
pub const STEPS_MAX: usize = 100_000;

/// JSON Schema: definitions looked through for `$ref`s, and properties put together, each time they are met. They are a
/// tenth of a microsecond each, and some of them are kept.
pub const LOOKS_MAX: usize = 1_000_000;

/// JSON Schema: schemas within schemas, `$ref`s included: looking at them recurses.
pub const NESTING_MAX: usize = 256;

/// JSON Schema: bytes of all defaults together: a record of a few bytes may ask for each of them many times, in arrays.
pub const DEFAULTS_BYTES_MAX: usize = 16 << 10;

/// Protobuf: groups within groups: skipping them recurses.
pub const GROUP_DEPTH_MAX: usize = 64;

/// Protobuf: `google.protobuf.Value`s within one another, as Protobuf's own readers allow.
pub const VALUE_DEPTH_MAX: usize = 100;

/// Columns without a value on the wire that a record may fill for each of its bytes. A null of one byte may be a row of
/// thousands of columns, in a list: without a bound a small record could grow without one.
pub const CELLS_PER_BYTE: usize = 256;

/// However small the record: everything once that a schema may have.
pub const CELLS_MIN: usize = 2 * FIELDS_MAX;

/// However large the record: some tens of megabytes of columns.
pub const CELLS_MAX: usize = 4 << 20;

/// What a schema brings, a symbol or the zeros of a `fixed` that is null, counts for one cell with so many bytes.
pub const CELL_BYTES: usize = 16;

/// Names and values that are compared to find what a record is count for one cell.
pub const LOOKS_PER_CELL: usize = 16;

/// Avro: bytes of the defaults that one record asks for: of fields that its writer lacks. They cost nothing on the wire.
pub const DEFAULT_BYTES_MAX: usize = 1 << 20;

/// JSON text that records in records may become, for each byte: names of fields are not on the wire.
pub const TEXT_PER_BYTE: usize = 256;

/// However small the record.
pub const TEXT_MIN: usize = 64 << 10;

/// However large the record.
pub const TEXT_MAX: usize = 16 << 20;

/// Objects and arrays within one another, where a schema contains itself: reading them recurses, and readers of JSON do
/// not take many more.
pub const LEVELS_MAX: usize = 100;

/// Avro: bytes of a `fixed` in a reader schema. A row of nulls, which a tombstone is, has them all.
pub const FIXED_BYTES_MAX: usize = 64 << 10;

/// Avro: branches of writers' unions held against branches of readers': unions within unions make many pairs.
pub const PAIRS_MAX: usize = 100_000;

/// Bytes of what is said of a bad record. Schemas have names of any length, and a batch may have tens of thousands of
/// bad records.
pub const MESSAGE_BYTES_MAX: usize = 1024;

/// Levels of JSON in an Avro schema and the texts it references, all added up: its parser recurses from text to text.
/// That is 23 texts of as many levels as one may have, or hundreds of usual ones.
pub const TEXT_LEVELS_MAX: usize = 3000;

/// For reading a schema, in which parsers recurse: some ten kilobytes for each of [`TEXT_LEVELS_MAX`], in a build that is
/// not optimised. It is address space; what is not used costs nothing.
const STACK_BYTES: usize = 128 << 20;

/// What a record may still fill of columns without bytes of its own.
#[derive(Debug, Clone, Copy)]
pub struct Spare {
    /// `None`: it has asked for more.
    cells: Option<usize>,
}

/// A record asks for more than is left to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent;

impl Spare {
    /// For a record of so many bytes.
    pub fn of(bytes: usize) -> Self {
        Self { cells: Some(bytes.saturating_mul(CELLS_PER_BYTE).clamp(CELLS_MIN, CELLS_MAX)) }
    }

    /// # Errors
    /// [`Spent`], from then on for ever.
    pub fn take(&mut self, cells: usize) -> Result<(), Spent> {
        self.cells = self.cells.and_then(|left| left.checked_sub(cells));
        if self.cells.is_some() { Ok(()) } else { Err(Spent) }
    }

    /// For text of the schema that stands for a byte or two of the record. Short text is free.
    ///
    /// # Errors
    /// [`Spent`]
    pub fn take_text(&mut self, text: &str) -> Result<(), Spent> {
        self.take(text.len() / CELL_BYTES)
    }
}

/// Cuts what is said of a bad record to [`MESSAGE_BYTES_MAX`].
pub fn cut(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or_default();
        message.truncate(end);
        message.push('…');
    }
    message
}

/// Reads a schema on a stack that is deep enough for it, whoever's thread this is. `None`: the work has panicked. A
/// library that does so on a schema must not end a route.
pub fn on_deep_stack<T: Send>(work: impl Fn() -> T + Sync) -> Option<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("schema".to_owned()).stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, &work) {
            Ok(thread) => thread.join().ok(),
            // No thread is to be had. Few schemas need that stack, and none is bad because of this.
            Err(_) => Some(work()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_may_fill_what_its_bytes_account_for() {
        for (bytes, cells) in [(2, CELLS_MIN), (1000, 1000 * CELLS_PER_BYTE), (usize::MAX, CELLS_MAX)] {
            let mut spare = Spare::of(bytes);
            assert_eq!(spare.take_text("short"), Ok(()));
            assert_eq!(spare.take(cells), Ok(()));
            assert_eq!(spare.take(0), Ok(()));
            assert_eq!(spare.take(1), Err(Spent));
            assert_eq!(spare.take(0), Err(Spent));
        }
        let mut spare = Spare::of(0);
        assert_eq!(spare.take_text(&"x".repeat(CELLS_MIN * CELL_BYTES + CELL_BYTES)), Err(Spent));
    }

    #[test]
    fn what_is_said_of_a_record_has_an_end() {
        assert_eq!(cut("short".to_owned()), "short");
        for unit in ["a", "é", "…", "😀"] {
            let long = cut(unit.repeat(2 * MESSAGE_BYTES_MAX));
            assert!(
                long.len() <= MESSAGE_BYTES_MAX + '…'.len_utf8() && long.ends_with('…'),
                "{}",
                long.len()
            );
        }
    }

    fn levels(count: usize) -> usize {
        let padding = std::hint::black_box([count; 64]);
        if count == 0 { 0 } else { padding[0] - padding[63] + 1 + levels(count - 1) }
    }

    #[test]
    fn deep_work_has_a_stack_and_a_panic_ends_nobody() {
        // Half a kilobyte a level, at least: tens of times what a thread has otherwise.
        assert_eq!(on_deep_stack(|| levels(50_000)), Some(50_000));
        assert_eq!(on_deep_stack(|| -> usize { panic!("a parser's defect") }), None);
    }
}
