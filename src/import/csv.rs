//! Cuts CSV records (RFC 4180) of a bounded length out of a stream, however the bytes come. A record ends
//! with LF, CR LF or a lone CR. Quotes are read strictly, because a misread quote changes a password: text
//! after a closing quote, blanks before an opening one and a quote that is never closed are faults of the
//! line on which the record begins. Reading goes on with the next line.

use memchr::{memchr2, memchr2_iter};

/// A record and the line on which it begins, counted from 1.
#[derive(PartialEq, Eq)]
pub(super) enum Record<'a> {
    Cells { line: u64, cells: Vec<&'a [u8]> },
    Bad { line: u64, fault: Fault },
}

/// Why a line is not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    TooLong,
    Quote,
}

/// Buffered bytes, and how far they were cut.
pub(super) struct Records {
    delimiter: u8,
    limit: usize,
    buffer: Vec<u8>,
    /// Where the current record begins, and how many bytes of it were read.
    start: usize,
    seen: usize,
    /// The line of `start`.
    line: u64,
    /// Whether a CR right before `start` ended a line: an LF there belongs to the same line end.
    after_cr: bool,
    /// Whether the rest of a faulty record's first line is being passed over.
    skipping: bool,
    ended: bool,
    /// How many cells a record has; none before the header.
    cells: Option<usize>,
    state: State,
    /// The current record's cells without their quotes, and where each ends.
    text: Vec<u8>,
    ends: Vec<usize>,
}

#[derive(Clone, Copy)]
enum State {
    /// At the start of a cell.
    Start,
    /// After blanks at the start of a cell.
    Blank,
    Plain,
    Quoted,
    /// After a quote within quotes: it closes the cell, or is the first of two.
    Quote,
}

enum Step {
    Next,
    Record,
    Fault,
}

impl Records {
    /// Records of at most `limit` bytes.
    pub(super) fn new(delimiter: u8, limit: usize) -> Self {
        Self {
            delimiter,
            limit,
            buffer: Vec::new(),
            start: 0,
            seen: 0,
            line: 1,
            after_cr: false,
            skipping: false,
            ended: false,
            cells: None,
            state: State::Start,
            text: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// More bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The cells of every later record end with this byte.
    pub(super) fn set_delimiter(&mut self, delimiter: u8) {
        self.delimiter = delimiter;
    }

    /// Every record from here on has so many cells, as the header has. A record of several lines that has
    /// another number is a faulty quote that some later line happens to close.
    pub(super) fn expect(&mut self, cells: usize) {
        self.cells = Some(cells);
    }

    /// There are no more bytes. The last record need not have a line end, so one is added: it completes
    /// every record but one whose quote is still open.
    pub(super) fn end(&mut self) {
        self.ended = true;
        self.buffer.push(b'\n');
    }

    /// The next record; `None` until more bytes come.
    pub(super) fn next_record(&mut self) -> Option<Record<'_>> {
        if self.skipping && !self.skip_line() {
            return None;
        }
        if self.seen == 0 {
            self.skip_blank_lines();
        }
        while let Some(&byte) = self.buffer.get(self.start + self.seen) {
            if self.seen > self.limit {
                return Some(self.bad(Fault::TooLong));
            }
            self.seen += 1;
            match self.step(byte) {
                Step::Next => {}
                Step::Fault => return Some(self.bad(Fault::Quote)),
                Step::Record if self.is_run_together() => return Some(self.bad(Fault::Quote)),
                Step::Record => return Some(self.record()),
            }
        }
        (self.ended && self.seen > 0).then(|| self.bad(Fault::Quote))
    }

    fn step(&mut self, byte: u8) -> Step {
        use State::{Blank, Plain, Quote, Quoted, Start};
        self.state = match (self.state, byte) {
            (Quoted, b'"') => Quote,
            (Quoted, _) => self.keep(byte, Quoted),
            (_, b'\r' | b'\n') => {
                self.ends.push(self.text.len());
                self.state = Start;
                return Step::Record;
            }
            (_, _) if byte == self.delimiter => {
                self.ends.push(self.text.len());
                Start
            }
            (Start, b'"') => Quoted,
            (Quote, b'"') => self.keep(byte, Quoted),
            (Quote, _) | (Blank, b'"') => return Step::Fault,
            (Start | Blank, b' ' | b'\t') => self.keep(byte, Blank),
            (Start | Blank | Plain, _) => self.keep(byte, Plain),
        };
        Step::Next
    }

    fn keep(&mut self, byte: u8, next: State) -> State {
        self.text.push(byte);
        next
    }

    /// Whether the record that was just read holds lines that do not belong to it.
    fn is_run_together(&self) -> bool {
        let bytes = &self.buffer[self.start..self.start + self.seen - 1];
        self.cells.is_some_and(|cells| cells != self.ends.len())
            && memchr2(b'\n', b'\r', bytes).is_some()
    }

    fn record(&mut self) -> Record<'_> {
        let line = self.line;
        let bytes = &self.buffer[self.start..self.start + self.seen];
        let line_ends = memchr2_iter(b'\n', b'\r', bytes)
            .filter(|at| bytes[*at] == b'\r' || *at == 0 || bytes[at - 1] != b'\r');
        self.line += line_ends.count() as u64;
        self.after_cr = bytes.ends_with(b"\r");
        self.start += std::mem::take(&mut self.seen);
        let text = &self.text;
        let mut begin = 0;
        let cells = self.ends.iter().map(|end| &text[std::mem::replace(&mut begin, *end)..*end]);
        Record::Cells { line, cells: cells.collect() }
    }

    /// Goes on behind the first line of a record that cannot be read.
    fn bad(&mut self, fault: Fault) -> Record<'static> {
        let line = self.line;
        self.forget();
        self.seen = 0;
        self.skipping = true;
        self.skip_line();
        Record::Bad { line, fault }
    }

    fn forget(&mut self) {
        self.state = State::Start;
        self.text.clear();
        self.ends.clear();
    }

    /// Whether the end of the line was there.
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

    /// Before a record; whatever was kept of the one before it is forgotten.
    fn skip_blank_lines(&mut self) {
        self.forget();
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

    type Found = Vec<(u64, Result<Vec<String>, Fault>)>;

    fn cut(limit: usize, input: &str, piece: usize) -> Found {
        let mut records = Records::new(b',', limit);
        let mut found = Vec::new();
        let mut take = |records: &mut Records| {
            while let Some(record) = records.next_record() {
                found.push(match record {
                    Record::Cells { line, cells } => {
                        let text = |cell: &&[u8]| String::from_utf8_lossy(cell).into_owned();
                        (line, Ok(cells.iter().map(text).collect()))
                    }
                    Record::Bad { line, fault } => (line, Err(fault)),
                });
            }
        };
        for piece in input.as_bytes().chunks(piece) {
            records.push(piece);
            take(&mut records);
            assert!(records.buffer.len() <= 2 * (limit + 1) + piece.len(), "bounded");
        }
        records.end();
        take(&mut records);
        found
    }

    fn cells(cells: &[&str]) -> Result<Vec<String>, Fault> {
        Ok(cells.iter().map(|cell| (*cell).to_owned()).collect())
    }

    #[test]
    fn the_pieces_do_not_matter() {
        let input = "a,b\r\n\r\n1,\"x\r\ny\"\n=1+1,5\" disk\n\n\"q\"\"q\",\n1,2,3";
        let expected = [
            (1, cells(&["a", "b"])),
            (3, cells(&["1", "x\r\ny"])),
            (5, cells(&["=1+1", "5\" disk"])),
            (7, cells(&["q\"q", ""])),
            (8, cells(&["1", "2", "3"])),
        ];
        for piece in 1..input.len() {
            assert_eq!(cut(40, input, piece), expected, "{piece}");
        }
    }

    #[test]
    fn a_lone_cr_is_a_line_end() {
        let input = "a,b\r1,2\r\r3,\"4\r5\"\r\n6,7\n\r8,9\r";
        let expected = [
            (1, cells(&["a", "b"])),
            (2, cells(&["1", "2"])),
            (4, cells(&["3", "4\r5"])),
            (6, cells(&["6", "7"])),
            (8, cells(&["8", "9"])),
        ];
        for piece in 1..input.len() {
            assert_eq!(cut(40, input, piece), expected, "{piece}");
        }
    }

    #[test]
    fn a_quote_open_at_the_end_is_a_fault_with_every_line_end() {
        for end in ["\n", "\r\n", "\r"] {
            let input = format!("1,2{end}3,\"cut of");
            let expected = [(1, cells(&["1", "2"])), (2, Err(Fault::Quote))];
            for piece in 1..input.len() {
                assert_eq!(cut(40, &input, piece), expected, "{end:?} {piece}");
            }
        }
        assert_eq!(cut(40, "1,\"2\"", 3), [(1, cells(&["1", "2"]))], "closed by the end");
    }

    #[test]
    fn misplaced_quotes_are_faults_of_their_own_line() {
        for line in ["\"sec\"ret\",b", "a, \"secret\"", "a,\"secret\" ", "\"a\nb\"c,\"d\""] {
            let found = cut(40, &format!("{line}\n1,2\n"), 5);
            assert_eq!(found[0], (1, Err(Fault::Quote)), "{line}");
            assert_eq!(found.last().unwrap().1, cells(&["1", "2"]), "{line}");
        }
    }

    #[test]
    fn an_open_quote_spoils_its_own_line_alone() {
        let rest = "3,4\n5,6\n7,8\n".repeat(4);
        let input = format!("1,2\n\"never closed,x\n{rest}");
        for (limit, fault) in [(20, Fault::TooLong), (4096, Fault::Quote)] {
            for piece in [1, 7, 1000] {
                let found = cut(limit, &input, piece);
                assert_eq!(found[1], (2, Err(fault)), "{piece}");
                assert_eq!(found[2], (3, cells(&["3", "4"])), "{piece}");
                assert_eq!(found.len(), 2 + 12, "{piece}");
            }
        }
        let mut records = Records::new(b',', 4096);
        records.expect(2);
        records.push(b"\"open,1\n2,3\n4,5\" disk\n\"two\nlines\",6\n");
        let mut lines = Vec::new();
        while let Some(record) = records.next_record() {
            lines.push(match record {
                Record::Cells { line, cells } => (line, cells.len()),
                Record::Bad { line, .. } => (line, 0),
            });
        }
        assert_eq!(lines, [(1, 0), (2, 2), (3, 2), (4, 2)], "closed by chance, two lines on");
        let long = format!("{}\n1,2\n", "x".repeat(100));
        assert_eq!(cut(20, &long, 9), [(1, Err(Fault::TooLong)), (2, cells(&["1", "2"]))]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            rows in prop::collection::vec(prop::collection::vec("[a\",\r\n é]{0,6}", 2), 1..6),
            end in prop::sample::select(&["\n", "\r\n", "\r"][..]),
            piece in 1usize..9,
        ) {
            let quoted = |cell: &String| format!("\"{}\"", cell.replace('"', "\"\""));
            let text: String = rows.iter()
                .map(|row| row.iter().map(quoted).collect::<Vec<_>>().join(",") + end).collect();
            let found = cut(4096, &text, piece);
            prop_assert!(found.windows(2).all(|two| two[0].0 < two[1].0), "two rows of one line");
            let read: Vec<Vec<String>> = found.into_iter().map(|(_, cells)| cells.unwrap()).collect();
            prop_assert_eq!(read, rows);
        }

        #[test]
        fn no_two_records_share_a_line(text in "[ab\",\r\n]{0,60}", piece in 1usize..9) {
            let found = cut(20, &text, piece);
            prop_assert!(found.windows(2).all(|two| two[0].0 < two[1].0));
            prop_assert_eq!(&found, &cut(20, &text, 100));
        }
    }
}
