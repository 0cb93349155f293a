//! The integration tests: they start the program and use real services.
//!
//! Without `AMQP_URL` and `MONGODB_URL` the tests that need them are skipped with a message. `./tests/run` provides
//! both; there a missing service is a failure.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(missing_docs, unreachable_pub, reason = "no crate imports the tests")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "tests print skipped parts and measurements"
)]

mod support;

mod architecture;
mod bulk;
mod clients;
mod cluster;
mod commands;
mod contracts;
mod crash;
mod dead_letters;
mod deployment;
mod docs;
mod doctor;
mod events;
mod examples;
mod failover;
mod faults;
mod flow;
mod foreign_indexes;
mod fuzz;
mod help;
mod hostile_clients;
mod import;
mod import_exports;
mod import_files;
mod keys;
mod limits;
mod logs;
mod malformed_messages;
mod metrics;
mod mounts;
mod openapi;
mod overload;
mod pages;
mod password_hashes;
mod policy;
mod preflight;
mod producers;
mod properties;
mod queue;
mod redelivery;
mod reindex;
mod replay_window;
mod restart;
mod sealing;
mod signup;
mod slow_readers;
mod soak;
mod spec;
mod startup;
mod store;
mod terminal;
mod tls;
mod traces;
mod trials;
mod words;
