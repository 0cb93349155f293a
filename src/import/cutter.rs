//! From bytes to rows: lines of JSON or records of CSV, each checked by the contract's rules.

use anyhow::bail;

use super::csv::{Fault, Record, Records};
use super::header::Header;
use super::input::{Format, ROW_MAX};
use super::ledger::Job;
use crate::rows::{self, Checked, Line, Lines, RowError, Rules};

/// A row, checked.
type Row = Result<Checked, Vec<RowError>>;
/// Takes the line on which a row begins, and a function that checks the row.
type Take<'a> = &'a mut dyn FnMut(u64, &mut dyn FnMut() -> Row);

/// Cuts rows out of the bytes of one format.
pub(super) enum Cutter {
    Ndjson(Lines),
    Csv(Box<Csv>),
}

pub(super) struct Csv {
    delimiter: u8,
    records: Records,
    header: Option<Header>,
    /// Room for a record as a document.
    document: Vec<u8>,
}

impl Cutter {
    pub(super) fn new(job: &Job) -> Self {
        match job.format {
            Format::Ndjson => Self::Ndjson(Lines::new(ROW_MAX)),
            Format::Csv { delimiter } => Self::Csv(Box::new(Csv {
                delimiter,
                records: Records::new(delimiter, ROW_MAX),
                header: None,
                document: Vec::new(),
            })),
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8], at_start: bool, at_end: bool) {
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

    /// Gives every row there is to `take`.
    pub(super) fn cut(&mut self, rules: &Rules, take: Take<'_>) -> anyhow::Result<()> {
        match self {
            Self::Ndjson(lines) => {
                while let Some(line) = lines.next_line() {
                    match line {
                        Line::Text { number, bytes } => {
                            take(number, &mut || rows::check(rules, bytes));
                        }
                        Line::TooLong { number } => {
                            take(number, &mut || Err(vec![RowError::too_long(ROW_MAX)]));
                        }
                    }
                }
            }
            Self::Csv(csv) => {
                let Csv { delimiter, records, header, document } = &mut **csv;
                while let Some(record) = records.next_record() {
                    match (record, &*header) {
                        (Record::Cells { line: 1, cells }, None)
                            if separator(&cells, *delimiter).is_some() =>
                        {
                            *delimiter = separator(&cells, *delimiter).unwrap_or(*delimiter);
                            records.set_delimiter(*delimiter);
                        }
                        (Record::Cells { cells, .. }, None) => {
                            let first = Header::new(&cells)?;
                            records.expect(first.len());
                            *header = Some(first);
                        }
                        (Record::Bad { .. }, None) => {
                            bail!("the header is longer than {ROW_MAX} bytes, or misquoted")
                        }
                        (Record::Cells { line, cells }, Some(header)) => {
                            take(line, &mut || {
                                record_document(header, &cells, document)?;
                                rows::check(rules, document)
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
