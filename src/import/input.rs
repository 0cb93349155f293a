//! The input thread: reads, hashes, parses and validates rows, a few chunks ahead of the sender. On a resume it skips
//! handled rows, and releases rows only after the start of the input matches the checkpoint.

use std::io::{ErrorKind, Read};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::checkpoint::{ImportJob, InputPrefix, ResumeState};
use super::counts::RowCounts;
use super::encoding::InputDecoder;
use super::line_set::LineSet;
use super::row_parser::RowParser;
use crate::contract::Policy;
use crate::rows::{HashColumnDetector, ReleasedRow, RowError, RowRules, ValidRow};

/// Longest row in bytes: the front's default body limit (16 KiB).
pub const ROW_MAX: usize = 16 << 10;
/// Bytes per read. A few chunks are in memory, and a refused row takes up to 100 times the memory of its text.
const CHUNK: usize = 16 << 10;

/// Format of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputFormat {
    /// One JSON object per line.
    Ndjson,
    /// A header and one record per line.
    Csv {
        /// Byte between cells.
        delimiter: u8,
    },
}

/// The input of an import.
pub struct ImportInput {
    /// Bytes of the input.
    pub reader: Box<dyn Read + Send>,
    /// Parameters of the import.
    pub job: ImportJob,
    /// Password rules in addition to the contract.
    pub policy: Policy,
    /// State of an interrupted import.
    pub resumed: Option<ResumeState>,
}

/// A validated row and its line number.
pub(super) struct InputRow {
    pub(super) line: u64,
    pub(super) checked: Result<ValidRow, Vec<RowError>>,
}

/// Rows of one chunk.
#[derive(Default)]
pub(super) struct RowBatch {
    pub(super) rows: Vec<InputRow>,
    /// Notes about the input, for the user.
    pub(super) notes: Vec<String>,
    /// Input read so far. `None` while the part of the interrupted import is read again.
    pub(super) prefix: Option<InputPrefix>,
    pub(super) offset: u64,
}

/// Receives rows from the input thread.
pub struct RowReader {
    pub(super) job: ImportJob,
    pub(super) resumed: Option<RowCounts>,
    batches: mpsc::Receiver<anyhow::Result<RowBatch>>,
    first: Option<RowBatch>,
}

impl ImportInput {
    /// Starts the input thread. Returns an error if that fails.
    pub fn start(self) -> anyhow::Result<RowReader> {
        let (sender, batches) = mpsc::channel(2);
        let job = self.job.clone();
        let resumed = self.resumed.as_ref().map(|resumed| resumed.counts);
        std::thread::Builder::new()
            .name("import-input".into())
            .spawn(move || {
                if let Err(error) = read(self, &sender) {
                    let _ = sender.blocking_send(Err(error));
                }
            })
            .context("cannot start the input thread")?;
        Ok(RowReader { job, resumed, batches, first: None })
    }
}

impl RowReader {
    /// Waits for the first rows, so that an invalid input fails before anything else starts. Returns notes for the
    /// user.
    pub async fn check_start(&mut self) -> anyhow::Result<Vec<String>> {
        if let Some(first) = self.batches.recv().await {
            let mut first = first?;
            let notes = std::mem::take(&mut first.notes);
            self.first = Some(first);
            return Ok(notes);
        }
        Ok(Vec::new())
    }

    /// Receives the next rows. `None` at the end; an error is the last item.
    pub(super) async fn recv(&mut self) -> Option<anyhow::Result<RowBatch>> {
        match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => self.batches.recv().await,
        }
    }

    pub(super) fn close(&mut self) {
        self.batches.close();
    }
}

fn read(
    input: ImportInput,
    batches: &mpsc::Sender<anyhow::Result<RowBatch>>,
) -> anyhow::Result<()> {
    let ImportInput { mut reader, job, policy, resumed } = input;
    let (handled, mut expected) = match resumed {
        Some(ResumeState { handled, prefix, .. }) => (handled, prefix),
        None => (LineSet::default(), None),
    };
    let rules = RowRules {
        contract: job.contract,
        id_field: job.id_field.clone(),
        policy,
        allow_hash_like: job.allow_hash_like,
    };
    let mut parser = RowParser::new(&job)?;
    let mut decoder = InputDecoder::new(job.encoding);
    let mut hash_detector = HashColumnDetector::default();
    let (mut digest, mut offset, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK]);
    let mut rows = Vec::new();
    loop {
        // A chunk ends where the prefix in the checkpoint ends, so that their digests can be compared.
        let left = expected.as_ref().map_or(u64::MAX, |prefix| prefix.offset - offset);
        let length = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        let read = match reader.read(&mut chunk[..length]) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("cannot read the input"),
        };
        if read == 0 && expected.is_some() {
            bail!(OTHER_INPUT);
        }
        digest.update(&chunk[..read]);
        offset += read as u64;
        parser.push(&decoder.decode(&chunk[..read], read == 0)?, read == 0)?;
        parser.parse(&rules, &mut |line, check| {
            let is_handled = handled.contains(line);
            // Handled rows count for the hash detection too, so that a resume decides as the first run.
            if !is_handled || !hash_detector.is_decided() {
                let checked = check();
                let hash_like = checked.as_ref().ok().and_then(|checked| checked.hash_like);
                let row = (!is_handled).then_some(InputRow { line, checked });
                rows.extend(refuse_hashes(hash_detector.add(row, hash_like)));
            }
        })?;
        if read == 0 {
            rows.extend(refuse_hashes(hash_detector.end()));
        }
        if let Some(prefix) = expected.take_if(|prefix| prefix.offset == offset)
            && prefix.digest != hex(&digest)
        {
            bail!(OTHER_INPUT);
        }
        // The first batch is sent when the header is valid, because `check_start` waits for it.
        if expected.is_none() && (parser.has_header() || read == 0) {
            let prefix = (read > 0).then(|| InputPrefix { offset, digest: hex(&digest) });
            let notes = parser.take_notes();
            let batch = RowBatch { rows: std::mem::take(&mut rows), notes, prefix, offset };
            if batches.blocking_send(Ok(batch)).is_err() {
                return Ok(());
            }
        }
        if read == 0 {
            return Ok(());
        }
    }
}

/// Refuses released rows whose password is a hash.
fn refuse_hashes(released: Vec<ReleasedRow<Option<InputRow>>>) -> impl Iterator<Item = InputRow> {
    released.into_iter().filter_map(|(row, is_hash)| {
        let mut row = row?;
        if let (true, Ok(checked)) = (is_hash, &row.checked) {
            row.checked = Err(checked.hash_like_errors());
        }
        Some(row)
    })
}

const OTHER_INPUT: &str = "the checkpoint is of another input, because the start of this input differs; resume with the same \
     file, or start a new import with another --checkpoint";

fn hex(digest: &Sha256) -> String {
    digest.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
