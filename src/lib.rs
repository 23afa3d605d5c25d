//! One Kafka subscription, many topics: each decoded by its own schema, shaped by its own SQL, written
//! to its own sinks.
//!
//! The modules in the order in which data flows:
//!
//! ```text
//! kafka → engine → registry → codec → handler → sink → engine (commit) → kafka
//! ```
//!
//! `model` holds the nouns that flow, `render` shows values as text, `encode` writes rows in formats with schemas,
//! `cores` spreads work over free cores, `repeat` limits what is logged again and again, `failpoint` is for tests;
//! `config` turns `routes.yaml` into a plan, `status` keeps what the program tells of itself, from which `metrics` and
//! `admin` make pages, `cli` builds concrete things and hands them to the engine. `docs/ARCHITECTURE.md` is the map.

pub mod cores;
pub mod failpoint;
pub mod model;
pub mod repeat;

pub mod status;

pub mod metrics;

pub mod config;

pub mod kafka;

pub mod codec;
pub mod encode;
pub mod handler;
pub mod registry;
pub mod render;
pub mod sink;

pub mod engine;

pub mod admin;

pub mod cli;

#[doc(hidden)]
pub mod fuzz;
