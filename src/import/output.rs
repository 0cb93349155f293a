//! Where the report of each row goes: a file or standard output, one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::Context;

use crate::rows::Report;

/// Written to in pieces, whenever the ledger is.
pub struct Output {
    to: To,
    waiting: Vec<u8>,
    only_refused: bool,
}

enum To {
    Stdout,
    File { file: File, name: String, length: u64, is_regular: bool },
}

impl Output {
    /// Standard output; on a terminal, where nobody reads a line for each user that was made, only
    /// with those that were not.
    pub fn stdout(only_refused: bool) -> Self {
        Self { to: To::Stdout, waiting: Vec::new(), only_refused }
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
            only_refused: false,
        })
    }

    pub(super) fn add(&mut self, report: &Report, is_refused: bool) {
        if is_refused || !self.only_refused {
            serde_json::to_writer(&mut self.waiting, report).expect("a report is JSON");
            self.waiting.push(b'\n');
        }
    }

    /// Writes what waits. How long the file is then.
    pub(super) fn flush(&mut self) -> anyhow::Result<Option<u64>> {
        let waiting = std::mem::take(&mut self.waiting);
        match &mut self.to {
            To::Stdout => {
                let mut stdout = io::stdout().lock();
                let written = stdout.write_all(&waiting).and_then(|()| stdout.flush());
                written.context("standard output cannot be written")?;
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
