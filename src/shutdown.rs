//! Tasks that live as long as the process, and how it ends: softly (take no more, finish what
//! runs), hard, or by a panic. A panic is a fault that nobody handles, so the process stops and says so;
//! whoever started it starts it again, and the queue still has what was under way.

use std::future::Future;
use std::panic::PanicHookInfo;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Where tasks are started. Clones are the same set.
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

    /// Cancelled when no more work should be taken.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    /// Asks every task to come to its end.
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
    /// There where a panic ends its task and nothing else.
    static CONTAINED: ();
}

/// From now on a panic ends the process, in whatever task or thread it is, unless it is
/// [`contained`]: a thread that hashes no more, or a writer that is gone, would let everybody wait. Its
/// place is reported, and its text only where that is part of the program (`&'static str`): a formatted one
/// may quote what it was about, and that may be a password.
/// `report` must neither panic nor block; `end` ends the process.
pub fn end_on_panic(report: fn(&str), end: fn() -> !) {
    std::panic::set_hook(Box::new(move |panic: &PanicHookInfo<'_>| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let is_contained = is_contained();
        let effect = if is_contained { "a connection was lost to it" } else { "the process ends" };
        let text = static_text(panic);
        report(&format!("muster: a fault in muster, at {place}{text}: {effect}; please report it"));
        if !is_contained {
            end();
        }
    }));
}

fn static_text(panic: &PanicHookInfo<'_>) -> String {
    let text = panic.payload().downcast_ref::<&'static str>();
    text.map_or_else(String::new, |text| format!(" ({text})"))
}

/// Whether a panic here ends its task alone.
pub fn is_contained() -> bool {
    CONTAINED.try_with(|()| ()).is_ok()
}

/// Runs what strangers drive: a panic in it must not be a way to end the process for everybody.
pub async fn contained<T>(task: impl Future<Output = T>) -> T {
    CONTAINED.scope((), task).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stop_reaches_every_task() {
        let tasks = Tasks::default();
        let stopping = tasks.stopping().clone();
        tasks.spawn(async move { stopping.cancelled().await });
        tasks.stop();
        tasks.ended().await;
    }
}
