//! What the tests share: the program as a process, a plain HTTP client, the services, and a wire to
//! them that can be cut.

pub mod broker;
pub mod http;
pub mod muster;
pub mod proxy;
pub mod raw;
pub mod services;

pub use http::{Answer, Client};
pub use muster::{Muster, Setup};
pub use raw::Raw;
pub use services::{PAIRS, Pair, QueueKind, StoreKind};
