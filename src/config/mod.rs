//! `routes.yaml` → a plan that cannot be wrong.
//!
//! One direction: text → `tree` (everything keeps its line and column) → [`plan`] (what the engine runs:
//! no option where a default exists, no name that leads nowhere). Problems are collected and reported
//! together; only a syntax error comes alone, because nothing after it can be trusted.
//!
//! [`keys`] is the one table of keys. The reader refuses what is not in it, and the JSON Schema and
//! `docs/routes.md` are made from it.

mod delta;
mod envelope;
mod expand;
mod file_format;
mod form;
mod http;
mod kafka;
mod kafka_sink;
pub mod keys;
mod mapping;
pub mod plan;
mod postgres;
mod problem;
mod read;
mod record_types;
mod route;
pub mod schema;
mod sink;
mod storage;
mod subject;
mod template;
mod together;
pub mod topics;
mod transactions;
mod tree;
mod values;

pub use expand::Environment;
pub use problem::{Problem, render};
pub use read::{parse_offsets, parse_start, read};
pub use tree::Span;
