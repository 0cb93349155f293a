//! Support code of the integration tests: the program as a process, clients, services, proxies and a ledger.

pub mod broker;
pub mod browser;
pub mod cluster;
pub mod collector;
pub mod command;
pub mod fleet;
pub mod generate;
pub mod http;
pub mod http2;
pub mod importer;
pub mod ledger;
pub mod log_lines;
pub mod muster;
pub mod prometheus;
pub mod proxy;
pub mod random;
pub mod raw;
pub mod raw_producer;
pub mod secrets;
pub mod services;
pub mod site;
pub mod spec;

pub use browser::Browser;
pub use fleet::Fleet;
pub use http::{Client, HttpResponse};
pub use http2::Http2Connection;
pub use muster::{Muster, Setup};
pub use raw::RawConnection;
pub use services::{PAIRS, Pair, QueueAdapter, StoreAdapter};
