//! Cuts CSV records of a bounded length out of a stream, however the bytes come, and finds the way back
//! after one that has no end: a quote that is never closed spoils its own line and no other.

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};
use memchr::{memchr, memchr_iter};

/// A record and the line on which it begins, counted from 1.
#[derive(PartialEq, Eq)]
pub(super) enum Record<'a> {
    Cells {
        line: u64,
        cells: Vec<&'a [u8]>,
    },
    /// Over the limit, or a quote in it is not closed.
    Endless {
        line: u64,
    },
}

/// Bytes that came, and how far they were cut.
pub(super) struct Records {
    core: Reader,
    limit: usize,
    buffer: Vec<u8>,
    /// Where the record under way begins, and how much of it the reader has seen.
    start: usize,
    seen: usize,
    /// The line of `start`.
    line: u64,
    /// Whether the rest of an endless record's first line is being passed over.
    skipping: bool,
    ended: bool,
    /// How many cells a record has; none before the header.
    cells: Option<usize>,
    text: Vec<u8>,
    ends: Vec<usize>,
    /// How much of the two is filled.
    filled: (usize, usize),
}

impl Records {
    /// Records of at most `limit` bytes.
    pub(super) fn new(delimiter: u8, limit: usize) -> Self {
        Self {
            core: ReaderBuilder::new().delimiter(delimiter).build(),
            limit,
            buffer: Vec::new(),
            start: 0,
            seen: 0,
            line: 1,
            skipping: false,
            ended: false,
            cells: None,
            text: vec![0; limit + 1],
            ends: vec![0; 256],
            filled: (0, 0),
        }
    }

    /// More bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Every record from here on has so many cells, as the header has. One of several lines that has
    /// another number is taken for an open quote that some later line happens to close.
    pub(super) fn expect(&mut self, cells: usize) {
        self.cells = Some(cells);
    }

    /// There is no more; the last record may have no end.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// The next record; `None` until more bytes come.
    pub(super) fn next_record(&mut self) -> Option<Record<'_>> {
        if self.skipping && !self.skip_line() {
            return None;
        }
        if self.seen == 0 {
            // The reader passes over blank lines itself, and would not count them.
            while let Some(b'\r' | b'\n') = self.buffer.get(self.start) {
                self.line += u64::from(self.buffer[self.start] == b'\n');
                self.start += 1;
            }
        }
        loop {
            let input = &self.buffer[self.start + self.seen..];
            if input.is_empty() && !(self.ended && self.seen > 0) {
                return None;
            }
            let (text, ends) = self.filled;
            // The limit counts before the next piece is looked at, which may be long.
            let room = (self.limit + 1 - self.seen.min(self.limit + 1)).min(input.len());
            if room == 0 && !input.is_empty() {
                return Some(self.endless());
            }
            let (result, read, wrote, ended) = self.core.read_record(
                &input[..room],
                &mut self.text[text..],
                &mut self.ends[ends..],
            );
            self.seen += read;
            self.filled = (text + wrote, ends + ended);
            match result {
                ReadRecordResult::InputEmpty if self.seen > self.limit => {
                    return Some(self.endless());
                }
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull => return Some(self.endless()),
                ReadRecordResult::OutputEndsFull => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::Record => {
                    return Some(if self.is_run_together() {
                        self.endless()
                    } else {
                        self.record()
                    });
                }
                ReadRecordResult::End => return None,
            }
        }
    }

    /// Whether the record that was just read has swallowed lines that do not belong to it.
    fn is_run_together(&self) -> bool {
        let bytes = &self.buffer[self.start..self.start + self.seen];
        let at_end = self.ended && self.start + self.seen == self.buffer.len();
        let open = at_end && memchr_iter(b'"', bytes).count() % 2 == 1;
        let wrong = self.cells.is_some_and(|cells| cells != self.filled.1);
        (open || wrong) && memchr(b'\n', bytes.trim_ascii_end()).is_some()
    }

    fn record(&mut self) -> Record<'_> {
        let line = self.line;
        let bytes = &self.buffer[self.start..self.start + self.seen];
        self.line += memchr_iter(b'\n', bytes).count() as u64;
        self.start += std::mem::take(&mut self.seen);
        let (_, count) = std::mem::take(&mut self.filled);
        let mut begin = 0;
        let cells = self.ends[..count].iter().map(|end| {
            let cell = &self.text[begin..*end];
            begin = *end;
            cell
        });
        Record::Cells { line, cells: cells.collect() }
    }

    /// Goes on behind the first line of a record that has no end.
    fn endless(&mut self) -> Record<'static> {
        let line = self.line;
        self.core.reset();
        (self.seen, self.filled) = (0, (0, 0));
        self.skipping = true;
        self.skip_line();
        Record::Endless { line }
    }

    /// Whether the end of the line was there.
    fn skip_line(&mut self) -> bool {
        match memchr(b'\n', &self.buffer[self.start..]) {
            Some(length) => {
                self.start += length + 1;
                self.line += 1;
                self.skipping = false;
            }
            None => self.start = self.buffer.len(),
        }
        !self.skipping
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(limit: usize, input: &str, piece: usize) -> Vec<(u64, Option<Vec<String>>)> {
        let mut records = Records::new(b',', limit);
        let mut found = Vec::new();
        let mut take = |records: &mut Records| {
            while let Some(record) = records.next_record() {
                found.push(match record {
                    Record::Cells { line, cells } => {
                        let text = |cell: &&[u8]| String::from_utf8_lossy(cell).into_owned();
                        (line, Some(cells.iter().map(text).collect()))
                    }
                    Record::Endless { line } => (line, None),
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

    fn cells(cells: &[&str]) -> Option<Vec<String>> {
        Some(cells.iter().map(|cell| (*cell).to_owned()).collect())
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
    fn an_open_quote_spoils_its_own_line_alone() {
        let rest = "3,4\n5,6\n7,8\n".repeat(4);
        let input = format!("1,2\n\"never closed,x\n{rest}");
        for piece in [1, 7, 1000] {
            let found = cut(20, &input, piece);
            assert_eq!(found[1], (2, None), "{piece}");
            assert_eq!(found[2], (3, cells(&["3", "4"])), "{piece}");
            assert_eq!(found.len(), 2 + 12, "{piece}");
            // The same where the file ends before the limit is reached.
            assert_eq!(cut(4096, &input, piece), found, "{piece}");
        }
        let mut records = Records::new(b',', 4096);
        records.expect(2);
        records.push(b"\"open,1\n2,3\n4,5\" disk\n\"two\nlines\",6\n");
        let mut lines = Vec::new();
        while let Some(record) = records.next_record() {
            lines.push(match record {
                Record::Cells { line, cells } => (line, cells.len()),
                Record::Endless { line } => (line, 0),
            });
        }
        assert_eq!(lines, [(1, 0), (2, 2), (3, 2), (4, 2)], "closed by chance, two lines on");
        let long = format!("{}\n1,2\n", "x".repeat(100));
        assert_eq!(cut(20, &long, 9), [(1, None), (2, cells(&["1", "2"]))]);
    }
}
