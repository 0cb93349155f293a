//! From bytes to rows: lines of JSON or records of CSV, each checked by the contract's rules.

use anyhow::{bail, ensure};

use super::csv::{Fault, Record, Records};
use super::header::{Columns, Header};
use super::input::{Format, ROW_MAX};
use super::ledger::Job;
use super::mapping::{Mapping, rename};
use zeroize::Zeroizing;

use crate::rows::{self, ValidRow, InputLine, LineSplitter, RowError, RowRules};

/// A row, checked.
type Row = Result<ValidRow, Vec<RowError>>;
/// Takes the line on which a row begins, and a function that checks the row.
type Take<'a> = &'a mut dyn FnMut(u64, &mut dyn FnMut() -> Row);

/// Cuts rows out of the bytes of one format.
pub(super) enum Cutter {
    Ndjson(Ndjson),
    Csv(Box<Csv>),
}

pub(super) struct Ndjson {
    lines: LineSplitter,
    mappings: Vec<Mapping>,
    /// Whether the first bytes were looked at, and the first line.
    has_begun: bool,
    has_lines: bool,
}

pub(super) struct Csv {
    delimiter: u8,
    records: Records,
    columns: Columns,
    header: Option<Header>,
    /// What is ignored, for people.
    notes: Vec<String>,
    /// Room for a record as a document.
    document: Vec<u8>,
}

impl Cutter {
    pub(super) fn new(job: &Job) -> anyhow::Result<Self> {
        let id_field = job.id_field.as_deref();
        let columns = Columns::new(job.contract, &job.mappings, id_field)?;
        Ok(match job.format {
            Format::Ndjson => Self::Ndjson(Ndjson {
                lines: LineSplitter::new(ROW_MAX),
                mappings: job.mappings.clone(),
                has_begun: false,
                has_lines: false,
            }),
            Format::Csv { delimiter } => Self::Csv(Box::new(Csv {
                delimiter,
                records: Records::new(delimiter, ROW_MAX),
                columns,
                header: None,
                notes: Vec::new(),
                document: Vec::new(),
            })),
        })
    }

    /// More bytes, in UTF-8.
    pub(super) fn push(&mut self, bytes: &[u8], at_end: bool) -> anyhow::Result<()> {
        match self {
            Self::Ndjson(rows) => {
                if let (false, Some(first)) = (rows.has_begun, bytes.trim_ascii_start().first()) {
                    rows.has_begun = true;
                    ensure!(*first != b'[', "the input is one JSON array. {AS_NDJSON}");
                }
                rows.lines.push(bytes);
                if at_end {
                    rows.lines.end();
                }
            }
            Self::Csv(csv) => {
                csv.records.push(bytes);
                if at_end {
                    csv.records.end();
                }
            }
        }
        Ok(())
    }

    /// What people should know of the input, once.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        match self {
            Self::Ndjson(_) => Vec::new(),
            Self::Csv(csv) => std::mem::take(&mut csv.notes),
        }
    }

    /// Whether the input was read as far as its first row.
    pub(super) fn has_header(&self) -> bool {
        match self {
            Self::Ndjson(_) => true,
            Self::Csv(csv) => csv.header.is_some(),
        }
    }

    /// Gives every row there is to `take`.
    pub(super) fn cut(&mut self, rules: &RowRules, take: Take<'_>) -> anyhow::Result<()> {
        match self {
            Self::Ndjson(Ndjson { lines, mappings, has_lines, .. }) => {
                while let Some(line) = lines.next_line() {
                    match line {
                        InputLine::Text { number, bytes } => {
                            if !std::mem::replace(has_lines, true) {
                                ensure!(
                                    !is_cut(bytes),
                                    "line {number} ends within a JSON value, but each line has to be a whole \
                                     object. {AS_NDJSON}"
                                );
                            }
                            take(number, &mut || check_json(rules, mappings, bytes));
                        }
                        InputLine::TooLong { number } => {
                            take(number, &mut || Err(vec![RowError::too_long(ROW_MAX)]));
                        }
                    }
                }
            }
            Self::Csv(csv) => {
                let Csv { delimiter, records, columns, header, notes, document } = &mut **csv;
                while let Some(record) = records.next_record() {
                    match (record, &*header) {
                        (Record::Cells { line: 1, cells }, None)
                            if separator(&cells, *delimiter).is_some() =>
                        {
                            *delimiter = separator(&cells, *delimiter).unwrap_or(*delimiter);
                            records.set_delimiter(*delimiter);
                        }
                        (Record::Cells { line, cells }, None) => {
                            let first = Header::new(&cells, line, columns)?;
                            if !first.ignored.is_empty() {
                                notes.push(format!("ignored: {}", first.ignored.join(", ")));
                            }
                            records.expect(first.len());
                            *header = Some(first);
                        }
                        (Record::Bad { line, .. }, None) => {
                            bail!(
                                "line {line}: the header is longer than {ROW_MAX} bytes, or misquoted"
                            )
                        }
                        (Record::Cells { line, cells }, Some(header)) => {
                            take(line, &mut || {
                                record_document(header, &cells, document)?;
                                rows::validate(rules, document)
                            });
                        }
                        (Record::Bad { line, fault }, Some(_)) => {
                            take(line, &mut || Err(vec![bad_record(fault)]));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

const BAD_QUOTE: &str = "a quote is not closed, or not at the edge of its cell; within quotes it is \
                         written twice";

const AS_NDJSON: &str = "This makes one object a line of it: jq -c '.[]' FILE.json > FILE.ndjson (for \
                         {\"users\":[…]} jq -c '.users[]')";

/// Whether a line is the beginning of a JSON value that goes on.
fn is_cut(line: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err_and(|error| error.is_eof())
}

fn check_json(rules: &RowRules, mappings: &[Mapping], row: &[u8]) -> Row {
    if mappings.is_empty() {
        return rows::validate(rules, row);
    }
    let renamed = rename(mappings, rules.id_field.as_deref(), row).map(Zeroizing::new);
    rows::validate(rules, renamed.as_ref().map_or(row, |renamed| renamed))
}

/// The delimiter in a first line `sep=;`, as Excel writes and reads it.
fn separator(cells: &[&[u8]], delimiter: u8) -> Option<u8> {
    match cells.join(&delimiter).strip_prefix(b"sep=") {
        Some([separator]) if separator.is_ascii() && !b"\"\r\n".contains(separator) => {
            Some(*separator)
        }
        _ => None,
    }
}

fn bad_record(fault: Fault) -> RowError {
    match fault {
        Fault::TooLong => RowError::too_long(ROW_MAX),
        Fault::Quote => RowError::unreadable("BAD_QUOTE", BAD_QUOTE, None),
    }
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
            "not as many cells as the header has",
            Some(cells.len().min(header.len()) + 1),
        );
        return Err(vec![error]);
    }
    if let Some(at) = header.unnamed(cells) {
        let text = "a cell in a column without a name";
        return Err(vec![RowError::unreadable("UNNAMED_CELL", text, Some(at + 1))]);
    }
    let mut texts = Vec::with_capacity(cells.len());
    for (at, cell) in cells.iter().enumerate() {
        match std::str::from_utf8(cell) {
            Ok(text) => texts.push(text),
            Err(_) => {
                let error = rows::not_utf8(cell, at + 1);
                return Err(vec![RowError { field: header.name(at).to_owned().into(), ..error }]);
            }
        }
    }
    document.clear();
    header.write(&texts, document);
    Ok(())
}
