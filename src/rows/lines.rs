//! Cuts a stream of bytes into lines of a bounded length, however the bytes come. A line ends with LF, CR LF
//! or a lone CR.

use memchr::memchr2;

/// One line, without its end.
#[derive(PartialEq, Eq)]
pub enum InputLine<'a> {
    /// A line with something in it.
    Text {
        /// Counted from 1.
        number: u64,
        /// What stands in it.
        bytes: &'a [u8],
    },
    /// A line over the limit; what it held is gone.
    TooLong {
        /// Counted from 1.
        number: u64,
    },
}

/// Bytes that came and were not yet cut.
pub struct LineSplitter {
    buffer: Vec<u8>,
    /// Where the next line begins.
    start: usize,
    limit: usize,
    /// LineSplitter cut so far.
    number: u64,
    /// Whether the rest of a line that is too long is being passed over.
    skipping: bool,
    /// Whether the last line ended with CR: an LF right behind it belongs to the same line end.
    after_cr: bool,
}

impl LineSplitter {
    /// LineSplitter of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, limit, number: 0, skipping: false, after_cr: false }
    }

    /// More bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The last line may have no end.
    pub fn end(&mut self) {
        if self.start < self.buffer.len() || self.skipping {
            self.buffer.push(b'\n');
        }
    }

    /// The next whole line that is not blank; `None` until more bytes come. What it borrows is gone
    /// with the next push.
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
            let bytes = trimmed(&self.buffer[start..start + length]);
            if std::mem::take(&mut self.skipping) || bytes.len() > self.limit {
                return Some(InputLine::TooLong { number });
            }
            if !bytes.is_empty() {
                // Borrowed anew, because the borrow above would outlive the loop.
                let bytes = trimmed(&self.buffer[start..start + length]);
                return Some(InputLine::Text { number, bytes });
            }
        }
    }
}

/// Without the blanks around it.
fn trimmed(line: &[u8]) -> &[u8] {
    line.trim_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(limit: usize, input: &[u8], piece: usize) -> Vec<(u64, Option<String>)> {
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
        for piece in input.chunks(piece) {
            lines.push(piece);
            take(&mut lines);
            assert!(lines.buffer.len() <= limit + 2 * piece.len(), "bounded");
        }
        lines.end();
        take(&mut lines);
        found
    }

    #[test]
    fn the_pieces_do_not_matter() {
        let input = b"one\r\n\n  \ntwelve bytes\n123456789012345678\ntwo\n\nthree";
        let text = |text: &str| Some(text.to_owned());
        let expected = [
            (1, text("one")),
            (4, text("twelve bytes")),
            (5, None),
            (6, text("two")),
            (8, text("three")),
        ];
        for piece in 1..input.len() {
            assert_eq!(cut(12, input, piece), expected, "{piece}");
        }
        assert_eq!(cut(4, b"12345", 1), [(1, None)]);
        let mixed = b"one\rtwo\r\r\nfour\n\rsix\r";
        let expected = [(1, text("one")), (2, text("two")), (4, text("four")), (6, text("six"))];
        for piece in 1..mixed.len() {
            assert_eq!(cut(12, mixed, piece), expected, "a lone CR ends a line, {piece}");
        }
        assert_eq!(cut(4, b"", 1), []);
    }
}
