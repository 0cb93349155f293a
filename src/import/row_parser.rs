//! Parses the input into rows, lines of JSON or CSV records, and validates each against the contract.

use anyhow::{bail, ensure};

use super::checkpoint::ImportJob;
use super::csv::{CsvParser, CsvRecord, RecordError};
use super::header::{ColumnRules, Header};
use super::input::{InputFormat, ROW_MAX};
use super::mapping::{Mapping, rename};
use zeroize::Zeroizing;

use crate::rows::{self, InputLine, LineSplitter, RowError, RowRules, ValidRow};

/// A validated row.
type ValidatedRow = Result<ValidRow, Vec<RowError>>;
/// Called with the line on which a row begins, and a function that validates the row.
type RowVisitor<'a> = &'a mut dyn FnMut(u64, &mut dyn FnMut() -> ValidatedRow);

/// Parser of one input format.
pub(super) enum RowParser {
    Ndjson(NdjsonRowParser),
    Csv(Box<CsvRowParser>),
}

pub(super) struct NdjsonRowParser {
    lines: LineSplitter,
    mappings: Vec<Mapping>,
    /// Whether the first byte was checked.
    first_byte_checked: bool,
    /// Whether the first line was checked.
    first_line_checked: bool,
}

pub(super) struct CsvRowParser {
    delimiter: u8,
    records: CsvParser,
    columns: ColumnRules,
    header: Option<Header>,
    /// Notes about ignored columns, for the user.
    notes: Vec<String>,
    /// Buffer for a record as a JSON document.
    document: Vec<u8>,
}

impl RowParser {
    pub(super) fn new(job: &ImportJob) -> anyhow::Result<Self> {
        let id_field = job.id_field.as_deref();
        let columns = ColumnRules::new(job.contract, &job.mappings, id_field)?;
        Ok(match job.format {
            InputFormat::Ndjson => Self::Ndjson(NdjsonRowParser {
                lines: LineSplitter::new(ROW_MAX),
                mappings: job.mappings.clone(),
                first_byte_checked: false,
                first_line_checked: false,
            }),
            InputFormat::Csv { delimiter } => Self::Csv(Box::new(CsvRowParser {
                delimiter,
                records: CsvParser::new(delimiter, ROW_MAX),
                columns,
                header: None,
                notes: Vec::new(),
                document: Vec::new(),
            })),
        })
    }

    /// Appends bytes in UTF-8. Returns an error if the input is one JSON array.
    pub(super) fn push(&mut self, bytes: &[u8], at_end: bool) -> anyhow::Result<()> {
        match self {
            Self::Ndjson(rows) => {
                if let (false, Some(first)) =
                    (rows.first_byte_checked, bytes.trim_ascii_start().first())
                {
                    rows.first_byte_checked = true;
                    ensure!(
                        *first != b'[',
                        "the input is one JSON array; expected one object per line. {NDJSON_HINT}"
                    );
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

    /// Returns notes for the user, once.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        match self {
            Self::Ndjson(_) => Vec::new(),
            Self::Csv(csv) => std::mem::take(&mut csv.notes),
        }
    }

    /// Returns whether the header was parsed. Always true for JSON.
    pub(super) fn has_header(&self) -> bool {
        match self {
            Self::Ndjson(_) => true,
            Self::Csv(csv) => csv.header.is_some(),
        }
    }

    /// Calls `visit` for each complete row. Returns an error if the input as a whole is invalid.
    pub(super) fn parse(&mut self, rules: &RowRules, visit: RowVisitor<'_>) -> anyhow::Result<()> {
        match self {
            Self::Ndjson(NdjsonRowParser { lines, mappings, first_line_checked, .. }) => {
                while let Some(line) = lines.next_line() {
                    match line {
                        InputLine::Text { number, bytes } => {
                            if !std::mem::replace(first_line_checked, true) {
                                ensure!(
                                    !is_incomplete_json(bytes),
                                    "line {number} ends within a JSON value; expected one object per line. {NDJSON_HINT}"
                                );
                            }
                            visit(number, &mut || validate_json(rules, mappings, bytes));
                        }
                        InputLine::TooLong { number } => {
                            visit(number, &mut || Err(vec![RowError::too_long(ROW_MAX)]));
                        }
                    }
                }
            }
            Self::Csv(csv) => {
                let CsvRowParser { delimiter, records, columns, header, notes, document } =
                    &mut **csv;
                while let Some(record) = records.next_record() {
                    match (record, &*header) {
                        (CsvRecord::Cells { line: 1, cells }, None)
                            if separator(&cells, *delimiter).is_some() =>
                        {
                            *delimiter = separator(&cells, *delimiter).unwrap_or(*delimiter);
                            records.set_delimiter(*delimiter);
                        }
                        (CsvRecord::Cells { line, cells }, None) => {
                            let first = Header::new(&cells, line, columns)?;
                            if !first.ignored.is_empty() {
                                notes.push(format!("ignored: {}", first.ignored.join(", ")));
                            }
                            records.expect_cells(first.len());
                            *header = Some(first);
                        }
                        (CsvRecord::Invalid { line, .. }, None) => {
                            bail!(
                                "line {line}: the header has more than {ROW_MAX} bytes, or invalid quotes"
                            )
                        }
                        (CsvRecord::Cells { line, cells }, Some(header)) => {
                            visit(line, &mut || {
                                record_document(header, &cells, document)?;
                                rows::validate(rules, document)
                            });
                        }
                        (CsvRecord::Invalid { line, error }, Some(_)) => {
                            visit(line, &mut || Err(vec![record_error(error)]));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

const BAD_QUOTE: &str = "a quote is not closed, or is in the middle of a cell; double a quote within \
                         quotes";

const NDJSON_HINT: &str = "Convert the file: jq -c '.[]' FILE.json > FILE.ndjson (for \
                         {\"users\":[…]} jq -c '.users[]')";

/// Returns whether a line is the start of an incomplete JSON value.
fn is_incomplete_json(line: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(line).is_err_and(|error| error.is_eof())
}

fn validate_json(rules: &RowRules, mappings: &[Mapping], row: &[u8]) -> ValidatedRow {
    if mappings.is_empty() {
        return rows::validate(rules, row);
    }
    let renamed = rename(mappings, rules.id_field.as_deref(), row).map(Zeroizing::new);
    rows::validate(rules, renamed.as_ref().map_or(row, |renamed| renamed))
}

/// Returns the delimiter of a first line such as `sep=;`, which Excel writes.
fn separator(cells: &[&[u8]], delimiter: u8) -> Option<u8> {
    match cells.join(&delimiter).strip_prefix(b"sep=") {
        Some([separator]) if separator.is_ascii() && !b"\"\r\n".contains(separator) => {
            Some(*separator)
        }
        _ => None,
    }
}

fn record_error(error: RecordError) -> RowError {
    match error {
        RecordError::TooLong => RowError::too_long(ROW_MAX),
        RecordError::Quote => RowError::unreadable("BAD_QUOTE", BAD_QUOTE, None),
    }
}

/// Writes a record as a JSON document. Columns in errors are cell numbers.
fn record_document(
    header: &Header,
    cells: &[&[u8]],
    document: &mut Vec<u8>,
) -> Result<(), Vec<RowError>> {
    if cells.len() != header.len() {
        let error = RowError::unreadable(
            "WRONG_CELLS",
            "the number of cells differs from the header",
            Some(cells.len().min(header.len()) + 1),
        );
        return Err(vec![error]);
    }
    if let Some(at) = header.unnamed(cells) {
        let text = "the cell is in a column without a name";
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
