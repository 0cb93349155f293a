//! Decoding of the input to UTF-8, by its byte order mark or `--encoding`. An invalid byte sequence becomes the byte
//! 0xff, which is invalid in UTF-8. The row is then refused, and no character is replaced silently.

use std::borrow::Cow;
use std::mem;

use anyhow::bail;
use encoding_rs::{DecoderResult, UTF_16BE, UTF_16LE, WINDOWS_1252};
use serde::{Deserialize, Serialize};

/// Encoding of a file without a byte order mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum InputEncoding {
    /// UTF-8.
    #[default]
    Utf8,
    /// Western European, as spreadsheets on Windows write it.
    Windows1252,
}

pub(super) struct InputDecoder {
    encoding: InputEncoding,
    state: DecoderState,
}

enum DecoderState {
    /// Too few bytes to detect a byte order mark.
    Start(Vec<u8>),
    Utf8,
    Other(Box<encoding_rs::Decoder>),
}

/// Bytes needed to detect a byte order mark.
const BOM_LENGTH: usize = 4;

impl InputDecoder {
    pub(super) fn new(encoding: InputEncoding) -> Self {
        Self { encoding, state: DecoderState::Start(Vec::new()) }
    }

    /// Decodes the next bytes. Returns an error if the encoding of the file is not supported.
    pub(super) fn decode<'a>(
        &mut self,
        bytes: &'a [u8],
        is_last: bool,
    ) -> anyhow::Result<Cow<'a, [u8]>> {
        match &mut self.state {
            DecoderState::Utf8 => Ok(Cow::Borrowed(bytes)),
            DecoderState::Other(decoder) => Ok(Cow::Owned(decode(decoder, bytes, is_last))),
            DecoderState::Start(start) => {
                start.extend_from_slice(bytes);
                if start.len() < BOM_LENGTH && !is_last {
                    return Ok(Cow::Borrowed(&[]));
                }
                let start = mem::take(start);
                let (state, bom) = detect(self.encoding, &start)?;
                self.state = state;
                let rest = self.decode(&start[bom..], is_last)?.into_owned();
                Ok(Cow::Owned(rest))
            }
        }
    }
}

/// Returns the decoder for a file with this start, and the length of its byte order mark.
fn detect(encoding: InputEncoding, start: &[u8]) -> anyhow::Result<(DecoderState, usize)> {
    let utf16 = |encoding: &'static encoding_rs::Encoding| {
        DecoderState::Other(Box::new(encoding.new_decoder_without_bom_handling()))
    };
    Ok(match (start, encoding) {
        ([0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..], _) => {
            bail!("the input is UTF-32; save it as UTF-8")
        }
        ([0xef, 0xbb, 0xbf, ..], _) => (DecoderState::Utf8, 3),
        ([0xff, 0xfe, ..], _) => (utf16(UTF_16LE), 2),
        ([0xfe, 0xff, ..], _) => (utf16(UTF_16BE), 2),
        ([0, _, ..] | [_, 0, ..], _) => bail!(
            "line 1 of the input looks like UTF-16 without a byte order mark; save it with one, or as UTF-8"
        ),
        (_, InputEncoding::Utf8) => (DecoderState::Utf8, 0),
        (_, InputEncoding::Windows1252) => (utf16(WINDOWS_1252), 0),
    })
}

fn decode(decoder: &mut encoding_rs::Decoder, mut bytes: &[u8], is_last: bool) -> Vec<u8> {
    // At most three bytes of UTF-8 per input byte, and bytes kept from the last call.
    let mut out = vec![0; bytes.len() * 3 + 16];
    let mut filled = 0;
    loop {
        let (result, read, wrote) =
            decoder.decode_to_utf8_without_replacement(bytes, &mut out[filled..], is_last);
        bytes = &bytes[read..];
        filled += wrote;
        match result {
            DecoderResult::InputEmpty => break,
            DecoderResult::OutputFull => out.resize(out.len() * 2, 0),
            DecoderResult::Malformed(..) => {
                out.truncate(filled);
                out.push(0xff);
                filled += 1;
                out.resize(filled + bytes.len() * 3 + 16, 0);
            }
        }
    }
    out.truncate(filled);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(encoding: InputEncoding, bytes: &[u8], piece: usize) -> anyhow::Result<Vec<u8>> {
        let mut decoder = InputDecoder::new(encoding);
        let mut text = Vec::new();
        for piece in bytes.chunks(piece) {
            text.extend_from_slice(&decoder.decode(piece, false)?);
        }
        text.extend_from_slice(&decoder.decode(&[], true)?);
        Ok(text)
    }

    #[test]
    fn every_encoding_is_decoded_in_pieces_of_any_size() {
        let text = "Zoë,€😀\r\n";
        let wide = |mark: &[u8], bytes: fn(u16) -> [u8; 2]| {
            [mark, &text.encode_utf16().flat_map(bytes).collect::<Vec<_>>()].concat()
        };
        for piece in 1..9 {
            let utf8 = |bytes: &[u8]| read(InputEncoding::Utf8, bytes, piece).unwrap();
            assert_eq!(utf8(text.as_bytes()), text.as_bytes());
            assert_eq!(utf8(&["\u{feff}", text].concat().into_bytes()), text.as_bytes());
            assert_eq!(utf8(&wide(b"\xff\xfe", u16::to_le_bytes)), text.as_bytes(), "{piece}");
            assert_eq!(utf8(&wide(b"\xfe\xff", u16::to_be_bytes)), text.as_bytes(), "{piece}");
            let western = read(InputEncoding::Windows1252, b"Zo\xeb,\x80", piece).unwrap();
            assert_eq!(western, "Zoë,€".as_bytes());
            assert_eq!(utf8(b"a"), b"a");
        }
    }

    #[test]
    fn invalid_bytes_are_not_replaced_silently() {
        let lone = [&b"\xff\xfe"[..], &[0x61, 0, 0, 0xd8, 0x62, 0]].concat();
        assert_eq!(read(InputEncoding::Utf8, &lone, 3).unwrap(), b"a\xffb");
        assert_eq!(read(InputEncoding::Utf8, b"Zo\xeb", 2).unwrap(), b"Zo\xeb");
        for unreadable in [&b"\xff\xfe\0\0a\0\0\0"[..], b"e\0m\0a\0", b"\0e\0m"] {
            assert!(read(InputEncoding::Utf8, unreadable, 5).is_err());
        }
    }
}
