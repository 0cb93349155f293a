//! What the tests share: the program as a process, a plain HTTP client, and the services.

pub mod http;
pub mod muster;
pub mod raw;
pub mod services;

pub use http::{Answer, Client};
pub use muster::{Muster, Setup};
pub use raw::Raw;
pub use services::{PAIRS, Pair, QueueKind, StoreKind};
