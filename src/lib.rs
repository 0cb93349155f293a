//! Registration through a queue: five published signup contracts, one pipeline.
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
//! The front sees neither store nor hash nor key, so nothing can be registered past the queue. The
//! queue is RabbitMQ or a bounded one in this process; the store is MongoDB or a redb file; the
//! scheme of a URL picks each, and every queue works with every store.
//!
//! # Reading order
//!
//! 1. [`signup`]: the words. Start with `candidate`, `outcome` and `id`.
//! 2. [`contract`]: the trait, then one contract (`nested_name`) with its `rules`.
//! 3. [`front`]: `signup`, from a request to an answer.
//! 4. [`queue`]: the ports in `mod`, `message`, then `local`; `rabbit` when you need it.
//! 5. [`worker`]: `consume`, `register`, `settle`. This is the heart.
//! 6. [`store`], [`password`], [`token`]: what the worker uses.
//! 7. [`app`]: how the parts are put together, and taken apart again.
//!
//! # Modules
//!
//! | module | what it is | may import |
//! |---|---|---|
//! | [`signup`] | candidate, outcome, user, ids, clock; no I/O | nobody |
//! | [`contract`] | what each document asks and answers; pure | `signup` |
//! | [`config`] | settings from defaults, file, environment, flags | `signup` |
//! | [`telemetry`] | logs, traces, metrics, stage times, whether each part can work, what is wrong with it | `signup`, `config` |
//! | [`shutdown`] | tasks that stop together, softly or by a crash | nobody |
//! | [`rows`] | one row of a bulk: cut out, checked, reported; no I/O | `signup`, `contract` |
//! | [`queue`] | caller, producer and inbox, in this process or on RabbitMQ | those above but `rows` |
//! | [`store`] | users, in a file or in MongoDB | those above but `queue` |
//! | [`password`] | hashing on a bounded number of threads | the same |
//! | [`token`] | signing and verifying | the same |
//! | [`http_client`] | an HTTP client for commands and the exporter of traces | `config` |
//! | [`front`] | the HTTP server | all above but `store`, `password`, `token`, `http_client` |
//! | [`worker`] | the consumer and the use case | all above but `front`, `http_client` and `rows` |
//! | [`import`] | a file's rows through the queue, resumable | those above `password`, and `rows` |
//! | [`app`] | puts the parts together | all but `cli` |
//! | [`cli`] | the commands | all |
//!
//! Why it is so is in `docs/design.md`; the message on the wire, what happens on failure and how to
//! add a contract are in `docs/architecture.md`.

// A print fails, and then panics, where the stream is closed or full: `telemetry::stderr` does not.
#![warn(clippy::print_stderr)]

pub mod app;
pub mod cli;
pub mod config;
pub mod contract;
pub mod front;
pub mod http_client;
pub mod import;
pub mod password;
pub mod queue;
pub mod rows;
pub mod shutdown;
pub mod domain;
pub mod store;
pub mod telemetry;
pub mod token;
pub mod worker;
