//! What muster tells about itself: log lines, traces, figures, whether it is ready, and what is wrong with its
//! parts.

mod described;
pub mod events;
pub mod export;
pub mod figures;
pub mod finding;
pub mod health;
pub mod logs;
pub mod metrics;
pub mod process;
pub mod stages;
pub mod stderr;
pub mod terminal;
pub mod trace;

use std::sync::Arc;

use health::State;
pub use health::{Health, Part};
pub use metrics::Metrics;
pub use stages::{Stage, Stages};
pub use trace::TraceContext;

/// Health and metrics of one process. Clones share them.
#[derive(Clone)]
pub struct Telemetry {
    /// State of each component.
    pub health: Health,
    /// Counters, gauges and histograms.
    pub metrics: Arc<Metrics>,
}

impl Default for Telemetry {
    fn default() -> Self {
        let (health, metrics) = (Health::default(), Arc::new(Metrics::default()));
        let components = health.clone();
        metrics.at_scrape(move |metrics| {
            for (component, state) in components.report() {
                metrics.component_ready(component, state == State::Up);
            }
        });
        Self { health, metrics }
    }
}
