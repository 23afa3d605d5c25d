//! sidestream.

pub mod engine;
pub mod model;
pub mod sink;
