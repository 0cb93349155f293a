//! Whether each part can do its work right now. Parts report; the probes of the front end read.
//! Neither knows the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The state of all parts of this process.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, State>>>);

/// How a part is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It works.
    Up,
    /// It does not; the text says what it waits for.
    Down(String),
}

/// A part's own line in the report.
#[derive(Clone, Debug)]
pub struct Part {
    health: Health,
    name: &'static str,
}

impl Health {
    /// Adds a part, down until it reports.
    pub fn part(&self, name: &'static str) -> Part {
        let part = Part { health: self.clone(), name };
        part.down("starting");
        part
    }

    /// Every part's state, by name.
    pub fn report(&self) -> BTreeMap<&'static str, State> {
        self.lock().clone()
    }

    /// Whether all parts are up.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(|state| *state == State::Up)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, State>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// Reports that it works, and logs it when that is news.
    pub fn up(&self) {
        if self.health.lock().insert(self.name, State::Up) != Some(State::Up) {
            tracing::info!(part = self.name, "ready");
        }
    }

    /// Reports what it waits for, and logs it when that is news.
    pub fn down(&self, waiting_for: &str) {
        let state = State::Down(waiting_for.to_owned());
        let before = self.health.lock().insert(self.name, state.clone());
        if before.is_some_and(|before| before != state) {
            tracing::warn!(part = self.name, waiting_for, "not ready");
        }
    }

    /// Reports that its end has begun. That is no news for the log: whoever asked for it knows.
    pub fn ending(&self) {
        self.health.lock().insert(self.name, State::Down("the end: it is stopping".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_part_is() {
        let health = Health::default();
        let (queue, store) = (health.part("queue"), health.part("store"));
        queue.up();
        assert!(!health.is_ready());
        store.up();
        assert!(health.is_ready());
        queue.down("the broker");
        assert!(!health.is_ready());
        assert_eq!(health.report()["queue"], State::Down("the broker".into()));
    }
}
