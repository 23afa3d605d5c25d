//! The one integration test binary: each would link DataFusion again.

/// Real Kafka, real registry, the real program.
mod support;

/// Records through the real program into files, read back and compared.
mod pipeline;

/// kill -9, and nothing lost or doubled.
mod kills;
