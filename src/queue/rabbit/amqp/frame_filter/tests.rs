//! Tests of the filter against lapin's parser: frames that lapin refuses are replaced, all others pass unchanged,
//! however they are split into reads.

use lapin::BasicProperties;
use lapin::protocol::basic::{parse_deliver, parse_get_ok, parse_properties, parse_return};
use proptest::collection::vec;
use proptest::prelude::*;

use super::super::unreadable;
use super::*;

const FRAME_MAX: u32 = 128 << 10;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![kind, 0, 1];
    frame.extend((payload.len() as u32).to_be_bytes());
    frame.extend(payload);
    frame.push(END);
    frame
}

/// A content header of the class `basic` for a body of five bytes.
fn header(properties: &[u8]) -> Vec<u8> {
    let mut payload = vec![0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
    payload.extend(properties);
    frame(HEADER, &payload)
}

fn filtered(input: &[u8]) -> Vec<u8> {
    let mut output = Vec::new();
    FrameFilter::new(FRAME_MAX).pass(input, &mut output);
    output
}

/// As [`filtered`], with the input in reads of these lengths, repeated.
fn filtered_in_pieces(mut input: &[u8], pieces: &[usize]) -> Vec<u8> {
    let (mut output, mut filter) = (Vec::new(), FrameFilter::new(FRAME_MAX));
    for piece in pieces.iter().cycle() {
        if input.is_empty() {
            break;
        }
        filter.pass(take(&mut input, *piece as u64), &mut output);
    }
    output
}

/// Types and payloads of whole frames.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let size = u32::from_be_bytes(bytes[3..START].try_into().unwrap()) as usize;
        assert_eq!(bytes[START + size], END, "a frame ends elsewhere");
        frames.push((bytes[0], bytes[START..START + size].to_vec()));
        bytes = &bytes[START + size + 1..];
    }
    frames
}

/// Parses a content header's payload as lapin does; `None` if lapin refuses it.
fn parsed(payload: &[u8]) -> Option<BasicProperties> {
    let parsed = parse_properties(&payload[content_header::PREFIX..]);
    parsed.ok().filter(|(rest, _)| rest.is_empty()).map(|(_, properties)| properties)
}

/// The reason for which the properties of this header frame are replaced.
fn refusal(frame: &[u8]) -> Option<&'static str> {
    let output = filtered(frame);
    let [(HEADER, payload)] = &frames(&output)[..] else { panic!("not one header frame") };
    assert_eq!(payload[..content_header::PREFIX], frame[START..START + content_header::PREFIX]);
    let refusal = unreadable(&parsed(payload).unwrap());
    assert_eq!(refusal.is_none(), output == frame);
    refusal
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn short(text: &[u8]) -> Vec<u8> {
    [&[text.len() as u8], text].concat()
}

/// A header value with its type.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let fixed = |types: &'static [u8], size| {
        (proptest::sample::select(types), vec(any::<u8>(), size))
            .prop_map(|(kind, bytes)| [&[kind][..], &bytes].concat())
    };
    let leaf = prop_oneof![
        Just(b"V".to_vec()),
        fixed(b"tbB", 1),
        fixed(b"sUu", 2),
        fixed(b"Iif", 4),
        fixed(b"D", 5),
        fixed(b"LldT", 8),
        (proptest::sample::select(b"Sx"), vec(any::<u8>(), 0..40)).prop_map(|(kind, bytes)| [
            &[kind][..],
            &long(&bytes)
        ]
        .concat()),
    ];
    leaf.prop_recursive(8, 40, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4)
                .prop_map(|values| [b"A", &long(&values.concat())[..]].concat()),
            table(inner).prop_map(|table| [b"F", &table[..]].concat()),
        ]
    })
}

fn table(value: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    vec(("\\PC{0,9}", value), 0..4).prop_map(|entries| {
        let entries =
            entries.iter().map(|(name, value)| [short(name.as_bytes()), value.clone()].concat());
        long(&entries.collect::<Vec<_>>().concat())
    })
}

/// Any subset of the properties, well-formed.
fn properties() -> impl Strategy<Value = Vec<u8>> {
    let text = || "\\PC{0,30}".prop_map(|text| short(text.as_bytes())).boxed();
    let number = |size| vec(any::<u8>(), size).boxed();
    let fields = vec![
        text(),
        text(),
        table(value()).boxed(),
        number(1),
        number(1),
        text(),
        text(),
        text(),
        text(),
        number(8),
        text(),
        text(),
        text(),
        text(),
    ];
    // The last two flags have no meaning.
    (any::<u16>(), fields).prop_map(|(flags, fields)| {
        let there = fields.into_iter().enumerate().filter(|(at, _)| flags & (1 << (15 - at)) != 0);
        let fields: Vec<Vec<u8>> = there.map(|(_, field)| field).collect();
        [&flags.to_be_bytes()[..], &fields.concat()].concat()
    })
}

/// Bytes with random changes.
fn mutated(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>(), 0..4);
    (bytes, vec(change, 0..4)).prop_map(|(mut bytes, changes)| {
        for (at, byte, change) in changes {
            let at = at.index(bytes.len().max(1));
            match change {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                _ if at < bytes.len() => bytes[at] = byte,
                _ => {}
            }
        }
        bytes
    })
}

/// A method whose three strings contain any bytes.
fn method() -> impl Strategy<Value = Vec<u8>> {
    let text = || {
        prop_oneof!["\\PC{0,20}".prop_map(String::into_bytes), vec(any::<u8>(), 0..255)]
            .prop_map(|text| short(&text))
    };
    (0..3, text(), text(), text(), any::<[u8; 9]>()).prop_map(|(which, a, b, c, numbers)| {
        let parts: [&[u8]; 5] = match which {
            0 => [&[0, 60, 0, 50, 1, 56], &a, &b, &c, &[]],
            // The consumer tag was chosen by lapin.
            1 => [&[0, 60, 0, 60], b"\x04ctag", &numbers, &b, &c],
            _ => [&[0, 60, 0, 71], &numbers, &b, &c, &[0, 0, 0, 7]],
        };
        parts.concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn valid_properties_pass_unchanged(properties in properties()) {
        let frame = header(&properties);
        prop_assert!(parsed(&frame[START..frame.len() - 1]).is_some());
        prop_assert_eq!(filtered(&frame), frame);
    }

    #[test]
    fn only_properties_that_lapin_parses_pass(properties in mutated(properties())) {
        let frame = header(&properties);
        let is_parsed = parsed(&frame[START..frame.len() - 1]).is_some();
        prop_assert_eq!(refusal(&frame).is_none(), is_parsed);
    }

    #[test]
    fn methods_get_text_that_lapin_parses(method in method()) {
        let output = filtered(&frame(METHOD, &method));
        let output = frames(&output);
        let arguments = &output[0].1[method::ID..];
        let rest = match method[3] {
            50 => parse_return(arguments).unwrap().0,
            60 => parse_deliver(arguments).unwrap().0,
            _ => parse_get_ok(arguments).unwrap().0,
        };
        prop_assert!(rest.is_empty());
        prop_assert!(output[0].1.len() <= method.len());
    }

    #[test]
    fn frames_may_be_split_into_any_reads(
        messages in vec((method(), mutated(properties()), vec(any::<u8>(), 0..50)), 1..5),
        pieces in vec(1usize..90, 1..9),
    ) {
        let mut input = frame(METHOD, &[0, 10, 0, 30, 0, 9, 0, 2, 0, 0, 0, 5]);
        for (method, properties, body) in messages {
            input.extend(frame(METHOD, &method));
            input.extend(header(&properties));
            input.extend(frame(BODY, &body));
            input.extend(frame(HEARTBEAT, &[]));
            input.extend(frame(METHOD, &[0, 60, 0, 80, 0, 0, 0, 0, 0, 0, 0, 1, 0]));
        }
        prop_assert_eq!(filtered_in_pieces(&input, &pieces), filtered(&input));
    }

    #[test]
    fn bytes_that_are_not_frames_pass_unchanged(input in vec(any::<u8>(), 3..200)) {
        let input = [&b"HTTP"[..], &input].concat();
        prop_assert_eq!(filtered(&input), input);
    }
}

/// A header frame with this many nested arrays or tables.
fn nested(levels: usize, kind: u8) -> Vec<u8> {
    // Type and length; in a table also the empty name of its value.
    let around = if kind == b'A' { 5 } else { 6 };
    let mut value = Vec::new();
    for inner in (0..levels).rev() {
        value.push(kind);
        value.extend(((inner * around) as u32).to_be_bytes());
        if kind == b'F' && inner > 0 {
            value.push(0);
        }
    }
    let table = long(&[&short(b"deep")[..], &value].concat());
    header(&[&(1u16 << 13).to_be_bytes()[..], &table].concat())
}

#[test]
fn nesting_has_a_limit() {
    for kind in *b"AF" {
        // The header table counts as a level.
        assert_eq!(refusal(&nested(15, kind)), None);
        let deepest = (FRAME_MAX as usize - 100) / if kind == b'A' { 5 } else { 6 };
        for levels in [16, 2_000, 5_000, deepest] {
            let refusal = refusal(&nested(levels, kind));
            assert_eq!(
                refusal,
                Some("its headers are nested more than 16 levels deep"),
                "{levels}"
            );
        }
    }
}

#[test]
fn number_of_values_has_a_limit() {
    let voids = |count: usize| {
        let value = [b"A", &long(&b"V".repeat(count))[..]].concat();
        let table = long(&[&short(b"wide")[..], &value].concat());
        header(&[&(1u16 << 13).to_be_bytes()[..], &table].concat())
    };
    assert_eq!(refusal(&voids(1023)), None);
    assert_eq!(refusal(&voids(1024)), Some("its headers hold more than 1024 values"));
}

#[test]
fn property_that_is_not_utf8_is_named() {
    let properties =
        |flag: u16| header(&[&(1u16 << flag).to_be_bytes()[..], b"\x02\xff\xfe"].concat());
    assert_eq!(refusal(&properties(7)), Some("message_id is not UTF-8"));
    assert_eq!(refusal(&properties(2)), Some("cluster_id is not UTF-8"));
}

#[test]
fn replaced_properties_keep_the_message_id() {
    let kept = |properties: &[u8]| {
        let output = filtered(&header(properties));
        let properties = parsed(&frames(&output)[0].1).unwrap();
        assert!(unreadable(&properties).is_some());
        properties.message_id().as_ref().map(|id| id.to_string())
    };
    // Headers, message_id and a type that is not UTF-8.
    let flags = 1u16 << 13 | 1 << 7 | 1 << 5;
    let properties =
        |id: &[u8]| [&flags.to_be_bytes()[..], &long(b""), &short(id), &short(b"\xff")].concat();
    assert_eq!(kept(&properties(b"row-1")).as_deref(), Some("row-1"));
    assert_eq!(kept(&properties(b"\xfe")), None);
    assert_eq!(kept(&properties(b"row-1")[..8]), None);
}

#[test]
fn properties_larger_than_a_frame_are_replaced_and_the_next_frame_passes() {
    let text = [b"S", &long(&[b'x'; 10_000])[..]].concat();
    let table = long(&[&short(b"large")[..], &text].concat());
    let mut large = header(&[&(1u16 << 13).to_be_bytes()[..], &table].concat());
    // The last byte of the body size looks like the end of a frame.
    large[START + content_header::PREFIX - 1] = END;
    assert_eq!(refusal(&large), None);
    // The broker's limit is smaller than lapin's.
    let tune = frame(METHOD, &[0, 10, 0, 30, 0, 0, 0, 0, 32, 0, 0, 0]);
    let output = filtered_in_pieces(&[&tune[..], &large, &frame(BODY, b"12345")].concat(), &[100]);
    let output = frames(&output);
    let refusal = unreadable(&parsed(&output[1].1).unwrap());
    assert_eq!(refusal, Some("its properties are larger than a frame"));
    assert_eq!(output[2], (BODY, b"12345".to_vec()));
}

#[test]
fn marker_of_a_producer_is_not_repeated() {
    let mut properties = Vec::new();
    content_header::write_marker("hunter2", None, &mut properties);
    let frame = header(&properties);
    let read = parsed(&frame[START..frame.len() - 1]).unwrap();
    assert_eq!(unreadable(&read), Some("its properties were replaced"));
}
