//! Tasks that live as long as the process, and how it ends: softly (take no more, finish what
//! runs), hard, or because a task crashed. A crashed task is a fault that nobody handles, so the
//! process stops and says so; whoever started it starts it again, and the queue still has what was
//! under way.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where tasks are started. Clones are the same set.
#[derive(Clone, Debug)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
    crashed: watch::Sender<Option<&'static str>>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            tracker: TaskTracker::new(),
            stopping: CancellationToken::new(),
            crashed: watch::Sender::new(None),
        }
    }
}

impl Tasks {
    /// Starts a task. If it panics, [`Tasks::crashed`] resolves.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let crashed = self.crashed.clone();
        self.tracker.spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                crashed.send_replace(Some(name));
            }
        });
    }

    /// Cancelled when no more work should be taken.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Asks every task to come to its end.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Resolves with the name of a task that panicked.
    pub async fn crashed(&self) -> &'static str {
        let mut crashed = self.crashed.subscribe();
        match crashed.wait_for(Option::is_some).await.map(|name| *name) {
            Ok(Some(name)) => name,
            // The sender is in `self`, so this cannot be reached.
            _ => std::future::pending().await,
        }
    }

    /// Resolves when all tasks have ended.
    pub async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_crash_is_told_by_name() {
        let tasks = Tasks::default();
        tasks.spawn("quiet", async {});
        tasks.spawn("loud", async { panic!("on purpose") });
        assert_eq!(tasks.crashed().await, "loud");
        tasks.ended().await;
    }

    #[tokio::test]
    async fn a_stop_reaches_every_task() {
        let tasks = Tasks::default();
        let stopping = tasks.stopping().clone();
        tasks.spawn("waits", async move { stopping.cancelled().await });
        tasks.stop();
        tasks.ended().await;
    }
}
