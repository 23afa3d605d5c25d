//! Codes of bad records: what metrics, the log and dead letters call the ways in which a record can be bad.
//!
//! They are stable: alerts match them, and so do those who read dead letters. `docs/bad-records.md` has the same table.

macro_rules! codes {
    ($($id:ident = $code:literal, $about:literal;)*) => {
        $(
            #[doc = $about]
            pub const $id: &str = $code;
        )*

        /// All codes, each with what it means, in the order of `docs/bad-records.md`.
        pub const TABLE: &[(&str, &str)] = &[$(($id, $about)),*];
    };
}

codes! {
    FRAMING = "framing", "No schema is named in the way of the route's framing: too few bytes, a first byte that is not 0 (not written by a registry serialiser), no header, one of another form, headers that contradict one another, an id beyond 32 bits, message indexes of no message.";
    UNKNOWN_ID = "unknown_id", "For 30 seconds the registry did not know the id or GUID, or a schema it references. Without the 30 seconds if three ids of the route used them up within the last ten minutes.";
    FOREIGN_ID = "foreign_id", "With `allow_ids: subject`: the schema is not registered under a subject of the route's topics.";
    SCHEMA_TYPE = "schema_type", "The schema is of another format than the route reads, or the record of another Protobuf message.";
    RECORD_TYPE = "record_type", "The record is of a type that its route's `record_types` do not name, or its JSON Schema has no title.";
    REFUSED_SCHEMA = "refused_schema", "The id's schema cannot be used, or cannot be read as the reader schema.";
    TRUNCATED = "truncated", "The record ends within a value, or a count claims more items than there are bytes.";
    TRAILING_BYTES = "trailing_bytes", "Bytes are left after the last field.";
    TYPE_MISMATCH = "type_mismatch", "A value that is not of its type: a length below 0, a boolean that is neither 0 nor 1, a union branch or enum symbol that does not exist or has no place in the reader, a uuid of other than 16 bytes, a field written in a way that its type is not. JSON: text that is not JSON, or a value that does not fit.";
    NO_KEY = "no_key", "A delete (`tombstones: delete`, a change event) without a key, where a sink takes deletes.";
    UNKNOWN_COLUMN = "unknown_column", "A change event in JSON whose row has a column that the route's schema file lacks.";
    UNAVAILABLE_VALUE = "unavailable_value", "A change event without the value of a column that did not change, which a sink would take for null: see debezium.md.";
    TRUNCATE = "truncate", "A table was truncated, and a sink keeps its rows by key.";
    INVALID = "invalid", "The record does not keep to its JSON Schema, with `validate: true`.";
    INVALID_UTF8 = "invalid_utf8", "A text that is not UTF-8, in Avro, Protobuf or as `value: string`, `json`; a key likewise.";
    OVERFLOW = "overflow", "A number longer than its type; a decimal with too many digits; a time beyond 64 bits after conversion.";
    DEPTH = "depth", "Values within values, deeper than is read: more than 100 levels where a schema contains itself, JSON of more than 127, groups of Protobuf of more than 64, `google.protobuf.Value`s of more than 100.";
    SIZE = "size", "A column of the batch would pass 2 GiB or 2³¹ items (the record that meets it is the bad one: set a smaller `batch:`), or the record fills far more columns, or asks for more text and defaults, than its bytes account for; or there is too much of it to be validated.";
    SQL_EVALUATION = "sql_evaluation", "A view fails on the record: a cast, a division by zero, an overflow.";
    SINK_REFUSAL = "sink_refusal", "A sink will never take what became of the record: too large for its topic, no name for a directory, a constraint of its table.";
}

/// The table of `docs/bad-records.md`.
pub fn markdown() -> String {
    let mut text = String::from("| code | meaning |\n|---|---|\n");
    for (code, about) in TABLE {
        text.push_str(&format!("| `{code}` | {about} |\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_page_has_this_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/bad-records.md");
        let page = std::fs::read_to_string(path).unwrap();
        let table = markdown();
        assert!(page.contains(&table), "the table of docs/bad-records.md is stale; it has to be:\n\n{table}");
    }

    #[test]
    fn codes_are_words_for_labels_and_none_is_there_twice() {
        let codes: BTreeSet<&str> = TABLE.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes.len(), TABLE.len());
        let is_plain = |code: &&str| {
            code.chars().all(|char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_')
        };
        assert!(codes.iter().all(is_plain), "{codes:?}");
    }
}
