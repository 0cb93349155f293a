//! Reads the files that settings name: certificates, keys, key sets, password lists, secrets and
//! settings.
//!
//! Only regular files of a bounded size are read, because a FIFO or device could block a start or a
//! reload, or exhaust the memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Take};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Maximum size of a certificate, key, key set, secret or settings file, in bytes.
pub const MAX_BYTES: u64 = 1 << 20;

/// Opens a regular file of at most `max` bytes. If the file grows later, at most `max` bytes are read.
///
/// # Errors
/// If the file cannot be opened, is not a regular file, or is larger than `max`.
pub fn open(path: &Path, max: u64) -> io::Result<Take<File>> {
    // Without O_NONBLOCK, opening a FIFO waits for a writer.
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if metadata.len() > max {
        return Err(io::Error::other(format!("larger than {max} bytes")));
    }
    Ok(file.take(max))
}

/// Reads a file of at most [`MAX_BYTES`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open(path, MAX_BYTES)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Some editors write it at the start of a file.
pub(super) const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reads a UTF-8 file of at most [`MAX_BYTES`]. A leading byte order mark is dropped.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut file = open(path, MAX_BYTES)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    if text.starts_with(BYTE_ORDER_MARK) {
        // In place, because the text may be a key, of which no copy must stay in memory.
        text.drain(..BYTE_ORDER_MARK.len_utf8());
    }
    Ok(text)
}

/// Returns the path of the generated signing secret: the path of the data file with `.secret` appended.
pub fn secret_file(data_file: &Path) -> PathBuf {
    let mut name = data_file.as_os_str().to_owned();
    name.push(".secret");
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_the_size_limit_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("text"), "text").unwrap();
        std::os::unix::fs::symlink(path("text"), path("link")).unwrap();
        assert_eq!(read_text(&path("link")).unwrap(), "text");
        assert_eq!(read(&path("text")).unwrap(), b"text");

        let fifo = path("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        for other in [&fifo, Path::new("/dev/zero"), directory.path()] {
            let error = read(other).unwrap_err().to_string();
            assert_eq!(error, "not a regular file", "{}", other.display());
        }
        // A sparse file: it occupies no disk space.
        File::create(path("large")).unwrap().set_len(6 << 30).unwrap();
        assert_eq!(read(&path("large")).unwrap_err().to_string(), "larger than 1048576 bytes");
        assert_eq!(read(&path("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
