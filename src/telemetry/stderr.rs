//! Standard error: log lines and messages for the user. A closed, full or unread stream never stops the process. Once
//! the log is set up, a separate thread writes from a bounded buffer, and lines that cannot be written are dropped
//! and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

/// Buffer size in bytes (4 MiB): minutes of a busy log.
const BUFFER_MAX: usize = 4 << 20;
/// Pause between two writes to a full pipe in non-blocking mode.
const RETRY_PAUSE: Duration = Duration::from_millis(20);
/// Longest time that the exit of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Set when the log is set up. Before that, and in commands without a log, messages are written directly.
static LOG_BUFFER: OnceLock<Arc<LogBuffer>> = OnceLock::new();

/// Starts the thread that writes to standard error.
pub(super) fn start() -> io::Result<Arc<LogBuffer>> {
    use std::os::fd::AsFd;
    // A separate handle: a thread that blocks must not hold the standard library's lock of stderr.
    let stderr = io::stderr().as_fd().try_clone_to_owned()?;
    let buffer = LogBuffer::start(std::fs::File::from(stderr))?;
    Ok(LOG_BUFFER.get_or_init(|| buffer).clone())
}

/// Writes a line for the user. Escapes control characters, which file names, cells and server responses may contain.
pub fn line(text: &str) {
    self::text(&format!("{}\n", printable(text)));
}

/// Escapes characters that control a terminal: control characters except line feed and tab, and bidirectional
/// formatting characters.
pub fn printable(text: &str) -> String {
    let is_control = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_control(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// Writes text for the user, such as a prompt.
pub fn text(text: &str) {
    match LOG_BUFFER.get() {
        Some(buffer) => buffer.push(text.as_bytes()),
        None => drop(io::stderr().write_all(text.as_bytes())),
    }
}

/// Waits until the buffer is empty, at most one second.
pub fn flush() {
    if let Some(buffer) = LOG_BUFFER.get() {
        buffer.flush(FLUSH_TIMEOUT);
    }
}

/// Number of log lines dropped so far.
pub(super) fn lost() -> u64 {
    LOG_BUFFER.get().map_or(0, |buffer| buffer.lost.load(Ordering::Relaxed))
}

/// Buffer between the log and the thread that writes it.
#[derive(Debug, Default)]
pub(super) struct LogBuffer {
    pending: Mutex<PendingText>,
    changed: Condvar,
    lost: AtomicU64,
}

#[derive(Debug, Default)]
struct PendingText {
    bytes: Vec<u8>,
    /// Whether the thread is writing bytes that it took from the buffer.
    is_writing: bool,
}

impl LogBuffer {
    fn start(stream: impl Write + Send + 'static) -> io::Result<Arc<Self>> {
        let buffer = Arc::new(Self::default());
        let writer = buffer.clone();
        let thread = std::thread::Builder::new().name("log-writer".into());
        thread.spawn(move || writer.write_forever(stream))?;
        Ok(buffer)
    }

    /// Never blocks: text that does not fit is dropped.
    fn push(&self, text: &[u8]) {
        let mut pending = self.lock();
        if pending.bytes.len() + text.len() > BUFFER_MAX {
            self.count_lost(text);
            return;
        }
        pending.bytes.extend_from_slice(text);
        drop(pending);
        self.changed.notify_all();
    }

    fn flush(&self, timeout: Duration) {
        let is_busy = |pending: &mut PendingText| pending.is_writing || !pending.bytes.is_empty();
        drop(self.changed.wait_timeout_while(self.lock(), timeout, is_busy));
    }

    fn write_forever(&self, mut stream: impl Write) {
        let (mut is_torn, mut reported) = (false, 0);
        loop {
            let is_idle = |pending: &mut PendingText| pending.bytes.is_empty();
            let pending = self.changed.wait_while(self.lock(), is_idle);
            let mut pending = pending.unwrap_or_else(PoisonError::into_inner);
            let text = std::mem::take(&mut pending.bytes);
            pending.is_writing = true;
            drop(pending);
            // A line that was cut off must not join the next one.
            is_torn = is_torn && write(&mut stream, b"\n") == 0;
            let written = if is_torn { 0 } else { write(&mut stream, &text) };
            is_torn |= text[..written].last().is_some_and(|last| *last != b'\n');
            self.count_lost(&text[written..]);
            let lost = self.lost.load(Ordering::Relaxed);
            if written == text.len() && lost > reported {
                tracing::warn!(
                    event = "log_lines_lost",
                    lines = lost - reported,
                    "log lines were lost"
                );
                reported = lost;
            }
            self.lock().is_writing = false;
            self.changed.notify_all();
        }
    }

    fn count_lost(&self, text: &[u8]) {
        let lines = text.iter().filter(|byte| **byte == b'\n').count();
        self.lost.fetch_add(lines as u64, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, PendingText> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes text and returns the number of bytes written, fewer after an error.
#[expect(clippy::disallowed_methods, reason = "the log thread does nothing else, so it may block")]
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

/// `tracing_subscriber` writes each log line in one call.
impl Write for &LogBuffer {
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

    /// A stream whose write results the test sends. After the test every write succeeds.
    struct ScriptedStream(mpsc::Receiver<io::Result<usize>>, mpsc::Sender<Vec<u8>>);

    impl Write for ScriptedStream {
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
        let ((result, results), (sender, written)) = (mpsc::channel(), mpsc::channel());
        let buffer = LogBuffer::start(ScriptedStream(results, sender)).unwrap();
        let next = || String::from_utf8(written.recv().unwrap()).unwrap();
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let lost = || buffer.lost.load(Ordering::Relaxed);

        buffer.push(b"one\n");
        result.send(Ok(2)).unwrap();
        result.send(Err(io::ErrorKind::WouldBlock.into())).unwrap();
        result.send(Err(io::ErrorKind::Interrupted.into())).unwrap();
        result.send(Ok(2)).unwrap();
        assert_eq!(
            (next(), next(), lost()),
            ("on".into(), "e\n".into(), 0),
            "a full pipe is retried"
        );

        buffer.push(b"two\n");
        result.send(Ok(1)).unwrap();
        result.send(Err(full())).unwrap();
        buffer.flush(Duration::from_secs(60));
        assert_eq!((next(), lost()), ("t".into(), 1));
        buffer.push(b"three\n");
        result.send(Err(full())).unwrap();
        buffer.flush(Duration::from_secs(60));
        assert_eq!(lost(), 2);
        drop(result);
        buffer.push(b"four\n");
        assert_eq!((next(), next(), lost()), ("\n".into(), "four\n".into(), 2), "on a new line");
    }

    #[test]
    fn unread_stream_does_not_block_the_caller() {
        let ((result, results), (sender, _written)) = (mpsc::channel(), mpsc::channel());
        let buffer = LogBuffer::start(ScriptedStream(results, sender)).unwrap();
        let line = [&[b'x'; 1023][..], b"\n"].concat();
        let pushed = 2 * BUFFER_MAX / line.len();
        for _ in 0..pushed {
            (&*buffer).write_all(&line).unwrap();
        }
        let lost = buffer.lost.load(Ordering::Relaxed) as usize;
        // The thread may have taken one full buffer and part of another.
        assert!(lost > 0 && lost <= pushed / 2, "{lost} of {pushed}");
        buffer.flush(Duration::from_millis(1));
        drop(result);
        buffer.flush(Duration::from_secs(60));
        assert!(buffer.lock().bytes.is_empty());
    }
}
