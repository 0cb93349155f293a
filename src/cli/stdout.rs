//! Standard output of all commands. A reader may stop reading, as `head` does: the output ends, and the command does not
//! fail. Any other write error, such as a full disk, is an error of the command.

use std::io::{self, StdoutLock, Write};

use super::{EXIT_FAILED, EXIT_OK, complain};

/// Standard output, line by line. [`is_closed`] recognises the error of a reader that stopped.
pub(super) struct Stdout(StdoutLock<'static>);

impl Stdout {
    pub(super) fn lock() -> Self {
        Self(io::stdout().lock())
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(named)
    }
}

fn named(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("standard output cannot be written: {error}"))
}

/// Writes a text. Where its reader stopped reading, the rest is dropped.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = Stdout::lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes a text and returns the exit code.
pub(super) fn printed(text: &str) -> u8 {
    match print(text) {
        Ok(()) => EXIT_OK,
        Err(error) => {
            complain(&error);
            EXIT_FAILED
        }
    }
}

/// Whether an error says that the reader stopped reading.
pub(super) fn is_closed(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
