//! Whether each part can do its work right now. Parts report; the probes of the front end read.
//! Neither knows the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// After so long a part that is still down with the same reason logs it again.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The state of all parts of this process.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, Reported>>>, Warnings);

/// What an operator should see to although every part can work, by name.
type Warnings = Arc<Mutex<BTreeMap<&'static str, &'static str>>>;

/// The last report of a part.
#[derive(Debug)]
struct Reported {
    state: ComponentState,
    /// When the state was last logged, or was first reported.
    logged: Instant,
}

/// How a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComponentState {
    /// It works.
    Up,
    /// It does not; the text says what it waits for.
    Down(String),
}

/// A part's own line in the report.
#[derive(Clone, Debug)]
pub struct Component {
    health: Health,
    name: &'static str,
}

impl Health {
    /// Adds a part, down until it reports.
    pub fn component(&self, name: &'static str) -> Component {
        let part = Component { health: self.clone(), name };
        part.down("starting");
        part
    }

    /// Every part's state, by name.
    pub fn report(&self) -> BTreeMap<&'static str, ComponentState> {
        self.lock().iter().map(|(name, reported)| (*name, reported.state.clone())).collect()
    }

    /// Whether all parts are up.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|reported| reported.state == ComponentState::Up)
    }

    /// Sets or clears a warning, and logs it when that is news. The text names no address.
    pub fn warn(&self, name: &'static str, text: Option<&'static str>) {
        let mut warnings = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) if warnings.insert(name, text) != Some(text) => {
                tracing::warn!(event = "warning_raised", name, "{text}");
            }
            None if warnings.remove(name).is_some() => {
                tracing::info!(event = "warning_cleared", name, "no longer: {name}");
            }
            _ => {}
        }
    }

    /// Every warning that stands, by name.
    pub fn warnings(&self) -> BTreeMap<&'static str, &'static str> {
        self.1.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Reported>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Component {
    /// Reports that it works, and logs it when that is news.
    pub fn up(&self) {
        if self.set(ComponentState::Up) != Change::None {
            tracing::info!(part = self.name, "ready");
        }
    }

    /// Reports what it waits for. Logs it when that is news, and again now and then while it lasts.
    pub fn down(&self, waiting_for: &str) {
        if self.set(ComponentState::Down(waiting_for.to_owned())) == Change::News {
            tracing::warn!(part = self.name, waiting_for, "not ready");
        }
    }

    /// Sets the state.
    fn set(&self, state: ComponentState) -> Change {
        let mut parts = self.health.lock();
        let now = Instant::now();
        let Some(reported) = parts.get_mut(self.name) else {
            parts.insert(self.name, Reported { state, logged: now });
            return Change::First;
        };
        let is_down = state != ComponentState::Up;
        let is_due = is_down && now.duration_since(reported.logged) >= LOG_AGAIN_AFTER;
        if reported.state == state && !is_due {
            return Change::None;
        }
        *reported = Reported { state, logged: now };
        Change::News
    }

    /// Reports that its end has begun. That is no news for the log: whoever asked for it knows.
    pub fn stopping(&self) {
        self.set(ComponentState::Down("the end: it is stopping".to_owned()));
    }
}

/// What a report changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It is the part's first report.
    First,
    /// It is worth a line in the log.
    News,
    None,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn reason_that_lasts_is_logged_again() {
        let part = Health::default().component("queue");
        let refused = || part.set(ComponentState::Down("missing permission".to_owned()));
        assert_eq!((refused(), refused()), (Change::News, Change::None));
        tokio::time::advance(LOG_AGAIN_AFTER).await;
        assert_eq!((refused(), refused()), (Change::News, Change::None));
        part.up();
        tokio::time::advance(LOG_AGAIN_AFTER).await;
        assert_eq!((part.set(ComponentState::Up), refused()), (Change::None, Change::News));
    }

    #[test]
    fn ready_when_every_part_is() {
        let health = Health::default();
        let (queue, store) = (health.component("queue"), health.component("store"));
        queue.up();
        assert!(!health.is_ready());
        store.up();
        assert!(health.is_ready());
        queue.down("the broker");
        assert!(!health.is_ready());
        assert_eq!(health.report()["queue"], ComponentState::Down("the broker".into()));
    }
}
