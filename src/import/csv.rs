//! Streaming parser of CSV records (RFC 4180) of a limited length. A record ends with LF, CR LF or CR. Quotes are
//! parsed strictly, because a misread quote changes a password: text after a closing quote, blanks before an opening
//! quote and an unclosed quote are errors of the line on which the record begins. Parsing continues with the next
//! line.

use memchr::{memchr2, memchr2_iter};

/// A record and the line on which it begins, counted from 1.
#[derive(PartialEq, Eq)]
pub(super) enum CsvRecord<'a> {
    Cells { line: u64, cells: Vec<&'a [u8]> },
    Invalid { line: u64, error: RecordError },
}

/// Error of an invalid record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordError {
    TooLong,
    Quote,
}

/// The parser with its buffered bytes.
pub(super) struct CsvParser {
    delimiter: u8,
    limit: usize,
    buffer: Vec<u8>,
    /// Start of the current record in the buffer.
    start: usize,
    /// Bytes of the current record that were parsed.
    parsed: usize,
    /// Line number at `start`.
    line: u64,
    /// Whether a CR right before `start` ended a line. An LF at `start` belongs to the same line end.
    after_cr: bool,
    /// Whether the rest of the first line of an invalid record is being skipped.
    skipping: bool,
    ended: bool,
    /// Expected number of cells. `None` before the header.
    cells: Option<usize>,
    state: CsvState,
    /// Cells of the current record without their quotes, concatenated.
    text: Vec<u8>,
    /// End of each cell in `text`.
    ends: Vec<usize>,
}

#[derive(Clone, Copy)]
enum CsvState {
    /// At the start of a cell.
    Start,
    /// After blanks at the start of a cell.
    Blank,
    Plain,
    Quoted,
    /// After a quote within quotes: it closes the cell, or is the first of a doubled quote.
    Quote,
}

enum CsvStep {
    Continue,
    Record,
    Error,
}

impl CsvParser {
    /// Creates a parser of records of at most `limit` bytes.
    pub(super) fn new(delimiter: u8, limit: usize) -> Self {
        Self {
            delimiter,
            limit,
            buffer: Vec::new(),
            start: 0,
            parsed: 0,
            line: 1,
            after_cr: false,
            skipping: false,
            ended: false,
            cells: None,
            state: CsvState::Start,
            text: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Appends bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Sets the delimiter of later records.
    pub(super) fn set_delimiter(&mut self, delimiter: u8) {
        self.delimiter = delimiter;
    }

    /// Sets the number of cells of later records. A record of several lines with another number of cells is an error:
    /// its quote was closed by a quote on a later line.
    pub(super) fn expect_cells(&mut self, cells: usize) {
        self.cells = Some(cells);
    }

    /// Marks the end of the input. Adds a line end, which completes the last record unless its quote is open.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.buffer.push(b'\n');
    }

    /// Returns the next record. `None` until more bytes are appended.
    pub(super) fn next_record(&mut self) -> Option<CsvRecord<'_>> {
        if self.skipping && !self.skip_line() {
            return None;
        }
        if self.parsed == 0 {
            self.skip_blank_lines();
        }
        while let Some(&byte) = self.buffer.get(self.start + self.parsed) {
            if self.parsed > self.limit {
                return Some(self.invalid(RecordError::TooLong));
            }
            self.parsed += 1;
            match self.step(byte) {
                CsvStep::Continue => {}
                CsvStep::Error => return Some(self.invalid(RecordError::Quote)),
                CsvStep::Record if self.has_merged_lines() => {
                    return Some(self.invalid(RecordError::Quote));
                }
                CsvStep::Record => return Some(self.record()),
            }
        }
        (self.ended && self.parsed > 0).then(|| self.invalid(RecordError::Quote))
    }

    fn step(&mut self, byte: u8) -> CsvStep {
        use CsvState::{Blank, Plain, Quote, Quoted, Start};
        self.state = match (self.state, byte) {
            (Quoted, b'"') => Quote,
            (Quoted, _) => self.append(byte, Quoted),
            (_, b'\r' | b'\n') => {
                self.ends.push(self.text.len());
                self.state = Start;
                return CsvStep::Record;
            }
            (_, _) if byte == self.delimiter => {
                self.ends.push(self.text.len());
                Start
            }
            (Start, b'"') => Quoted,
            (Quote, b'"') => self.append(byte, Quoted),
            (Quote, _) | (Blank, b'"') => return CsvStep::Error,
            (Start | Blank, b' ' | b'\t') => self.append(byte, Blank),
            (Start | Blank | Plain, _) => self.append(byte, Plain),
        };
        CsvStep::Continue
    }

    fn append(&mut self, byte: u8, next: CsvState) -> CsvState {
        self.text.push(byte);
        next
    }

    /// Returns whether the record just parsed contains lines of other records.
    fn has_merged_lines(&self) -> bool {
        let bytes = &self.buffer[self.start..self.start + self.parsed - 1];
        self.cells.is_some_and(|cells| cells != self.ends.len())
            && memchr2(b'\n', b'\r', bytes).is_some()
    }

    fn record(&mut self) -> CsvRecord<'_> {
        let line = self.line;
        let bytes = &self.buffer[self.start..self.start + self.parsed];
        let line_ends = memchr2_iter(b'\n', b'\r', bytes)
            .filter(|at| bytes[*at] == b'\r' || *at == 0 || bytes[at - 1] != b'\r');
        self.line += line_ends.count() as u64;
        self.after_cr = bytes.ends_with(b"\r");
        self.start += std::mem::take(&mut self.parsed);
        let text = &self.text;
        let mut begin = 0;
        let cells = self.ends.iter().map(|end| &text[std::mem::replace(&mut begin, *end)..*end]);
        CsvRecord::Cells { line, cells: cells.collect() }
    }

    /// Returns the error of the current record and skips its first line.
    fn invalid(&mut self, error: RecordError) -> CsvRecord<'static> {
        let line = self.line;
        self.reset();
        self.parsed = 0;
        self.skipping = true;
        self.skip_line();
        CsvRecord::Invalid { line, error }
    }

    fn reset(&mut self) {
        self.state = CsvState::Start;
        self.text.clear();
        self.ends.clear();
    }

    /// Skips to the next line. Returns whether the buffer contained the line end.
    fn skip_line(&mut self) -> bool {
        match memchr2(b'\n', b'\r', &self.buffer[self.start..]) {
            Some(length) => {
                self.after_cr = self.buffer[self.start + length] == b'\r';
                self.start += length + 1;
                self.line += 1;
                self.skipping = false;
            }
            None => self.start = self.buffer.len(),
        }
        !self.skipping
    }

    /// Skips blank lines before a record, and resets the state of the previous record.
    fn skip_blank_lines(&mut self) {
        self.reset();
        while let Some(&byte @ (b'\r' | b'\n')) = self.buffer.get(self.start) {
            self.line += u64::from(byte == b'\r' || !self.after_cr);
            self.after_cr = byte == b'\r';
            self.start += 1;
        }
        self.after_cr &= self.start == self.buffer.len();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type ParsedRecords = Vec<(u64, Result<Vec<String>, RecordError>)>;

    fn parse_in_pieces(limit: usize, input: &str, piece: usize) -> ParsedRecords {
        let mut records = CsvParser::new(b',', limit);
        let mut found = Vec::new();
        let mut collect = |records: &mut CsvParser| {
            while let Some(record) = records.next_record() {
                found.push(match record {
                    CsvRecord::Cells { line, cells } => {
                        let text = |cell: &&[u8]| String::from_utf8_lossy(cell).into_owned();
                        (line, Ok(cells.iter().map(text).collect()))
                    }
                    CsvRecord::Invalid { line, error } => (line, Err(error)),
                });
            }
        };
        for piece in input.as_bytes().chunks(piece) {
            records.push(piece);
            collect(&mut records);
            assert!(records.buffer.len() <= 2 * (limit + 1) + piece.len(), "the buffer is bounded");
        }
        records.end();
        collect(&mut records);
        found
    }

    fn cells(cells: &[&str]) -> Result<Vec<String>, RecordError> {
        Ok(cells.iter().map(|cell| (*cell).to_owned()).collect())
    }

    #[test]
    fn result_does_not_depend_on_piece_sizes() {
        let input = "a,b\r\n\r\n1,\"x\r\ny\"\n=1+1,5\" disk\n\n\"q\"\"q\",\n1,2,3";
        let expected = [
            (1, cells(&["a", "b"])),
            (3, cells(&["1", "x\r\ny"])),
            (5, cells(&["=1+1", "5\" disk"])),
            (7, cells(&["q\"q", ""])),
            (8, cells(&["1", "2", "3"])),
        ];
        for piece in 1..input.len() {
            assert_eq!(parse_in_pieces(40, input, piece), expected, "{piece}");
        }
    }

    #[test]
    fn cr_alone_is_a_line_end() {
        let input = "a,b\r1,2\r\r3,\"4\r5\"\r\n6,7\n\r8,9\r";
        let expected = [
            (1, cells(&["a", "b"])),
            (2, cells(&["1", "2"])),
            (4, cells(&["3", "4\r5"])),
            (6, cells(&["6", "7"])),
            (8, cells(&["8", "9"])),
        ];
        for piece in 1..input.len() {
            assert_eq!(parse_in_pieces(40, input, piece), expected, "{piece}");
        }
    }

    #[test]
    fn unclosed_quote_at_the_end_is_an_error_with_every_line_end() {
        for end in ["\n", "\r\n", "\r"] {
            let input = format!("1,2{end}3,\"cut of");
            let expected = [(1, cells(&["1", "2"])), (2, Err(RecordError::Quote))];
            for piece in 1..input.len() {
                assert_eq!(parse_in_pieces(40, &input, piece), expected, "{end:?} {piece}");
            }
        }
        assert_eq!(
            parse_in_pieces(40, "1,\"2\"", 3),
            [(1, cells(&["1", "2"]))],
            "the end of the input closes the record"
        );
    }

    #[test]
    fn misplaced_quotes_are_errors_of_their_line() {
        for line in ["\"sec\"ret\",b", "a, \"secret\"", "a,\"secret\" ", "\"a\nb\"c,\"d\""] {
            let found = parse_in_pieces(40, &format!("{line}\n1,2\n"), 5);
            assert_eq!(found[0], (1, Err(RecordError::Quote)), "{line}");
            assert_eq!(found.last().unwrap().1, cells(&["1", "2"]), "{line}");
        }
    }

    #[test]
    fn unclosed_quote_affects_only_its_line() {
        let rest = "3,4\n5,6\n7,8\n".repeat(4);
        let input = format!("1,2\n\"never closed,x\n{rest}");
        for (limit, error) in [(20, RecordError::TooLong), (4096, RecordError::Quote)] {
            for piece in [1, 7, 1000] {
                let found = parse_in_pieces(limit, &input, piece);
                assert_eq!(found[1], (2, Err(error)), "{piece}");
                assert_eq!(found[2], (3, cells(&["3", "4"])), "{piece}");
                assert_eq!(found.len(), 2 + 12, "{piece}");
            }
        }
        let mut records = CsvParser::new(b',', 4096);
        records.expect_cells(2);
        records.push(b"\"open,1\n2,3\n4,5\" disk\n\"two\nlines\",6\n");
        let mut lines = Vec::new();
        while let Some(record) = records.next_record() {
            lines.push(match record {
                CsvRecord::Cells { line, cells } => (line, cells.len()),
                CsvRecord::Invalid { line, .. } => (line, 0),
            });
        }
        assert_eq!(lines, [(1, 0), (2, 2), (3, 2), (4, 2)], "a quote two lines later closes it");
        let long = format!("{}\n1,2\n", "x".repeat(100));
        assert_eq!(
            parse_in_pieces(20, &long, 9),
            [(1, Err(RecordError::TooLong)), (2, cells(&["1", "2"]))]
        );
    }

    proptest! {
        #[test]
        fn quoted_rows_are_parsed_back(
            rows in prop::collection::vec(prop::collection::vec("[a\",\r\n é]{0,6}", 2), 1..6),
            end in prop::sample::select(&["\n", "\r\n", "\r"][..]),
            piece in 1usize..9,
        ) {
            let quoted = |cell: &String| format!("\"{}\"", cell.replace('"', "\"\""));
            let text: String = rows.iter()
                .map(|row| row.iter().map(quoted).collect::<Vec<_>>().join(",") + end).collect();
            let found = parse_in_pieces(4096, &text, piece);
            prop_assert!(found.windows(2).all(|two| two[0].0 < two[1].0), "two rows on one line");
            let read: Vec<Vec<String>> = found.into_iter().map(|(_, cells)| cells.unwrap()).collect();
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn no_two_records_share_a_line(text in "[ab\",\r\n]{0,60}", piece in 1usize..9) {
            let found = parse_in_pieces(20, &text, piece);
            prop_assert!(found.windows(2).all(|two| two[0].0 < two[1].0));
            prop_assert_eq!(&found, &parse_in_pieces(20, &text, 100));
        }
    }
}
