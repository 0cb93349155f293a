//! The tasks of the process and how it ends: gracefully, at once, or after a panic.
//!
//! A panic is a bug, after which the state of the process is unknown. So the process reports it and ends; a service
//! manager restarts it, and the queue redelivers the unfinished messages.

use std::future::Future;
use std::panic::PanicHookInfo;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A set of tasks that are stopped together. Clones share the set.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    stopping: CancellationToken,
}

impl Tasks {
    /// Starts a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Cancelled when tasks must accept no more work.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Asks every task to finish.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Resolves when all tasks have ended.
    pub async fn ended(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

tokio::task_local! {
    /// Set in tasks whose panic does not end the process.
    static CONTAINED: ();
}

/// Installs a panic hook that ends the process, whatever task or thread panicked, unless the task is [`contained`].
/// Without it, callers would wait forever for a dead hashing thread or store writer.
///
/// The hook passes the location of the panic to `report`, and its message only if that is a `&'static str`: a formatted
/// message may contain a password. `report` must neither panic nor block; `end` must end the process.
pub fn end_on_panic(report: fn(&str), end: fn() -> !) {
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let is_contained = is_contained();
        let effect = if is_contained { "its connection is closed" } else { "the process ends" };
        let text = static_text(panic);
        report(&format!("muster: a bug in muster at {place}{text}: {effect}; please report it"));
        if !is_contained {
            end();
        }
    }));
}

fn static_text(panic: &PanicHookInfo<'_>) -> String {
    let text = panic.payload().downcast_ref::<&'static str>();
    text.map_or_else(String::new, |text| format!(" ({text})"))
}

/// Whether a panic in this task ends only the task.
pub fn is_contained() -> bool {
    CONTAINED.try_with(|()| ()).is_ok()
}

/// Runs a task that serves untrusted peers: a panic that one of them provokes must not end the process.
pub async fn contained<T>(task: impl Future<Output = T>) -> T {
    CONTAINED.scope((), task).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stop_reaches_every_task() {
        let tasks = Tasks::default();
        let stopping = tasks.stopping().clone();
        tasks.spawn(async move { stopping.cancelled().await });
        tasks.stop();
        tasks.ended().await;
    }
}
