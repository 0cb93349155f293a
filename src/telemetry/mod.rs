//! What muster tells about itself: log lines, traces, figures, whether it is ready, and what is wrong with its
//! parts.

pub mod events;
pub mod export;
pub mod figures;
pub mod finding;
pub mod health;
pub mod logs;
pub mod metrics;
pub mod stages;
pub mod stderr;
pub mod trace;

use std::sync::Arc;

pub use health::{Health, Part};
pub use metrics::Metrics;
pub use stages::{Stage, Stages};
pub use trace::TraceContext;

/// What the parts of one process tell of themselves, and where. Clones are the same.
#[derive(Clone, Default)]
pub struct Telemetry {
    /// Whether each of them can work.
    pub health: Health,
    /// What they count and measure.
    pub metrics: Arc<Metrics>,
}
