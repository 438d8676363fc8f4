//! RFC 9113 §5 and §8.7: streams.

use super::{Case, Is, MAX_STREAMS as STREAMS, begun, connection, goes_on, good, held, one, send, stream};
use crate::http::h2::{
    frame::{code, data, flag, frame, headers, kind, reset, update},
    hpack,
};

const CLOSED: &str = "the h2 crate ends connections with PROTOCOL_ERROR for frames behind a stream's end";

pub(super) fn cases() -> Vec<Case> {
    let new = Case::new;
    let closed = |case: Case| case.but(Is::Connection(code::PROTOCOL), CLOSED);
    vec![
        // §5.1, idle
        new("9113 §5.1", "idle: DATA", connection(code::PROTOCOL), |c| send(c, data(1, true, "x"))),
        new("9113 §5.1", "idle: RST_STREAM", connection(code::PROTOCOL), |c| send(c, reset(1, 8))),
        new("9113 §5.1", "idle: WINDOW_UPDATE", connection(code::PROTOCOL), |c| send(c, update(1, 8))),
        new("9113 §5.1", "idle: CONTINUATION", connection(code::PROTOCOL), |c| {
            one(c, kind::CONTINUATION, flag::END_HEADERS, 1, hpack::get("/"))
        }),
        // §5.1, half-closed (remote)
        closed(new("9113 §5.1", "half-closed: DATA", stream(code::STREAM_CLOSED), |c| {
            send(c, [held(1), data(1, true, "x")].concat())
        })),
        closed(new("9113 §5.1", "half-closed: HEADERS", stream(code::STREAM_CLOSED), |c| {
            send(c, [held(1), good(1)].concat())
        })),
        new("9113 §5.1", "half-closed: CONTINUATION", connection(code::PROTOCOL), |c| {
            send(c, [held(1), frame(kind::CONTINUATION, flag::END_HEADERS, 1, "")].concat())
        }),
        new("9113 §5.1", "half-closed: WINDOW_UPDATE and PRIORITY", goes_on(), |c| {
            send(c, [held(1), update(1, 8), frame(kind::PRIORITY, 0, 1, [0, 0, 0, 0, 1]), good(3)].concat())
        }),
        new("9113 §5.1", "half-closed: RST_STREAM", goes_on(), |c| send(c, [held(1), reset(1, 8), good(3)].concat())),
        // §5.1, closed
        new("9113 §5.1", "closed by RST_STREAM: DATA", stream(code::STREAM_CLOSED), |c| {
            send(c, [begun(1), reset(1, 8), data(1, true, "x")].concat())
        }),
        closed(new("9113 §5.1", "closed by RST_STREAM: HEADERS", stream(code::STREAM_CLOSED), |c| {
            send(c, [held(1), reset(1, 8), good(1)].concat())
        })),
        new("9113 §5.1", "closed by RST_STREAM: CONTINUATION", connection(code::PROTOCOL), |c| {
            send(c, [held(1), reset(1, 8), frame(kind::CONTINUATION, flag::END_HEADERS, 1, "")].concat())
        }),
        new("9113 §5.1", "closed by RST_STREAM: RST_STREAM, WINDOW_UPDATE and PRIORITY", goes_on(), |c| {
            let late = [reset(1, 8), update(1, 8), frame(kind::PRIORITY, 0, 1, [0, 0, 0, 0, 1])].concat();
            send(c, [held(1), reset(1, 8), late, good(3)].concat())
        }),
        new("9113 §5.1", "closed by END_STREAM: DATA", stream(code::STREAM_CLOSED), |c| {
            c.ask(1, "/")?;
            send(c, data(1, true, "x"))
        }),
        closed(new("9113 §5.1", "closed by END_STREAM: HEADERS", connection(code::STREAM_CLOSED), |c| {
            c.ask(1, "/")?;
            send(c, good(1))
        })),
        new("9113 §5.1", "closed by END_STREAM: RST_STREAM, WINDOW_UPDATE and PRIORITY", goes_on(), |c| {
            c.ask(1, "/")?;
            let late = [reset(1, 8), update(1, 8), frame(kind::PRIORITY, 0, 1, [0, 0, 0, 0, 1])].concat();
            send(c, [late, good(3)].concat())
        }),
        // §5.1.1
        new("9113 §5.1.1", "a stream of even number", connection(code::PROTOCOL), |c| send(c, good(2))),
        new("9113 §5.1.1", "a stream of a lower number than another", connection(code::PROTOCOL), |c| {
            send(c, [held(5), good(3)].concat())
        }),
        new("9113 §5.1.1", "streams whose numbers leave some out", goes_on(), |c| {
            c.ask(5, "/")?;
            send(c, good(99))
        }),
        // §5.1.2, §8.7
        new(
            "9113 §5.1.2",
            "more streams than SETTINGS_MAX_CONCURRENT_STREAMS",
            vec![Is::Stream(code::REFUSED), Is::Stream(code::PROTOCOL)],
            |c| {
                let refused = send(c, (0..=STREAMS).flat_map(|at| held(2 * at + 1)).collect::<Vec<_>>())?;
                c.send(reset(1, 8))?;
                Ok(refused)
            },
        ),
        new(
            "9113 §8.7",
            "a stream that is not looked at, which its code tells",
            vec![Is::Stream(code::REFUSED)],
            |c| {
                let refused = send(c, (0..=STREAMS).flat_map(|at| held(2 * at + 1)).collect::<Vec<_>>())?;
                c.send(reset(1, 8))?;
                Ok(refused)
            },
        ),
        new("9113 §5.1.2", "as many streams again, when those have ended", goes_on(), |c| {
            c.send((0..STREAMS).flat_map(|at| [held(2 * at + 1), reset(2 * at + 1, 8)].concat()).collect::<Vec<_>>())?;
            send(c, good(2 * STREAMS + 1))
        }),
        // §5.3.1
        new(
            "9113 §5.3.1",
            "HEADERS that depend on themselves (RFC 7540 §5.3.1)",
            vec![Is::Answer(200), Is::Stream(code::PROTOCOL)],
            |c| {
                let payload = [b"\0\0\0\x01\x10".as_slice(), &hpack::get("/")].concat();
                one(c, kind::HEADERS, flag::WHOLE | flag::PRIORITY, 1, payload)
            },
        ),
        new(
            "9113 §5.3.1",
            "PRIORITY of a stream that depends on itself (RFC 7540 §5.3.1)",
            vec![Is::Answer(200), Is::Stream(code::PROTOCOL)],
            |c| send(c, [begun(1), frame(kind::PRIORITY, 0, 1, [0, 0, 0, 1, 16]), data(1, true, "")].concat()),
        ),
        // §5.4.1
        new("9113 §5.4.1", "GOAWAY before the connection is closed", vec![Is::Connection(code::PROTOCOL)], |c| {
            send(c, data(0, true, "x"))
        }),
        // §8.1
        new("9113 §8.1", "content and trailers", goes_on(), |c| {
            send(c, [begun(1), data(1, false, "hi"), headers(1, true, hpack::field("x-sum", "1"))].concat())
        }),
        new("9113 §8.1", "trailers without END_STREAM", stream(code::PROTOCOL), |c| {
            send(c, [begun(1), data(1, false, "hi"), headers(1, false, hpack::field("x-sum", "1"))].concat())
        }),
        closed(new("9113 §8.1", "HEADERS behind trailers", stream(code::STREAM_CLOSED), |c| {
            let trailers = headers(1, true, hpack::field("x-sum", "1"));
            let head = headers(1, false, hpack::request("POST", "/hold", &[]));
            send(c, [head, trailers.clone(), trailers].concat())
        })),
    ]
}
