//! sidestream.

pub mod codec;
pub mod config;
pub mod engine;
pub mod model;
pub mod sink;
