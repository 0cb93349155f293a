//! Telemetry of a process: logs, traces, metrics, readiness, and the findings of `muster doctor`.

mod description;
pub mod events;
pub mod export;
pub mod finding;
pub mod gauges;
pub mod health;
pub mod logs;
pub mod metrics;
pub mod process;
pub mod stages;
pub mod stderr;
pub mod terminal;
pub mod trace;

use std::sync::Arc;

use health::ComponentState;
pub use health::{Component, Health};
pub use metrics::Metrics;
pub use stages::{Stage, Stages};
pub use trace::TraceContext;

/// Health and metrics of one process. Clones share the same state.
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
            for (component, state) in components.states() {
                metrics.set_component_ready(component, state == ComponentState::Up);
            }
        });
        Self { health, metrics }
    }
}
