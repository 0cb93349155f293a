//! One binary of integration tests: they start the real program and talk to the real services.
//!
//! Without `AMQP_URL` and `MONGODB_URL` the tests that need them say so and are left out; under
//! `./tests/run`, which provides both, a missing service is a failure.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(missing_docs, unreachable_pub, reason = "nobody imports a test")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "tests tell what they leave out")]

mod support;

mod architecture;
mod bulk;
mod clients;
mod cluster;
mod commands;
mod contracts;
mod crash;
mod dead;
mod deployment;
mod docs;
mod doctor;
mod events;
mod examples;
mod failover;
mod faults;
mod flow;
mod foreign;
mod fuzz;
mod hashed;
mod help;
mod hostile;
mod import;
mod import_exports;
mod import_files;
mod keys;
mod limits;
mod logs;
mod metrics;
mod mounts;
mod openapi;
mod overload;
mod pages;
mod policy;
mod preflight;
mod producers;
mod properties;
mod queue;
mod redelivery;
mod reindex;
mod resent;
mod restart;
mod rubbish;
mod sealing;
mod signup;
mod soak;
mod spec;
mod startup;
mod store;
mod terminal;
mod tls;
mod traces;
mod trials;
mod unread;
mod words;
