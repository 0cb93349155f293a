//! Durations of the stages of a signup. Each stage is measured by one clock, in the process where it happens. A reply
//! carries the worker's stages to the front in the format of the HTTP header `Server-Timing`.

use std::fmt::Write;
use std::time::Duration;

/// A stage of a signup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// At the front: from the request headers to the end of the body.
    Read,
    /// At the front: from the publish to the reply, without [`Stage::Work`]. Includes the way of the reply.
    Queue,
    /// At a worker: in the hash queue.
    Slot,
    /// At a worker: hashed or verified, in parallel with other passwords.
    Hash,
    /// At a worker: the insert into the store.
    Insert,
    /// At a worker: from the delivery to the outcome. Includes the three stages before.
    Work,
    /// At a worker: reply and event published and confirmed, message acked.
    Settle,
    /// At the front: from the reply to the rendered response.
    Reply,
    /// At the front: from the request headers to the response.
    Total,
}

impl Stage {
    /// All stages, in the order of the header.
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

    /// Name in metrics and headers.
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

/// Durations of the stages of one signup that have been measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages([Option<Duration>; Stage::ALL.len()]);

impl Stages {
    /// Adds a duration to a stage. Repeated work, such as a second store lookup, adds up.
    pub fn add(&mut self, stage: Stage, took: Duration) {
        let total = &mut self.0[stage as usize];
        *total = Some(total.unwrap_or_default() + took);
    }

    /// Adds the stages measured by another process.
    pub fn merge(&mut self, others: Self) {
        for stage in Stage::ALL {
            if let Some(took) = others.get(stage) {
                self.add(stage, took);
            }
        }
    }

    /// Returns the duration of a stage, if it was measured.
    pub fn get(&self, stage: Stage) -> Option<Duration> {
        self.0[stage as usize]
    }

    /// Removes a stage and returns its duration.
    pub fn take(&mut self, stage: Stage) -> Option<Duration> {
        self.0[stage as usize].take()
    }

    /// Returns the duration of a stage in milliseconds, with three decimals.
    pub fn ms(&self, stage: Stage) -> Option<f64> {
        self.get(stage).map(|took| took.as_micros() as f64 / 1e3)
    }

    /// Formats the measured stages like a `Server-Timing` header: `slot;dur=0.012, hash;dur=210.1`, in
    /// milliseconds.
    pub fn to_server_timing(&self) -> String {
        let mut text = String::with_capacity(96);
        for stage in Stage::ALL {
            if let Some(ms) = self.ms(stage) {
                let comma = if text.is_empty() { "" } else { ", " };
                // Writing to a `String` does not fail.
                let _ = write!(text, "{comma}{};dur={ms}", stage.as_str());
            }
        }
        text
    }

    /// Parses the format of [`Stages::to_server_timing`]. Unknown or invalid entries are skipped.
    pub fn from_server_timing(text: &str) -> Self {
        let mut stages = Self::default();
        for entry in text.split(',') {
            let Some((name, ms)) = entry.trim().split_once(";dur=") else { continue };
            let stage = Stage::ALL.into_iter().find(|stage| stage.as_str() == name);
            let took =
                ms.parse().ok().and_then(|ms: f64| Duration::try_from_secs_f64(ms / 1e3).ok());
            if let (Some(stage), Some(took)) = (stage, took) {
                stages.add(stage, took.min(STAGE_MAX));
            }
        }
        stages
    }
}

/// Upper limit of a parsed duration, so that a number in a header cannot overflow a sum.
const STAGE_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formatted_stages_are_parsed() {
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
    fn invalid_entries_are_skipped() {
        let invalid = "hash, hash;dur=x, hash;dur=-1, hash;dur=inf, other;dur=1, ;dur=1,,";
        assert_eq!(Stages::from_server_timing(invalid), Stages::default());
        let long = Stages::from_server_timing("hash;dur=1e300, slot;dur=1e18,hash;dur=2");
        assert_eq!(long.ms(Stage::Hash), Some(2.0));
        assert_eq!(long.get(Stage::Slot), Some(STAGE_MAX));
    }

    #[test]
    fn stages_are_listed_in_order() {
        for (index, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, index);
        }
    }
}
