//! Readiness of each component: components report their state, `/ready` and the metrics read it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A component that stays down for the same reason logs it again after this time.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// State of all components, and the warnings, of this process. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, ComponentReport>>>, Warnings);

/// Warnings by name: problems that need an operator although all components are up.
type Warnings = Arc<Mutex<BTreeMap<&'static str, &'static str>>>;

/// Last reported state of a component.
#[derive(Debug)]
struct ComponentReport {
    state: ComponentState,
    /// Time of the last log line or, before the first one, of the first report.
    logged: Instant,
}

/// State of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComponentState {
    /// Ready.
    Up,
    /// Not ready, with the reason.
    Down(String),
}

/// Handle with which a component reports its state.
#[derive(Clone, Debug)]
pub struct Component {
    health: Health,
    name: &'static str,
}

impl Health {
    /// Adds a component. It is down with the reason `starting` until it reports.
    pub fn component(&self, name: &'static str) -> Component {
        let component = Component { health: self.clone(), name };
        component.down("starting");
        component
    }

    /// Returns the state of each component by name.
    pub fn states(&self) -> BTreeMap<&'static str, ComponentState> {
        self.lock().iter().map(|(name, reported)| (*name, reported.state.clone())).collect()
    }

    /// Returns whether all components are up.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|reported| reported.state == ComponentState::Up)
    }

    /// Sets (`Some`) or clears (`None`) a warning, and logs a change. `/ready` shows the text, so it must not
    /// contain an address.
    pub fn warn(&self, name: &'static str, text: Option<&'static str>) {
        let mut warnings = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) if warnings.insert(name, text) != Some(text) => {
                tracing::warn!(event = "warning_raised", name, "{text}");
            }
            None if warnings.remove(name).is_some() => {
                tracing::info!(event = "warning_cleared", name, "the warning {name} was cleared");
            }
            _ => {}
        }
    }

    /// Returns the current warnings by name.
    pub fn warnings(&self) -> BTreeMap<&'static str, &'static str> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, ComponentReport>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Component {
    /// Sets the state to up, and logs a change.
    pub fn up(&self) {
        if self.set(ComponentState::Up) != StateChange::None {
            tracing::info!(event = "component_ready", component = self.name, "component is ready");
        }
    }

    /// Sets the state to down. Logs a new reason, and repeats the same reason at most every
    /// 60 seconds.
    pub fn down(&self, reason: &str) {
        if self.set(ComponentState::Down(reason.to_owned())) == StateChange::Log {
            tracing::warn!(
                event = "component_not_ready",
                component = self.name,
                reason,
                "component is not ready"
            );
        }
    }

    fn set(&self, state: ComponentState) -> StateChange {
        let mut components = self.health.lock();
        let now = Instant::now();
        let Some(reported) = components.get_mut(self.name) else {
            components.insert(self.name, ComponentReport { state, logged: now });
            return StateChange::First;
        };
        let is_down = state != ComponentState::Up;
        let is_due = is_down && now.duration_since(reported.logged) >= LOG_AGAIN_AFTER;
        if reported.state == state && !is_due {
            return StateChange::None;
        }
        *reported = ComponentReport { state, logged: now };
        StateChange::Log
    }

    /// Sets the state to down because the process is stopping. Not logged: the signal is logged already.
    pub fn stopping(&self) {
        self.set(ComponentState::Down("stopping".to_owned()));
    }
}

/// Effect of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StateChange {
    /// First report of the component: not logged.
    First,
    /// To be logged: a new state or reason, or the repetition is due.
    Log,
    /// The same state as before.
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lasting_reason_is_logged_again() {
        let component = Health::default().component("queue");
        let refused = || component.set(ComponentState::Down("missing permission".to_owned()));
        assert_eq!((refused(), refused()), (StateChange::Log, StateChange::None));
        tokio::time::advance(LOG_AGAIN_AFTER).await;
        assert_eq!((refused(), refused()), (StateChange::Log, StateChange::None));
        component.up();
        tokio::time::advance(LOG_AGAIN_AFTER).await;
        assert_eq!(
            (component.set(ComponentState::Up), refused()),
            (StateChange::None, StateChange::Log)
        );
    }

    #[test]
    fn health_is_ready_when_all_components_are_up() {
        let health = Health::default();
        let (queue, store) = (health.component("queue"), health.component("store"));
        queue.up();
        assert!(!health.is_ready());
        store.up();
        assert!(health.is_ready());
        queue.down("the broker");
        assert!(!health.is_ready());
        assert_eq!(health.states()["queue"], ComponentState::Down("the broker".into()));
    }
}
