//! Splits a stream of bytes into lines of a bounded length. A line ends with LF, CR LF or a lone CR.

use memchr::memchr2;

/// One line, without its line end.
#[derive(PartialEq, Eq)]
pub enum InputLine<'a> {
    /// A line that is not blank.
    Text {
        /// The line number, from 1.
        number: u64,
        /// The content, without surrounding ASCII white space.
        bytes: &'a [u8],
    },
    /// A line over the limit. Its content was dropped.
    TooLong {
        /// The line number, from 1.
        number: u64,
    },
}

/// Buffers bytes and splits them into lines. The line limit and the chunk size bound the buffer.
pub struct LineSplitter {
    buffer: Vec<u8>,
    /// The offset of the next line in the buffer.
    start: usize,
    limit: usize,
    /// The number of lines so far.
    number: u64,
    /// Whether the rest of a line over the limit is being skipped.
    skipping: bool,
    /// Whether the last line ended with CR. A directly following LF belongs to the same line end.
    after_cr: bool,
}

impl LineSplitter {
    /// Creates a splitter for lines of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, limit, number: 0, skipping: false, after_cr: false }
    }

    /// Appends a chunk of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// Ends the stream. Completes a last line without a line end.
    pub fn end(&mut self) {
        if self.start < self.buffer.len() || self.skipping {
            self.buffer.push(b'\n');
        }
    }

    /// Returns the next complete line that is not blank, or `None` if more bytes are needed.
    pub fn next_line(&mut self) -> Option<InputLine<'_>> {
        loop {
            if self.after_cr && self.start < self.buffer.len() {
                self.start += usize::from(self.buffer[self.start] == b'\n');
                self.after_cr = false;
            }
            let rest = &self.buffer[self.start..];
            let Some(length) = memchr2(b'\n', b'\r', rest) else {
                if rest.len() > self.limit {
                    self.skipping = true;
                    self.start = self.buffer.len();
                }
                return None;
            };
            self.after_cr = rest[length] == b'\r';
            let start = self.start;
            self.start += length + 1;
            self.number += 1;
            let number = self.number;
            let bytes = self.buffer[start..start + length].trim_ascii();
            if std::mem::take(&mut self.skipping) || bytes.len() > self.limit {
                return Some(InputLine::TooLong { number });
            }
            if !bytes.is_empty() {
                // Borrowed again, because the borrow above would outlive the loop.
                let bytes = self.buffer[start..start + length].trim_ascii();
                return Some(InputLine::Text { number, bytes });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(limit: usize, input: &[u8], chunk: usize) -> Vec<(u64, Option<String>)> {
        let mut lines = LineSplitter::new(limit);
        let mut found = Vec::new();
        let mut take = |lines: &mut LineSplitter| {
            while let Some(line) = lines.next_line() {
                found.push(match line {
                    InputLine::Text { number, bytes } => {
                        (number, Some(String::from_utf8_lossy(bytes).into_owned()))
                    }
                    InputLine::TooLong { number } => (number, None),
                });
            }
        };
        for chunk in input.chunks(chunk) {
            lines.push(chunk);
            take(&mut lines);
            assert!(lines.buffer.len() <= limit + 2 * chunk.len(), "bounded");
        }
        lines.end();
        take(&mut lines);
        found
    }

    #[test]
    fn lines_do_not_depend_on_the_chunks() {
        let input = b"one\r\n\n  \ntwelve bytes\n123456789012345678\ntwo\n\nthree";
        let text = |text: &str| Some(text.to_owned());
        let expected = [
            (1, text("one")),
            (4, text("twelve bytes")),
            (5, None),
            (6, text("two")),
            (8, text("three")),
        ];
        for chunk in 1..input.len() {
            assert_eq!(split(12, input, chunk), expected, "{chunk}");
        }
        assert_eq!(split(4, b"12345", 1), [(1, None)]);
        let mixed = b"one\rtwo\r\r\nfour\n\rsix\r";
        let expected = [(1, text("one")), (2, text("two")), (4, text("four")), (6, text("six"))];
        for chunk in 1..mixed.len() {
            assert_eq!(split(12, mixed, chunk), expected, "a lone CR ends a line, {chunk}");
        }
        assert_eq!(split(4, b"", 1), []);
    }
}
