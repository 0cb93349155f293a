//! What a running muster tells about itself: log lines and whether it is ready.

pub mod health;
pub mod logs;

pub use health::{Health, Part};
