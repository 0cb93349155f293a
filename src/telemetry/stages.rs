//! How long the stages of one signup took. Each stage is measured by one clock, where it happens; a reply
//! carries the worker's to the front, written as the HTTP header `Server-Timing` is.

use std::fmt::Write;
use std::time::Duration;

/// A part of a signup's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// At the front: the body came in.
    Read,
    /// At the front: sent, and neither in a worker's hands nor answered; so the reply's way back is in it.
    Queue,
    /// At a worker: waited for a hash slot.
    Slot,
    /// At a worker: hashed or verified, beside the others of its batch.
    Hash,
    /// At a worker: written to the store.
    Insert,
    /// At a worker: from the first look to the outcome, the three above included.
    Work,
    /// At a worker: the reply published and confirmed, the event after it, and the message acked.
    Settle,
    /// At the front: the reply was here, and the answer was made of it.
    Reply,
    /// At the front: from the request's headers to the answer.
    Total,
}

impl Stage {
    /// All of them, in the order in which they are told.
    pub const ALL: [Self; 9] = [
        Self::Read,
        Self::Queue,
        Self::Slot,
        Self::Hash,
        Self::Insert,
        Self::Work,
        Self::Settle,
        Self::Reply,
        Self::Total,
    ];

    /// Its name, in metrics and headers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Queue => "queue",
            Self::Slot => "slot",
            Self::Hash => "hash",
            Self::Insert => "insert",
            Self::Work => "work",
            Self::Settle => "settle",
            Self::Reply => "reply",
            Self::Total => "total",
        }
    }
}

/// The stages of one signup, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages([Option<Duration>; Stage::ALL.len()]);

impl Stages {
    /// Notes what a stage took. What is done again, such as a second look at the store, adds up.
    pub fn add(&mut self, stage: Stage, took: Duration) {
        let known = &mut self.0[stage as usize];
        *known = Some(known.unwrap_or_default() + took);
    }

    /// Adds what somebody else knows.
    pub fn merge(&mut self, others: Self) {
        for stage in Stage::ALL {
            if let Some(took) = others.get(stage) {
                self.add(stage, took);
            }
        }
    }

    /// What a stage took, if it took place.
    pub fn get(&self, stage: Stage) -> Option<Duration> {
        self.0[stage as usize]
    }

    /// Takes a stage out.
    pub fn take(&mut self, stage: Stage) -> Option<Duration> {
        self.0[stage as usize].take()
    }

    /// The same in milliseconds, to the microsecond.
    pub fn ms(&self, stage: Stage) -> Option<f64> {
        self.get(stage).map(|took| took.as_micros() as f64 / 1e3)
    }

    /// Those that are known, as `Server-Timing` writes them: `slot;dur=0.012, hash;dur=210.1`, in
    /// milliseconds.
    pub fn to_server_timing(&self) -> String {
        let mut text = String::with_capacity(96);
        for stage in Stage::ALL {
            if let Some(ms) = self.ms(stage) {
                let comma = if text.is_empty() { "" } else { ", " };
                // Writing to a string does not fail.
                let _ = write!(text, "{comma}{};dur={ms}", stage.as_str());
            }
        }
        text
    }

    /// Reads what [`Stages::to_server_timing`] wrote; what it does not know is left out.
    pub fn from_server_timing(text: &str) -> Self {
        let mut stages = Self::default();
        for entry in text.split(',') {
            let Some((name, ms)) = entry.trim().split_once(";dur=") else { continue };
            let stage = Stage::ALL.into_iter().find(|stage| stage.as_str() == name);
            let took =
                ms.parse().ok().and_then(|ms: f64| Duration::try_from_secs_f64(ms / 1e3).ok());
            if let (Some(stage), Some(took)) = (stage, took) {
                stages.add(stage, took.min(LONGEST));
            }
        }
        stages
    }
}

/// Longer than anything takes: no number in a header makes a sum overflow.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut stages = Stages::default();
        assert_eq!(stages.to_server_timing(), "");
        stages.add(Stage::Hash, Duration::from_micros(210_100));
        stages.add(Stage::Slot, Duration::ZERO);
        stages.add(Stage::Insert, Duration::from_micros(1));
        stages.add(Stage::Insert, Duration::from_micros(2));
        let text = stages.to_server_timing();
        assert_eq!(text, "slot;dur=0, hash;dur=210.1, insert;dur=0.003");
        assert_eq!(Stages::from_server_timing(&text), stages);
    }

    #[test]
    fn rubbish_is_no_time() {
        let rubbish = "hash, hash;dur=x, hash;dur=-1, hash;dur=inf, other;dur=1, ;dur=1,,";
        assert_eq!(Stages::from_server_timing(rubbish), Stages::default());
        let long = Stages::from_server_timing("hash;dur=1e300, slot;dur=1e18,hash;dur=2");
        assert_eq!(long.ms(Stage::Hash), Some(2.0));
        assert_eq!(long.get(Stage::Slot), Some(LONGEST));
    }

    #[test]
    fn every_stage_has_its_place() {
        for (place, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, place);
        }
    }
}
