//! Forwards frames from the broker to lapin and replaces those that lapin could not parse. Its memory is bounded: it
//! buffers one content header or one short method, never a body.

use super::{content_header, method};

/// Frame types (AMQP 0-9-1, 4.2.3).
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
/// Bytes before the payload: type, channel and size. One byte follows it.
const START: usize = 7;
const END: u8 = 0xCE;

/// The filter of one connection, from its first byte.
pub(super) struct FrameFilter {
    state: FilterState,
    /// The buffered start of a frame.
    held: Vec<u8>,
    /// Largest frame that lapin accepts, in bytes.
    frame_max: u32,
}

#[derive(Clone, Copy, Debug)]
enum FilterState {
    /// Buffers this many bytes of a frame, which the next decision needs.
    Hold(usize, FrameStage),
    /// Forwards this many bytes.
    Pass(u64),
    /// Drops this many bytes, then forwards the last byte of the frame.
    Drop(u64),
    /// Forwards everything: the bytes are not frames, and lapin reports that.
    Raw,
}

/// The decision that follows when enough of a frame is buffered.
#[derive(Clone, Copy, Debug)]
enum FrameStage {
    Type,
    Method,
    WholeMethod,
    WholeHeader,
    LargeHeader,
}

const NEXT_FRAME: FilterState = FilterState::Hold(START, FrameStage::Type);

impl FrameFilter {
    /// Creates a filter. `frame_max` is the limit that lapin requests, in bytes; 0 means no limit.
    pub(super) fn new(frame_max: u32) -> Self {
        let mut filter = Self { state: NEXT_FRAME, held: Vec::new(), frame_max: u32::MAX };
        filter.limit(frame_max);
        filter
    }

    /// Applies a limit; the smaller one of both sides counts.
    fn limit(&mut self, frame_max: u32) {
        if frame_max != 0 {
            self.frame_max = self.frame_max.min(frame_max);
        }
    }

    /// Filters the next bytes from the broker and appends the result to `output`.
    pub(super) fn pass(&mut self, mut input: &[u8], output: &mut Vec<u8>) {
        while !input.is_empty() {
            match self.state {
                FilterState::Raw => {
                    output.extend(input);
                    return;
                }
                FilterState::Pass(left) => {
                    let passed = take(&mut input, left);
                    output.extend(passed);
                    let left = left - passed.len() as u64;
                    self.state = if left == 0 { NEXT_FRAME } else { FilterState::Pass(left) };
                }
                FilterState::Drop(left) => {
                    let left = left - take(&mut input, left).len() as u64;
                    self.state =
                        if left == 0 { FilterState::Pass(1) } else { FilterState::Drop(left) };
                }
                FilterState::Hold(until, stage) => {
                    let missing = until - self.held.len();
                    self.held.extend(take(&mut input, missing as u64));
                    if self.held.len() == until {
                        self.state = self.decide(stage, output);
                    }
                }
            }
        }
    }

    fn decide(&mut self, stage: FrameStage, output: &mut Vec<u8>) -> FilterState {
        let size = u32::from_be_bytes([self.held[3], self.held[4], self.held[5], self.held[6]]);
        let (size, bytes) = (size as usize, u64::from(size));
        let whole = START + size + 1;
        match stage {
            FrameStage::Type => match self.held[0] {
                METHOD if size >= method::ID => {
                    FilterState::Hold(START + method::ID, FrameStage::Method)
                }
                HEADER if whole > self.frame_max as usize && size > content_header::PREFIX => {
                    FilterState::Hold(START + content_header::PREFIX, FrameStage::LargeHeader)
                }
                HEADER => FilterState::Hold(whole, FrameStage::WholeHeader),
                METHOD | BODY | HEARTBEAT => self.release(bytes + 1, output),
                _ => {
                    self.release(0, output);
                    FilterState::Raw
                }
            },
            FrameStage::Method if method::is_of_interest(&self.held[START..], size) => {
                FilterState::Hold(whole, FrameStage::WholeMethod)
            }
            FrameStage::Method => self.release((size - method::ID) as u64 + 1, output),
            FrameStage::WholeMethod if self.ends_well() => {
                let payload = &self.held[START..START + size];
                if let Some(frame_max) = method::offered_frame_max(payload) {
                    self.limit(frame_max);
                } else if let Some(readable) = method::with_readable_text(payload) {
                    let length = (readable.len() as u32).to_be_bytes();
                    self.held.splice(3..START + size, length.into_iter().chain(readable));
                }
                self.release(0, output)
            }
            FrameStage::WholeHeader if self.ends_well() && size >= content_header::PREFIX => {
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
            FrameStage::LargeHeader => {
                self.replace(content_header::TOO_LARGE, output);
                FilterState::Drop((size - content_header::PREFIX) as u64)
            }
            // lapin refuses a frame without the end byte before it parses the payload.
            FrameStage::WholeMethod | FrameStage::WholeHeader => {
                self.release(0, output);
                FilterState::Raw
            }
        }
    }

    fn ends_well(&self) -> bool {
        self.held.last() == Some(&END)
    }

    /// Forwards the buffered bytes and the next `then` bytes.
    fn release(&mut self, then: u64, output: &mut Vec<u8>) -> FilterState {
        output.append(&mut self.held);
        if then == 0 { NEXT_FRAME } else { FilterState::Pass(then) }
    }

    /// Writes a content header with the marker and the message id, without its end byte.
    fn replace(&mut self, reason: &str, output: &mut Vec<u8>) {
        let mut payload = self.held[START..START + content_header::PREFIX].to_vec();
        // Properties that are too large are not buffered.
        let properties = self.held.get(START + content_header::PREFIX..self.held.len() - 1);
        let id = content_header::message_id(properties.unwrap_or_default());
        content_header::write_marker(reason, id, &mut payload);
        output.extend(&self.held[..3]);
        output.extend((payload.len() as u32).to_be_bytes());
        output.extend(payload);
        self.held.clear();
    }
}

/// Splits off at most this many bytes.
fn take<'a>(input: &mut &'a [u8], most: u64) -> &'a [u8] {
    let length = usize::try_from(most).map_or(input.len(), |most| most.min(input.len()));
    let (head, rest) = input.split_at(length);
    *input = rest;
    head
}

#[cfg(test)]
mod tests;
