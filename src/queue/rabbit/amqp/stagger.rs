//! Runs attempts in parallel and starts them one after the other. An attempt without a result delays the next by an
//! interval instead of its timeout.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep_until};

/// Starts the next attempt `interval` after the last one, or when one has failed. Returns the first success, the first
/// error that `is_final`, or the last error; `None` without an attempt. Drops unfinished attempts.
pub(in super::super) async fn first_success<T, E, A>(
    attempts: impl IntoIterator<Item = A>,
    interval: Duration,
    is_final: impl Fn(&E) -> bool,
) -> Option<Result<T, E>>
where
    A: Future<Output = Result<T, E>>,
{
    let (mut attempts, mut running) = (attempts.into_iter().fuse(), FuturesUnordered::new());
    let mut last_error = None;
    loop {
        running.extend(attempts.next());
        let next_at = Instant::now() + interval;
        tokio::select! {
            ended = running.next() => match ended {
                Some(Err(error)) if !is_final(&error) => last_error = Some(Err(error)),
                Some(ended) => return Some(ended),
                None => return last_error,
            },
            () = sleep_until(next_at) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    /// An attempt that ends after this many milliseconds.
    async fn attempt(millis: u64, result: Result<u8, u8>) -> Result<u8, u8> {
        sleep(Duration::from_millis(millis)).await;
        result
    }

    #[tokio::test(start_paused = true)]
    async fn silent_attempt_delays_the_next_by_the_interval() {
        let started = Instant::now();
        let attempts = [attempt(60_000, Ok(1)), attempt(500, Ok(2)), attempt(0, Ok(3))];
        assert_eq!(first_success(attempts, INTERVAL, |_| false).await, Some(Ok(2)));
        assert_eq!(started.elapsed(), Duration::from_millis(1500));
    }

    #[tokio::test(start_paused = true)]
    async fn failure_starts_the_next_attempt_and_the_last_one_is_returned() {
        let started = Instant::now();
        let attempts = || [attempt(0, Err(1)), attempt(0, Err(2)), attempt(100, Err(3))];
        assert_eq!(first_success(attempts(), INTERVAL, |_| false).await, Some(Err(3)));
        assert_eq!(started.elapsed(), Duration::from_millis(100));
        assert_eq!(first_success(attempts(), INTERVAL, |error| *error == 2).await, Some(Err(2)));
        let none: [std::future::Ready<Result<u8, u8>>; 0] = [];
        assert_eq!(first_success(none, INTERVAL, |_| false).await, None);
    }
}
