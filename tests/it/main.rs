//! The one integration test binary: each would link DataFusion again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

/// Real Kafka, real registry, the real program.
mod support;

/// Records through the real program into files, read back and compared.
mod pipeline;

/// Where sinks stand: listed, moved, taken over, shared, and explained before a start.
mod positions;

/// Topics by pattern, and what the cluster does to topics: new ones, new partitions, lost records.
mod patterns;

/// Broker and registry away, at the start and in the middle.
mod outages;

/// Records and passwords stay out of logs.
mod canary;

/// The pure core under a scripted world of crashes, zombies and lost replies.
mod simulation;

/// The demo on embedded parts.
mod demo;

/// Files of the repository that are made from the code.
mod generated;

/// The rules of the house.
mod tidy;

/// JSON taken apart, and records landed raw.
mod nest;

/// Two sinks of one batch.
mod side_outputs;

/// Keys that are deleted, in order with rows.
mod changes;

/// A database followed into another one.
mod cdc;

/// Changes of a real database, by Debezium.
mod debezium;

/// Protobuf from the registry.
mod protobuf;

/// JSON Schemas from the registry, and schemas named by headers.
mod json_schema;

/// Views that fail on a record, sinks that refuse one.
mod bad_records;

/// Bytes that were changed at random, into everything that reads bytes of others.
mod fuzzing;

/// Rows in requests to a server.
mod http;

/// Sinks that a route goes on without.
mod optional;

/// Types without an Arrow form, and validation.
mod types;

/// Records of Confluent's own serialisers, kept as files.
mod fixtures;

/// The same serialisers at work.
mod python_client;

/// Topics and files written with schemas, and read back.
mod writing;

/// Rows and positions in a real PostgreSQL.
mod postgres;

/// Records of several types in one topic.
mod record_types;

/// Rows and the group's offsets in one transaction; rows for another cluster.
mod transactions;

/// Files in a real object store.
mod objects;

/// Rows and positions in a Delta table.
mod delta;

/// kill -9, and nothing lost or doubled.
mod kills;

/// Every sink in every case, with what it promises.
mod conformance;

/// Newer schemas while routes run, and schemas that cannot be read.
mod evolution;

/// Sinks and routes that are behind, and routes by themselves.
mod catchup;

/// Metrics, health, readiness and status of a service.
mod eyes;

/// Dead letters, read again.
mod replay;

/// Dead letters in files, tables and records with a schema, and those of files read again.
mod dead_letters;
