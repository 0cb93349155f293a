//! The input: a thread that reads, digests, cuts and checks, ahead of what is sent by a few pieces. On
//! a resume it passes over rows that are done, and lets nothing out before it has seen that the input
//! begins as the one the ledger knows.

use std::io::{ErrorKind, Read};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::csv::{Record, Records};
use super::done::Lines as DoneLines;
use super::header::Header;
use super::ledger::{Job, Pin, Resumed};
use crate::contract::Policy;
use crate::rows::{self, Checked, Line, Lines, RowError};

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
    pub(super) checked: Result<Checked, Vec<RowError>>,
}

/// What came of one piece of the input.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) rows: Vec<Row>,
    /// What was read up to here; none while an earlier run's is being read again.
    pub(super) pin: Option<Pin>,
    pub(super) offset: u64,
}

impl Input {
    /// Starts reading. The last thing to come may be why it cannot go on.
    pub(super) fn start(self) -> anyhow::Result<mpsc::Receiver<anyhow::Result<Batch>>> {
        let (sender, batches) = mpsc::channel(2);
        std::thread::Builder::new()
            .name("import-input".into())
            .spawn(move || {
                if let Err(error) = read(self, &sender) {
                    let _ = sender.blocking_send(Err(error));
                }
            })
            .context("cannot start the input's thread")?;
        Ok(batches)
    }
}

fn read(input: Input, batches: &mpsc::Sender<anyhow::Result<Batch>>) -> anyhow::Result<()> {
    let Input { mut reader, job, policy, resumed } = input;
    let (done, mut known) = match resumed {
        Some(Resumed { done, pin, .. }) => (done, pin),
        None => (DoneLines::default(), None),
    };
    let mut cutter = Cutter::new(&job);
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
        let at_start = offset == 0;
        offset += read as u64;
        cutter.push(&piece[..read], at_start, read == 0);
        cutter.cut(&job, &policy, &done, &mut rows)?;
        if let Some(pin) = known.take_if(|pin| pin.offset == offset)
            && pin.digest != hex(&digest)
        {
            bail!(OTHER_INPUT);
        }
        if known.is_none() {
            let pin = (read > 0).then(|| Pin { offset, digest: hex(&digest) });
            let batch = Batch { rows: std::mem::take(&mut rows), pin, offset };
            if batches.blocking_send(Ok(batch)).is_err() {
                return Ok(());
            }
        }
        if read == 0 {
            return Ok(());
        }
    }
}

const OTHER_INPUT: &str = "the ledger is of another input: what was read of that one is not how this \
     one begins; resume with the same bytes, or begin anew with another ledger";

fn hex(digest: &Sha256) -> String {
    digest.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// From bytes to rows.
enum Cutter {
    Ndjson(Lines),
    Csv(Box<Csv>),
}

struct Csv {
    records: Records,
    header: Option<Header>,
    /// Room for a record as a document.
    document: Vec<u8>,
}

impl Cutter {
    fn new(job: &Job) -> Self {
        match job.format {
            Format::Ndjson => Self::Ndjson(Lines::new(ROW_MAX)),
            Format::Csv { delimiter } => Self::Csv(Box::new(Csv {
                records: Records::new(delimiter, ROW_MAX),
                header: None,
                document: Vec::new(),
            })),
        }
    }

    fn push(&mut self, bytes: &[u8], at_start: bool, at_end: bool) {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").filter(|_| at_start).unwrap_or(bytes);
        match self {
            Self::Ndjson(lines) => lines.push(bytes),
            Self::Csv(csv) => csv.records.push(bytes),
        }
        if at_end {
            match self {
                Self::Ndjson(lines) => lines.end(),
                Self::Csv(csv) => csv.records.end(),
            }
        }
    }

    /// Adds the rows there are, but for those that are done.
    fn cut(
        &mut self,
        job: &Job,
        policy: &Policy,
        done: &DoneLines,
        rows: &mut Vec<Row>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Ndjson(lines) => {
                while let Some(line) = lines.next_line() {
                    let (line, checked) = match line {
                        Line::Text { number, .. } | Line::TooLong { number }
                            if done.has(number) =>
                        {
                            continue;
                        }
                        Line::Text { number, bytes } => (number, check(job, policy, bytes)),
                        Line::TooLong { number } => {
                            (number, Err(vec![RowError::too_long(ROW_MAX)]))
                        }
                    };
                    rows.push(Row { line, checked });
                }
            }
            Self::Csv(csv) => {
                let Csv { records, header, document } = &mut **csv;
                while let Some(record) = records.next_record() {
                    let (line, checked) = match (record, &*header) {
                        (Record::Cells { cells, .. }, None) => {
                            let first = Header::new(&cells)?;
                            records.expect(first.len());
                            *header = Some(first);
                            continue;
                        }
                        (Record::Endless { .. }, None) => {
                            bail!(
                                "the header is longer than {ROW_MAX} bytes, or a quote in it is not closed"
                            )
                        }
                        (Record::Cells { line, .. } | Record::Endless { line }, _)
                            if done.has(line) =>
                        {
                            continue;
                        }
                        (Record::Cells { line, cells }, Some(header)) => {
                            let read = record_document(header, &cells, document);
                            (line, read.and_then(|()| check(job, policy, document)))
                        }
                        (Record::Endless { line }, Some(_)) => (line, Err(vec![endless()])),
                    };
                    rows.push(Row { line, checked });
                }
            }
        }
        Ok(())
    }
}

fn check(job: &Job, policy: &Policy, row: &[u8]) -> Result<Checked, Vec<RowError>> {
    rows::check(job.contract, row, job.id_field.as_deref(), policy)
}

/// Writes a record as a document; columns of errors are counted in cells.
fn record_document(
    header: &Header,
    cells: &[&[u8]],
    document: &mut Vec<u8>,
) -> Result<(), Vec<RowError>> {
    if cells.len() != header.len() {
        let error = RowError::unreadable(
            "WRONG_CELLS",
            "as many cells as the header has wanted",
            Some(cells.len().min(header.len()) + 1),
        );
        return Err(vec![error]);
    }
    let mut texts = Vec::with_capacity(cells.len());
    for (at, cell) in cells.iter().enumerate() {
        match std::str::from_utf8(cell) {
            Ok(text) => texts.push(text),
            Err(_) => {
                let error = RowError::unreadable("NOT_UTF8", "not UTF-8", Some(at + 1));
                return Err(vec![RowError { field: header.name(at).to_owned().into(), ..error }]);
            }
        }
    }
    document.clear();
    header.write(&texts, document);
    Ok(())
}

fn endless() -> RowError {
    RowError::unreadable("NO_END", "longer than 16 KiB, or a quote in it is not closed", None)
}
