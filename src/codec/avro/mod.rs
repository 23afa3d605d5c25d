//! Avro: from Confluent-framed bytes to Arrow columns, without objects in between.
//!
//! A writer's schema and the route's reader schema are compiled once per schema id ([`program`]); a record
//! is read straight into column buffers ([`decode`]), appended whole or not at all.
//! Why this is ours and not arrow-avro's: `docs/decisions/0001-avro-codec.md`.

pub mod arrow_type;
pub mod big_decimal;
pub mod decode;
pub mod encode;
pub mod node;
pub mod program;
mod to_json;

#[cfg(test)]
pub mod differential;
#[cfg(test)]
mod tests;
