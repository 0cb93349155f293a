//! muster
pub mod app;
pub mod cli;
pub mod config;
pub mod contract;
pub mod front;
pub mod password;
pub mod queue;
pub mod shutdown;
pub mod signup;
pub mod store;
pub mod telemetry;
pub mod token;
pub mod worker;
