//! What the tests share: the program as a process, a plain HTTP client, the services, a wire to
//! them that can be cut, and a ledger of what clients were told.

pub mod broker;
pub mod browser;
pub mod cluster;
pub mod collector;
pub mod command;
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
pub mod rig;
pub mod secrets;
pub mod services;
pub mod site;
pub mod spec;

pub use browser::Browser;
pub use http::{Answer, Client};
pub use http2::Http2;
pub use muster::{Muster, Setup};
pub use raw::Raw;
pub use rig::Rig;
pub use services::{PAIRS, Pair, QueueKind, StoreKind};
