//! Exponential backoff between attempts to connect to the broker.

use std::time::Duration;

use tokio::time::Instant;

/// Pauses that double from 100 ms to 5 s, with jitter: each is shortened at random by up to a half, so that processes
/// do not reconnect simultaneously.
pub(in super::super) struct Backoff {
    next: Duration,
    /// When the connection was opened, if there is one.
    connected: Option<Instant>,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LAST: Duration = Duration::from_secs(5);
    /// A connection that lasts this long resets the pauses. A shorter one does not, because a broker may accept each
    /// connection and then refuse every request.
    const STEADY: Duration = Duration::from_secs(5);

    pub(in super::super) fn new() -> Self {
        Self { next: Self::FIRST, connected: None }
    }

    /// Records that a connection was opened. It resets the pauses only if it lasts for [`Self::STEADY`].
    pub(in super::super) fn connected(&mut self) {
        self.connected = Some(Instant::now());
    }

    pub(in super::super) async fn pause(&mut self) {
        if self.connected.take().is_some_and(|since| since.elapsed() >= Self::STEADY) {
            self.reset();
        }
        tokio::time::sleep(self.next()).await;
    }

    /// The length of the next pause.
    pub(in super::super) fn next(&mut self) -> Duration {
        let mut random = [0u8];
        // Without randomness the pause has no jitter.
        let _ = getrandom::fill(&mut random);
        let share = 0.5 + f64::from(random[0]) / 512.0;
        let pause = self.next.mul_f64(share);
        self.next = (self.next * 2).min(Self::LAST);
        pause
    }

    /// Resets the pauses after a delivery or a confirm.
    pub(in super::super) fn reset(&mut self) {
        self.next = Self::FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_steady_connection_resets_the_pauses() {
        let mut backoff = Backoff::new();
        for _ in 0..20 {
            backoff.connected();
            backoff.pause().await;
        }
        let long = Instant::now();
        backoff.pause().await;
        assert!(long.elapsed() >= Backoff::LAST / 2, "{:?}", long.elapsed());
        backoff.connected();
        tokio::time::sleep(Backoff::STEADY).await;
        let short = Instant::now();
        backoff.pause().await;
        assert!(short.elapsed() <= Backoff::FIRST, "{:?}", short.elapsed());
    }
}
