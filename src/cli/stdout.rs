//! Standard output of all commands. If the reader closes the pipe, as `head` does, the output ends and the command
//! does not fail. Any other write error, such as a full disk, is an error of the command.

use std::io::{self, StdoutLock, Write};

use super::{EXIT_FAILED, EXIT_OK, print_error};

/// Standard output. [`is_closed`] recognises the error of a closed pipe.
pub(super) struct Stdout(StdoutLock<'static>);

impl Stdout {
    pub(super) fn lock() -> Self {
        Self(io::stdout().lock())
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(with_context)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(with_context)
    }
}

fn with_context(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("standard output cannot be written: {error}"))
}

/// Writes text. After the reader has closed the pipe, the rest is dropped.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = Stdout::lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Writes text and returns the exit code.
pub(super) fn print_or_fail(text: &str) -> u8 {
    match print(text) {
        Ok(()) => EXIT_OK,
        Err(error) => {
            print_error(&error);
            EXIT_FAILED
        }
    }
}

/// Returns whether an error means that the reader has closed the pipe.
pub(super) fn is_closed(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
