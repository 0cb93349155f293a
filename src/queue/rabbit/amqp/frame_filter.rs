//! Passes frames on from the broker to the client, and replaces what the client could not read. Bounded:
//! it holds one content header or one short method, never a body.

use super::{content_header, method};

/// Frame types (AMQP 0-9-1, 4.2.3).
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Type, channel and size come before the payload, one byte after it.
const START: usize = 7;
const END: u8 = 0xCE;

/// A filter of one connection, from its first byte on.
pub(super) struct FrameFilter {
    state: State,
    /// The frame so far, while it is held.
    held: Vec<u8>,
    /// Largest frame that the client takes, in bytes.
    frame_max: u32,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Collects as many bytes of a frame as the next decision needs.
    Hold(usize, Stage),
    /// Passes so many bytes on.
    Pass(u64),
    /// Drops so many bytes, then passes the frame's last one on.
    Drop(u64),
    /// These are not frames; the client says so.
    Raw,
}

/// What is decided once enough of a frame is held.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Type,
    Method,
    WholeMethod,
    WholeHeader,
    LargeHeader,
}

const NEXT_FRAME: State = State::Hold(START, Stage::Type);

impl FrameFilter {
    /// `frame_max` is what the client asks for; 0 is no limit.
    pub(super) fn new(frame_max: u32) -> Self {
        let mut filter = Self { state: NEXT_FRAME, held: Vec::new(), frame_max: u32::MAX };
        filter.limit(frame_max);
        filter
    }

    /// Both sides take the smaller limit.
    fn limit(&mut self, frame_max: u32) {
        if frame_max != 0 {
            self.frame_max = self.frame_max.min(frame_max);
        }
    }

    /// Takes the next bytes from the broker and appends what the client may read.
    pub(super) fn pass(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while !input.is_empty() {
            match self.state {
                State::Raw => {
                    output.extend(input);
                    return;
                }
                State::Pass(left) => {
                    let passed = take(&mut input, left);
                    output.extend(passed);
                    let left = left - passed.len() as u64;
                    self.state = if left == 0 { NEXT_FRAME } else { State::Pass(left) };
                }
                State::Drop(left) => {
                    let left = left - take(&mut input, left).len() as u64;
                    self.state = if left == 0 { State::Pass(1) } else { State::Drop(left) };
                }
                State::Hold(until, stage) => {
                    let missing = until - self.held.len();
                    self.held.extend(take(&mut input, missing as u64));
                    if self.held.len() == until {
                        self.state = self.decide(stage, output);
                    }
                }
            }
        }
    }

    fn decide(&mut self, stage: Stage, output: &mut Vec<u8>) -> State {
        let size = u32::from_be_bytes([self.held[3], self.held[4], self.held[5], self.held[6]]);
        let (size, bytes) = (size as usize, u64::from(size));
        let whole = START + size + 1;
        match stage {
            Stage::Type => match self.held[0] {
                METHOD if size >= method::ID => State::Hold(START + method::ID, Stage::Method),
                HEADER if whole > self.frame_max as usize && size > content_header::PREFIX => {
                    State::Hold(START + content_header::PREFIX, Stage::LargeHeader)
                }
                HEADER => State::Hold(whole, Stage::WholeHeader),
                METHOD | BODY | HEARTBEAT => self.release(bytes + 1, output),
                _ => {
                    self.release(0, output);
                    State::Raw
                }
            },
            Stage::Method if method::is_of_interest(&self.held[START..], size) => {
                State::Hold(whole, Stage::WholeMethod)
            }
            Stage::Method => self.release((size - method::ID) as u64 + 1, output),
            Stage::WholeMethod if self.ends_well() => {
                let payload = &self.held[START..START + size];
                if let Some(frame_max) = method::offered_frame_max(payload) {
                    self.limit(frame_max);
                } else if let Some(readable) = method::with_readable_text(payload) {
                    let length = (readable.len() as u32).to_be_bytes();
                    self.held.splice(3..START + size, length.into_iter().chain(readable));
                }
                self.release(0, output)
            }
            Stage::WholeHeader if self.ends_well() && size >= content_header::PREFIX => {
                let properties = &self.held[START + content_header::PREFIX..START + size];
                match content_header::check(properties) {
                    Ok(()) => self.release(0, output),
                    Err(reason) => {
                        self.replace(reason, output);
                        output.push(END);
                        NEXT_FRAME
                    }
                }
            }
            Stage::LargeHeader => {
                self.replace(content_header::TOO_LARGE, output);
                State::Drop((size - content_header::PREFIX) as u64)
            }
            // The client refuses a frame that does not end as one before it looks into it.
            Stage::WholeMethod | Stage::WholeHeader => {
                self.release(0, output);
                State::Raw
            }
        }
    }

    fn ends_well(&self) -> bool {
        self.held.last() == Some(&END)
    }

    /// Passes on what is held and so many bytes after it.
    fn release(&mut self, then: u64, output: &mut Vec<u8>) -> State {
        output.append(&mut self.held);
        if then == 0 { NEXT_FRAME } else { State::Pass(then) }
    }

    /// Writes a content header of the same message with the marker and its id, up to its last byte.
    fn replace(&mut self, reason: &str, output: &mut Vec<u8>) {
        let mut payload = self.held[START..START + content_header::PREFIX].to_vec();
        // Properties that are too large are not held.
        let properties = self.held.get(START + content_header::PREFIX..self.held.len() - 1);
        let id = content_header::message_id(properties.unwrap_or_default());
        content_header::write_marker(reason, id, &mut payload);
        output.extend(&self.held[..3]);
        output.extend((payload.len() as u32).to_be_bytes());
        output.extend(payload);
        self.held.clear();
    }
}

/// Takes at most so many bytes.
fn take<'a>(input: &mut &'a [u8], most: u64) -> &'a [u8] {
    let length = usize::try_from(most).map_or(input.len(), |most| most.min(input.len()));
    let (taken, rest) = input.split_at(length);
    *input = rest;
    taken
}

#[cfg(test)]
mod tests;
