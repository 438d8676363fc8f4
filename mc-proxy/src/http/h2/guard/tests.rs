use proptest::prelude::*;

use super::*;

const PREFACE_BYTES: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn limits() -> HttpLimits {
    HttpLimits { max_resets: 3, max_control_frames: 4, max_continuations: 2, ..HttpLimits::default() }
}

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

fn reset(code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, &code.to_be_bytes())
}

/// What comes of so many of a frame.
fn after(frames: &[Vec<u8>], count: usize) -> Option<Violation> {
    let mut guard = Guard::of_clients(&limits());
    let now = Instant::now();
    guard.received(PREFACE_BYTES, now);
    for _ in 0..count {
        frames.iter().for_each(|frame| guard.received(frame, now));
    }
    guard.violation()
}

#[test]
fn each_kind_has_its_limit() {
    use Violation::{Continuations, ControlFrames, Resets, SmallFrames};
    let small = (4 * SMALL_PER_CONTROL) as usize;
    let padded = [&[255][..], &[0; 256 + 10]].concat();
    for (frames, max, violation) in [
        (vec![reset(8)], 3, Resets),
        (vec![frame(SETTINGS, 0, &[0, 3, 0, 0, 0, 1])], 4, ControlFrames),
        (vec![frame(PING, 0, &[0; 8])], 4, ControlFrames),
        (vec![frame(PRIORITY, 0, &[0; 5])], 4 + PRIORITIES as usize, ControlFrames),
        (vec![frame(7, 0, &[0; 8])], 4, ControlFrames),
        (vec![frame(0xee, 0, b"x")], 4, ControlFrames),
        (vec![frame(DATA, 0, b"")], 4, ControlFrames),
        (vec![frame(DATA, 0, &[0; 15])], small, SmallFrames),
        (vec![frame(DATA, PADDED, &padded)], small, SmallFrames),
        (vec![frame(WINDOW_UPDATE, 0, &[0, 0, 0, 1])], 4 + FIRST_UPDATES as usize, ControlFrames),
        (vec![frame(CONTINUATION, 0, b"x")], 2, Continuations),
        // Malformed ones count.
        (vec![frame(RST_STREAM, 0, b"abc")], 3, Resets),
        (vec![frame(RST_STREAM, 0, b"abcde")], 3, Resets),
    ] {
        assert_eq!(after(&frames, max), None, "{frames:?}");
        assert_eq!(after(&frames, max + 1), Some(violation), "{frames:?}");
    }
}

#[test]
fn what_is_no_offence() {
    for frames in [
        vec![frame(DATA, 0, &[0; 16])],
        // Of a page that is scrolled.
        vec![frame(HEADERS, END_HEADERS, b"x"), frame(PRIORITY, 0, &[0; 5]), frame(PRIORITY_UPDATE, 0, &[0; 6])],
        vec![frame(DATA, END_STREAM, b"")],
        vec![frame(DATA, END_STREAM, b"x")],
        vec![frame(HEADERS, END_HEADERS, b"x")],
        vec![frame(HEADERS, 0, b"x"), frame(CONTINUATION, 0, b"x"), frame(CONTINUATION, END_HEADERS, b"")],
        // One for every stream.
        vec![frame(HEADERS, END_HEADERS, b"x"), frame(WINDOW_UPDATE, 0, &[0, 0, 0, 1])],
    ] {
        assert_eq!(after(&frames, 1_000), None, "{frames:?}");
    }
    let mut guard = Guard::of_backends();
    let now = Instant::now();
    for _ in 0..100_000 {
        guard.received(&frame(PING, 0, &[0; 8]), now);
        guard.received(&reset(1), now);
    }
    assert_eq!(guard.violation(), None);
}

#[test]
fn windows_pass() {
    let mut guard = Guard::of_clients(&limits());
    let mut now = Instant::now();
    guard.received(PREFACE_BYTES, now);
    for _ in 0..10 {
        for _ in 0..3 {
            guard.received(&reset(8), now);
        }
        now += limits().window;
    }
    assert_eq!(guard.violation(), None);
    for _ in 0..4 {
        guard.received(&reset(8), now);
    }
    assert_eq!(guard.violation(), Some(Violation::Resets));
}

/// CVE-2025-8671, MadeYouReset.
#[test]
fn our_resets_count_when_the_client_has_made_us() {
    let now = Instant::now();
    for (code, is_mistake) in
        [(0, false), (1, true), (2, false), (3, true), (5, true), (6, true), (7, false), (8, false), (9, true)]
    {
        let mut guard = Guard::of_clients(&limits());
        for _ in 0..2 {
            guard.sent(&reset(code), now);
            guard.received(&[PREFACE_BYTES, &reset(8)].concat(), now);
            guard.inbound = Frames::new(PREFACE);
        }
        assert_eq!(guard.violation().is_some(), is_mistake, "{code}");
    }
}

/// How often `sent` has to be asked for by `received` before it is too much.
fn rounds(sent: &[u8], received: &[u8]) -> Option<usize> {
    let mut guard = Guard::of_clients(&limits());
    let now = Instant::now();
    guard.received(PREFACE_BYTES, now);
    (0..20_000).find(|_| {
        guard.sent(sent, now);
        guard.received(received, now);
        guard.violation().is_some()
    })
}

#[test]
fn what_is_sent_pays_for_window_updates_and_pings() {
    let update = frame(WINDOW_UPDATE, 0, &[0, 0, 16, 0]);
    let ping = frame(PING, 0, &[0; 8]);
    assert_eq!(rounds(&frame(DATA, 0, &[0; 16_384]), &update.repeat(10)), None);
    // By the message, as of gRPC.
    assert_eq!(rounds(&frame(DATA, 0, &[0; 20]), &ping), None);
    assert_eq!(rounds(&frame(HEADERS, END_HEADERS, b"x"), &ping), None);
    assert_eq!(rounds(&[], &ping), Some(4));
    // CVE-2019-9511: data by the byte; and clients that answer every frame, as some of gRPC do.
    let dribble = rounds(&frame(DATA, 0, b"x"), &frame(WINDOW_UPDATE, 0, &[0, 0, 0, 1]));
    assert_eq!(dribble, Some((4 * SMALL_PER_CONTROL + FIRST_UPDATES + 2) as usize));
}

#[test]
fn settings_and_field_blocks_are_seen() {
    let mut guard = Guard::of_clients(&limits());
    let start = Instant::now();
    guard.received(PREFACE_BYTES, start);
    assert!(!guard.has_settings());
    guard.received(&frame(SETTINGS, 0, b""), start);
    assert!(guard.has_settings() && guard.block_since().is_none());
    let head = frame(HEADERS, 0, b"abc");
    let (most, last) = head.split_at(head.len() - 1);
    guard.received(most, start);
    guard.received(last, start + Duration::from_secs(1));
    guard.received(&frame(CONTINUATION, 0, b"abc"), start + Duration::from_secs(2));
    assert_eq!(guard.block_since(), Some(start));
    let end = frame(CONTINUATION, END_HEADERS, b"abc");
    guard.received(&end[..end.len() - 1], start);
    assert!(guard.block_since().is_some());
    guard.received(&end[end.len() - 1..], start);
    assert!(guard.block_since().is_none());
    guard.received(&frame(HEADERS, END_HEADERS, b""), start);
    assert!(guard.block_since().is_none());
}

/// The frames of a stream in pieces.
fn events(mut frames: Frames, pieces: &[&[u8]]) -> Vec<Event> {
    let mut events = Vec::new();
    for mut piece in pieces.iter().copied() {
        while let Some(event) = frames.next(&mut piece) {
            events.push(event);
        }
        assert!(piece.is_empty());
    }
    events
}

#[test]
fn every_split_is_the_same() {
    let bytes = [
        PREFACE_BYTES,
        &frame(SETTINGS, 0, &[0; 12]),
        &frame(HEADERS, 0, b"abc"),
        &frame(CONTINUATION, END_HEADERS, b""),
        &frame(DATA, 0, b"0123456789"),
        &reset(0x0102_0304),
        &frame(RST_STREAM, 0, b"abcde"),
        &frame(RST_STREAM, 0, b""),
        &frame(DATA, END_STREAM, b""),
    ]
    .concat();
    let whole = events(Frames::new(PREFACE), &[&bytes]);
    let kinds = whole.iter().filter_map(|event| match event {
        Event::Begun(frame) => Some((frame.kind, frame.flags, frame.length, frame.code)),
        Event::Ended(_) => None,
    });
    let expected = [
        (SETTINGS, 0, 12, 0),
        (HEADERS, 0, 3, 0),
        (CONTINUATION, END_HEADERS, 0, 0),
        (DATA, 0, 10, 0),
        (RST_STREAM, 0, 4, 0x0102_0304),
        (RST_STREAM, 0, 5, 0),
        (RST_STREAM, 0, 0, 0),
        (DATA, END_STREAM, 0, 0),
    ];
    assert_eq!(kinds.collect::<Vec<_>>(), expected);
    assert_eq!(whole.len(), 2 * expected.len());
    for first in 0..=bytes.len() {
        for second in first..=bytes.len() {
            let pieces = [&bytes[..first], &bytes[first..second], &bytes[second..]];
            assert_eq!(events(Frames::new(PREFACE), &pieces), whole, "{first} {second}");
        }
    }
    let single: Vec<_> = bytes.chunks(1).collect();
    assert_eq!(events(Frames::new(PREFACE), &single), whole);
}

proptest! {
    #[test]
    fn never_panics(pieces in prop::collection::vec((any::<bool>(), prop::collection::vec(any::<u8>(), 0..64)), 0..64)) {
        let mut guard = Guard::of_clients(&limits());
        for (is_received, bytes) in pieces {
            if is_received {
                guard.received(&bytes, Instant::now());
            } else {
                guard.sent(&bytes, Instant::now());
            }
        }
    }

    #[test]
    fn pieces_make_no_difference(bytes in prop::collection::vec(0_u8..12, 0..512), size in 1_usize..40) {
        let pieces: Vec<_> = bytes.chunks(size).collect();
        prop_assert_eq!(events(Frames::new(3), &pieces), events(Frames::new(3), &[&bytes]));
    }
}
