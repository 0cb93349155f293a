//! User registration through a message queue: five published signup contracts, one pipeline.
//!
//! ```text
//!   HTTP -> front -> contract (check) -> queue -> worker -> contract (check again)
//!                                                   |
//!                                                   +-> password (hash)
//!                                                   +-> store    (insert)
//!                                                   +-> token    (sign)
//!                                                   v
//!   HTTP <- front <- contract (render) <- queue <- outcome
//! ```
//!
//! The front has no access to the store, the hash pool or the signing keys, so every registration passes through the
//! queue. The queue is RabbitMQ or a bounded queue in this process. The store is MongoDB or a redb file. The scheme
//! of a URL selects each adapter, and every queue works with every store.
//!
//! # Reading order
//!
//! 1. [`domain`]: the types of a registration. Start with `valid_signup`, `outcome` and `id`.
//! 2. [`contract`]: the trait, then one contract (`nested_name`) with its `rules`.
//! 3. [`front`]: `signup`, from a request to its response.
//! 4. [`queue`]: the ports in `mod`, `message`, then `local`; `rabbit` when you need it.
//! 5. [`worker`]: `consume`, `register`, `settle`. This is the core.
//! 6. [`store`], [`password`], [`token`]: the components that the worker uses.
//! 7. [`app`]: how a process is assembled and stopped.
//!
//! # Modules
//!
//! | module | contents |
//! |---|---|
//! | [`domain`] | signup, user, outcome, ids and clock; no I/O |
//! | [`contract`] | the request and response formats of each contract; no I/O |
//! | [`config`] | settings from defaults, file, environment and flags |
//! | [`telemetry`] | logs, traces, metrics, stage times, readiness of each component, findings |
//! | [`shutdown`] | tasks that stop together, and the end of the process after a panic |
//! | [`rows`] | the rows of a bulk registration: split, validated, reported; no I/O |
//! | [`queue`] | RPC client, producer and consumer, in this process or on RabbitMQ |
//! | [`store`] | users, in a redb file or in MongoDB |
//! | [`password`] | hashing on a fixed number of threads |
//! | [`token`] | signing and verifying tokens |
//! | [`http_client`] | the HTTP client of commands and of the trace exporter |
//! | [`front`] | the HTTP server |
//! | [`worker`] | the consumer loop and the use cases |
//! | [`import`] | resumable import of a file's rows through the queue |
//! | [`app`] | assembles a process from its settings |
//! | [`cli`] | the commands |
//!
//! `tests/it/architecture.rs` has the table of which module may import which, and checks it. `docs/design.md` gives
//! the reasons. `docs/architecture.md` describes the messages, the handling of failures and how to add a contract.

// `eprintln!` panics if standard error is closed or full; `telemetry::stderr` does not.
#![warn(clippy::print_stderr)]

pub mod app;
pub mod cli;
pub mod config;
pub mod contract;
pub mod domain;
pub mod front;
pub mod http_client;
pub mod import;
pub mod password;
pub mod queue;
pub mod rows;
pub mod shutdown;
pub mod store;
pub mod telemetry;
pub mod token;
pub mod worker;
