//! What muster tells about itself: log lines, whether it is ready, and what is wrong with its parts.

pub mod finding;
pub mod health;
pub mod logs;

pub use health::{Health, Part};
