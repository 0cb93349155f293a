//! Output of the row reports, to a file or standard output, one JSON object per line.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

use crate::rows::RowReport;

/// Returns whether the first line of a file is a row report.
pub fn is_report(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let mut first = Vec::new();
    let read = BufReader::new(file.take(64 << 10)).read_until(b'\n', &mut first);
    let first = read.ok().and_then(|_| serde_json::from_slice::<serde_json::Value>(&first).ok());
    first.is_some_and(|first| first["line"].is_u64() && first["outcome"].is_string())
}

/// Buffers row reports, and writes them before the checkpoint.
pub struct ReportWriter {
    target: ReportTarget,
    buffer: Vec<u8>,
}

enum ReportTarget {
    None,
    Stdout,
    File { file: File, name: String, length: u64, is_regular: bool },
}

impl ReportWriter {
    /// Writes to standard output.
    pub fn stdout() -> Self {
        Self { target: ReportTarget::Stdout, buffer: Vec::new() }
    }

    /// Writes no reports. The counts at the end are the only output.
    pub fn none() -> Self {
        Self { target: ReportTarget::None, buffer: Vec::new() }
    }

    /// Writes to a file that only its owner can read. A resumed import truncates it to `keep` bytes: later reports are
    /// of rows that are not in the checkpoint, so they will be reported again.
    pub fn file(path: &Path, keep: Option<u64>) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let context = || format!("{name}: cannot write the report; give --output another file");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(context)?;
        let keep = keep.unwrap_or(0);
        let metadata = file.metadata().with_context(context)?;
        // Only a regular file can be truncated.
        if metadata.is_file() {
            anyhow::ensure!(
                metadata.len() >= keep,
                "{name}: shorter than the checkpoint expects; give --output the report that this import began"
            );
            file.set_len(keep).and_then(|()| file.seek(SeekFrom::End(0))).with_context(context)?;
        }
        Ok(Self {
            target: ReportTarget::File { file, name, length: keep, is_regular: metadata.is_file() },
            buffer: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, report: &RowReport) {
        if !matches!(self.target, ReportTarget::None) {
            serde_json::to_writer(&mut self.buffer, report).expect("a report can be serialized");
            self.buffer.push(b'\n');
        }
    }

    /// Writes the buffer. Returns the length of the file, `None` for other targets.
    pub(super) fn flush(&mut self) -> anyhow::Result<Option<u64>> {
        let buffer = std::mem::take(&mut self.buffer);
        match &mut self.target {
            ReportTarget::None => Ok(None),
            ReportTarget::Stdout => {
                let mut stdout = io::stdout().lock();
                match stdout.write_all(&buffer).and_then(|()| stdout.flush()) {
                    // The reader has closed the pipe, as `head` does. The import continues without reports.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        self.target = ReportTarget::None;
                    }
                    result => result.context("standard output cannot be written")?,
                }
                Ok(None)
            }
            ReportTarget::File { file, name, length, is_regular } => {
                let context = || format!("{name}: cannot write the report");
                file.write_all(&buffer).with_context(context)?;
                // Synced before the checkpoint, which must not be ahead of the report after a power failure.
                if *is_regular {
                    file.sync_data().with_context(context)?;
                }
                *length += buffer.len() as u64;
                Ok(Some(*length))
            }
        }
    }
}
