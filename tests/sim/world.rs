//! What all processes of one history share: randomness from the seed, simulated time, and the faults of this history.

use std::future::pending;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Probabilities of faults, from 0 to 1. Each history draws its own, so that some are calm and some are not.
#[derive(Clone, Copy, Debug)]
pub(super) struct Faults {
    /// A publish never reaches the queue, and its sender does not learn that.
    pub(super) publish_lost: f64,
    /// A message is queued, and its sender never gets the confirm.
    pub(super) confirm_lost: f64,
    /// The client sends a message again under the same id, because a confirm is late.
    pub(super) publish_twice: f64,
    /// A reply is lost on the way to its front.
    pub(super) reply_lost: f64,
    /// An acknowledgement is lost together with its connection.
    pub(super) ack_lost: f64,
    /// The queue delivers a message other than the oldest.
    pub(super) reorder: f64,
    /// A write never reaches the store.
    pub(super) write_lost: f64,
    /// A write is stored, and its response is lost.
    pub(super) response_lost: f64,
    /// A write becomes visible to reads only later.
    pub(super) visible_late: f64,
    /// A read fails.
    pub(super) read_fails: f64,
}

impl Faults {
    fn draw(rng: &mut fastrand::Rng) -> Self {
        // A third of the histories has no faults of a kind at all.
        let mut draw = |most: f64| match rng.u8(0..3) {
            0 => 0.0,
            1 => most * rng.f64() / 5.0,
            _ => most * rng.f64(),
        };
        Self {
            publish_lost: draw(0.2),
            confirm_lost: draw(0.3),
            publish_twice: draw(0.3),
            reply_lost: draw(0.3),
            ack_lost: draw(0.3),
            reorder: draw(0.8),
            write_lost: draw(0.3),
            response_lost: draw(0.4),
            visible_late: draw(0.6),
            read_fails: draw(0.2),
        }
    }
}

/// The shared state of a history.
pub(super) struct World {
    rng: Mutex<fastrand::Rng>,
    started: Instant,
    steps: AtomicU64,
    /// Faults stop at the end of a history, so that it comes to rest.
    calm: AtomicBool,
    faults: Faults,
    /// Longest simulated latency of one step.
    latency: Duration,
}

impl World {
    pub(super) fn new(seed: u64) -> Arc<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let faults = Faults::draw(&mut rng);
        let latency = Duration::from_millis([1, 10, 100, 800][rng.usize(0..4)]);
        Arc::new(Self {
            rng: Mutex::new(rng),
            started: Instant::now(),
            steps: AtomicU64::new(0),
            calm: AtomicBool::new(false),
            faults,
            latency,
        })
    }

    pub(super) fn rng(&self) -> MutexGuard<'_, fastrand::Rng> {
        self.rng.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a fault happens now.
    pub(super) fn strikes(&self, fault: impl Fn(&Faults) -> f64) -> bool {
        let drawn = self.rng().f64();
        !self.calm.load(Ordering::Relaxed) && drawn < fault(&self.faults)
    }

    /// Ends all faults.
    pub(super) fn calm(&self) {
        self.calm.store(true, Ordering::Relaxed);
    }

    /// Waits for a random latency, so that every order of steps is possible.
    pub(super) async fn delay(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
        let micros = self.rng().u64(0..=self.latency.as_micros() as u64);
        sleep(Duration::from_micros(micros)).await;
    }

    /// Simulated time since the history began, in microseconds.
    pub(super) fn now(&self) -> u64 {
        self.started.elapsed().as_micros() as u64
    }

    /// Steps so far.
    pub(super) fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }
}

/// A front or a worker. After its crash none of its calls to queue, store or hash pool returns or has an effect, which
/// for everything outside is the same as the end of its operating system process.
pub(super) struct Process {
    pub(super) world: Arc<World>,
    crashed: AtomicBool,
}

impl Process {
    pub(super) fn start(world: &Arc<World>) -> Arc<Self> {
        Arc::new(Self { world: world.clone(), crashed: AtomicBool::new(false) })
    }

    pub(super) fn crash(&self) {
        self.crashed.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_crashed(&self) -> bool {
        self.crashed.load(Ordering::Relaxed)
    }

    /// Waits for a random latency. Never returns in a process that crashed meanwhile.
    pub(super) async fn step(&self) {
        self.world.delay().await;
        if self.is_crashed() {
            pending::<()>().await;
        }
    }
}
