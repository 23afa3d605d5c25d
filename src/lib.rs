//! sidestream.

pub mod codec;
pub mod engine;
pub mod model;
pub mod sink;
