//! Where the report of each row goes: a file or standard output, one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

use crate::rows::RowReport;

/// Whether a file is the report of an import, as far as its first line shows.
pub fn is_report(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let mut first = Vec::new();
    let read = BufReader::new(file.take(64 << 10)).read_until(b'\n', &mut first);
    let first = read.ok().and_then(|_| serde_json::from_slice::<serde_json::Value>(&first).ok());
    first.is_some_and(|first| first["line"].is_u64() && first["outcome"].is_string())
}

/// Written to in pieces, whenever the ledger is.
pub struct Output {
    to: To,
    waiting: Vec<u8>,
}

enum To {
    Nowhere,
    Stdout,
    File { file: File, name: String, length: u64, is_regular: bool },
}

impl Output {
    /// Standard output.
    pub fn stdout() -> Self {
        Self { to: To::Stdout, waiting: Vec::new() }
    }

    /// None: the counts at the end are the report.
    pub fn nowhere() -> Self {
        Self { to: To::Nowhere, waiting: Vec::new() }
    }

    /// A file of its owner's alone. A resumed import's goes on at `keep` bytes: what stands behind was
    /// reported of rows that are not in the ledger, and will be again.
    pub fn file(path: &Path, keep: Option<u64>) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let told = || format!("{name}: cannot be written; give --output another file");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .with_context(told)?;
        let keep = keep.unwrap_or(0);
        let metadata = file.metadata().with_context(told)?;
        // A pipe or a device has nothing to be cut.
        if metadata.is_file() {
            anyhow::ensure!(
                metadata.len() >= keep,
                "{name}: shorter than the checkpoint says; give --output the report that the import began"
            );
            file.set_len(keep).and_then(|()| file.seek(SeekFrom::End(0))).with_context(told)?;
        }
        Ok(Self {
            to: To::File { file, name, length: keep, is_regular: metadata.is_file() },
            waiting: Vec::new(),
        })
    }

    pub(super) fn add(&mut self, report: &RowReport) {
        if !matches!(self.to, To::Nowhere) {
            serde_json::to_writer(&mut self.waiting, report).expect("a report is JSON");
            self.waiting.push(b'\n');
        }
    }

    /// Writes what waits. How long the file is then.
    pub(super) fn flush(&mut self) -> anyhow::Result<Option<u64>> {
        let waiting = std::mem::take(&mut self.waiting);
        match &mut self.to {
            To::Nowhere => Ok(None),
            To::Stdout => {
                let mut stdout = io::stdout().lock();
                match stdout.write_all(&waiting).and_then(|()| stdout.flush()) {
                    // Its reader has stopped reading, as `head` does. The rows go on without their reports.
                    Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                        self.to = To::Nowhere;
                    }
                    written => written.context("standard output cannot be written")?,
                }
                Ok(None)
            }
            To::File { file, name, length, is_regular } => {
                let told = || format!("{name}: cannot be written");
                file.write_all(&waiting).with_context(told)?;
                // Before the ledger says so: after a power cut it must not be ahead of the report.
                if *is_regular {
                    file.sync_data().with_context(told)?;
                }
                *length += waiting.len() as u64;
                Ok(Some(*length))
            }
        }
    }
}
