//! Standard error: log lines, and messages for people. A stream that is closed, full or not read never stops
//! the process: once the log has begun, a thread of its own writes from a bounded buffer, and what cannot be
//! written is dropped and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Bytes that may wait to be written: minutes of a busy log.
const BUFFER_MAX: usize = 4 << 20;
/// Between two attempts to write to a full pipe that is set to non-blocking.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Longest time that the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Set once the log has begun. Before that, and in commands without a log, messages are written directly.
static LINES: OnceLock<Arc<Lines>> = OnceLock::new();

/// Starts the thread that writes to standard error.
pub(super) fn start() -> io::Result<Arc<Lines>> {
    use std::os::fd::AsFd;
    // A handle of its own: the thread must not hold the lock of the standard library's while it blocks.
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let lines = Lines::start(std::fs::File::from(stderr))?;
    Ok(LINES.get_or_init(|| lines).clone())
}

/// Writes a line for a person. Control characters of file names, cells and answers of servers are escaped.
pub fn line(text: &str) {
    self::text(&format!("{}\n", printable(text)));
}

/// A text without characters that act on a terminal: controls but for line ends and tabs, and marks that
/// reorder text.
pub fn printable(text: &str) -> String {
    let acts = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Writes a text for a person, such as a prompt.
pub fn text(text: &str) {
    match LINES.get() {
        Some(lines) => lines.push(text.as_bytes()),
        None => drop(io::stderr().write_all(text.as_bytes())),
    }
}

/// Waits until everything has been written, but no longer than a second.
pub fn flush() {
    if let Some(lines) = LINES.get() {
        lines.flush(FLUSH_TIMEOUT);
    }
}

/// Lines lost so far.
pub(super) fn lost() -> u64 {
    LINES.get().map_or(0, |lines| lines.lost.load(Ordering::Relaxed))
}

/// Lines on their way to a stream.
#[derive(Debug, Default)]
pub(super) struct Lines {
    waiting: Mutex<Waiting>,
    changed: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Whether the thread is writing what it has taken.
    is_writing: bool,
}

impl Lines {
    fn start(stream: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let lines = Arc::new(Self::default());
        let writer = lines.clone();
        let thread = std::thread::Builder::new().name("log-writer".into());
        thread.spawn(move || writer.write_forever(stream))?;
        Ok(lines)
    }

    /// Never blocks: what does not fit is lost.
    fn push(&self, text: &[u8]) {
        let mut waiting = self.lock();
        if waiting.bytes.len() + text.len() > BUFFER_MAX {
            self.lose(text);
            return;
        }
        waiting.bytes.extend_from_slice(text);
        drop(waiting);
        self.changed.notify_all();
    }

    fn flush(&self, timeout: Duration) {
        let is_busy = |waiting: &mut Waiting| waiting.is_writing || !waiting.bytes.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), timeout, is_busy));
    }

    fn write_forever(&self, mut stream: impl Write) {
        let (mut is_torn, mut reported) = (false, 0);
        loop {
            let is_idle = |waiting: &mut Waiting| waiting.bytes.is_empty();
            let waiting = self.changed.wait_while(self.lock(), is_idle);
            let mut waiting = waiting.unwrap_or_else(PoisonError::into_inner);
            let taken = std::mem::take(&mut waiting.bytes);
            waiting.is_writing = true;
            drop(waiting);
            // What was cut off must not run into the next line.
            is_torn = is_torn && write(&mut stream, b"\n") == 0;
            let written = if is_torn { 0 } else { write(&mut stream, &taken) };
            is_torn |= taken[..written].last().is_some_and(|last| *last != b'\n');
            self.lose(&taken[written..]);
            let lost = self.lost.load(Ordering::Relaxed);
            if written == taken.len() && lost > reported {
                tracing::warn!(lines = lost - reported, "log lines were lost");
                reported = lost;
            }
            self.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    fn lose(&self, text: &[u8]) {
        let lines = text.iter().filter(|byte| **byte == b'\n').count();
        self.lost.fetch_add(lines as u64, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much of it was written.
#[expect(clippy::disallowed_methods, reason = "a thread of its own, which has nothing else to do")]
fn write(stream: &mut impl Write, text: &[u8]) -> usize {
    let mut written = 0;
    while written < text.len() {
        match stream.write(&text[written..]) {
            Ok(0) => break,
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(RETRY_PAUSE);
            }
            Err(_) => break,
        }
    }
    written
}

/// For the log, which writes each event as a whole.
impl Write for &Lines {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.push(event);
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Answers each write as the test says; by itself, when the test has ended, with success.
    struct Scripted(mpsc::Receiver<io::Result<usize>>, mpsc::Sender<Vec<u8>>);

    impl Write for Scripted {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let written = self.0.recv().unwrap_or(Ok(usize::MAX))?.min(text.len());
            let _ = self.1.send(text[..written].to_vec());
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_dropped_and_counted() {
        let ((answer, answers), (sender, written)) = (mpsc::channel(), mpsc::channel());
        let lines = Lines::start(Scripted(answers, sender)).unwrap();
        let next = || String::from_utf8(written.recv().unwrap()).unwrap();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let lost = || lines.lost.load(Ordering::Relaxed);

        lines.push(b"one\n");
        answer.send(Ok(2)).unwrap();
        answer.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        answer.send(Err(io::ErrorKind::Interrupted.into())).unwrap();
        answer.send(Ok(2)).unwrap();
        assert_eq!((next(), next(), lost()), ("on".into(), "e\n".into(), 0), "it waits for room");

        lines.push(b"two\n");
        answer.send(Ok(1)).unwrap();
        answer.send(Err(full())).unwrap();
        lines.flush(Duration::from_secs(60));
        assert_eq!((next(), lost()), ("t".into(), 1));
        lines.push(b"three\n");
        answer.send(Err(full())).unwrap();
        lines.flush(Duration::from_secs(60));
        assert_eq!(lost(), 2);
        drop(answer);
        lines.push(b"four\n");
        assert_eq!((next(), next(), lost()), ("\n".into(), "four\n".into(), 2), "on a new line");
    }

    #[test]
    fn a_stream_that_is_not_read_blocks_nobody() {
        let ((answer, answers), (sender, _written)) = (mpsc::channel(), mpsc::channel());
        let lines = Lines::start(Scripted(answers, sender)).unwrap();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let pushed = 2 * BUFFER_MAX / line.len();
        for _ in 0..pushed {
            (&*lines).write_all(&line).unwrap();
        }
        let lost = lines.lost.load(Ordering::Relaxed) as usize;
        // The thread may have taken what was there, and what came meanwhile.
        assert!(lost > 0 && lost <= pushed / 2, "{lost} of {pushed}");
        lines.flush(Duration::from_millis(1));
        drop(answer);
        lines.flush(Duration::from_secs(60));
        assert!(lines.lock().bytes.is_empty());
    }
}
