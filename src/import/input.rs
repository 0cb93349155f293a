//! The input: a thread that reads, digests, cuts and checks, ahead of what is sent by a few pieces. On
//! a resume it passes over rows that are done, and lets nothing out before it has seen that the input
//! begins as the one the ledger knows.

use std::io::{ErrorKind, Read};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::cutter::Cutter;
use super::done::Lines as DoneLines;
use super::encoding::Decoder;
use super::ledger::{Job, Pin, Resumed};
use super::tally::Tally;
use crate::contract::Policy;
use crate::rows::{ValidRow, HashColumnDetector, Judged, RowError, RowRules};

/// Longest row, in bytes: what the front takes as a body by default.
pub const ROW_MAX: usize = 16 << 10;
/// Bytes read at once. What was read and is not sent yet is a few times that, and a row that is refused
/// takes a hundred times the bytes that the shortest one has.
const PIECE: usize = 16 << 10;

/// How rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One JSON object a line.
    Ndjson,
    /// A header and one record a line.
    Csv {
        /// Between cells.
        delimiter: u8,
    },
}

/// What there is to read.
pub struct Input {
    /// The bytes.
    pub reader: Box<dyn Read + Send>,
    /// What the rows are.
    pub job: Job,
    /// What is asked of passwords beyond the contract.
    pub policy: Policy,
    /// Where an earlier run came to.
    pub resumed: Option<Resumed>,
}

/// A row of the input.
pub(super) struct Row {
    pub(super) line: u64,
    pub(super) checked: Result<ValidRow, Vec<RowError>>,
}

/// What came of one piece of the input.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) rows: Vec<Row>,
    /// What people should know of the input.
    pub(super) notes: Vec<String>,
    /// What was read up to here; none while an earlier run's is being read again.
    pub(super) pin: Option<Pin>,
    pub(super) offset: u64,
}

/// Rows as they are read, ahead of what is sent by a few pieces.
pub struct Rows {
    pub(super) job: Job,
    pub(super) resumed: Option<Tally>,
    batches: mpsc::Receiver<anyhow::Result<Batch>>,
    first: Option<Batch>,
}

impl Input {
    /// Starts reading.
    pub fn start(self) -> anyhow::Result<Rows> {
        let (sender, batches) = mpsc::channel(2);
        let job = self.job.clone();
        let resumed = self.resumed.as_ref().map(|resumed| resumed.tally);
        std::thread::Builder::new()
            .name("import-input".into())
            .spawn(move || {
                if let Err(error) = read(self, &sender) {
                    let _ = sender.blocking_send(Err(error));
                }
            })
            .context("cannot start the input's thread")?;
        Ok(Rows { job, resumed, batches, first: None })
    }
}

impl Rows {
    /// Waits for the first rows, so that an input that cannot be imported is refused before anything else
    /// begins. Returns what people should know of it.
    pub async fn check_start(&mut self) -> anyhow::Result<Vec<String>> {
        if let Some(first) = self.batches.recv().await {
            let mut first = first?;
            let notes = std::mem::take(&mut first.notes);
            self.first = Some(first);
            return Ok(notes);
        }
        Ok(Vec::new())
    }

    /// The next rows. An error is the last to come.
    pub(super) async fn recv(&mut self) -> Option<anyhow::Result<Batch>> {
        match self.first.take() {
            Some(first) => Some(Ok(first)),
            None => self.batches.recv().await,
        }
    }

    pub(super) fn close(&mut self) {
        self.batches.close();
    }
}

fn read(input: Input, batches: &mpsc::Sender<anyhow::Result<Batch>>) -> anyhow::Result<()> {
    let Input { mut reader, job, policy, resumed } = input;
    let (done, mut known) = match resumed {
        Some(Resumed { done, pin, .. }) => (done, pin),
        None => (DoneLines::default(), None),
    };
    let rules = RowRules {
        contract: job.contract,
        id_field: job.id_field.clone(),
        policy,
        allow_hash_like: job.allow_hash_like,
    };
    let mut cutter = Cutter::new(&job)?;
    let mut decoder = Decoder::new(job.encoding);
    let mut column = HashColumnDetector::default();
    let (mut digest, mut offset, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    let mut rows = Vec::new();
    loop {
        // What an earlier run read ends where a piece ends, so that the two can be compared.
        let left = known.as_ref().map_or(u64::MAX, |pin| pin.offset - offset);
        let room = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        let read = match reader.read(&mut piece[..room]) {
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("the input cannot be read"),
        };
        if read == 0 && known.is_some() {
            bail!(OTHER_INPUT);
        }
        digest.update(&piece[..read]);
        offset += read as u64;
        cutter.push(&decoder.decode(&piece[..read], read == 0)?, read == 0)?;
        cutter.cut(&rules, &mut |line, check| {
            let is_done = done.has(line);
            // Rows that an earlier run did count for the judgement, so that this one judges as that did.
            if !is_done || !column.is_decided() {
                let checked = check();
                let hash_like = checked.as_ref().ok().and_then(|checked| checked.hash_like);
                let row = (!is_done).then_some(Row { line, checked });
                rows.extend(refuse_hashes(column.add(row, hash_like)));
            }
        })?;
        if read == 0 {
            rows.extend(refuse_hashes(column.end()));
        }
        if let Some(pin) = known.take_if(|pin| pin.offset == offset)
            && pin.digest != hex(&digest)
        {
            bail!(OTHER_INPUT);
        }
        // A header goes out with the first rows, so that whoever waits for these has it checked.
        if known.is_none() && (cutter.has_header() || read == 0) {
            let pin = (read > 0).then(|| Pin { offset, digest: hex(&digest) });
            let notes = cutter.take_notes();
            let batch = Batch { rows: std::mem::take(&mut rows), notes, pin, offset };
            if batches.blocking_send(Ok(batch)).is_err() {
                return Ok(());
            }
        }
        if read == 0 {
            return Ok(());
        }
    }
}

/// Rows whose password turned out to be a hash are refused.
fn refuse_hashes(judged: Vec<Judged<Option<Row>>>) -> impl Iterator<Item = Row> {
    judged.into_iter().filter_map(|(row, is_hash)| {
        let mut row = row?;
        if let (true, Ok(checked)) = (is_hash, &row.checked) {
            row.checked = Err(checked.as_hash());
        }
        Some(row)
    })
}

const OTHER_INPUT: &str = "the checkpoint is of another input: what was read of that one is not how this \
     one begins; resume with the same bytes, or start again with another checkpoint";

fn hex(digest: &Sha256) -> String {
    digest.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
