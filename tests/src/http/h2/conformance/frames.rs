//! RFC 9113 §3, §4, §5.5, §6 and §7: frames.

use anyhow::ensure;

use super::{Case, Is, begun, connection, goes_on, good, held, one, send, stream};
use crate::http::h2::{
    frame::{PREFACE, code, data, flag, frame, head, headers, kind, reset, settings, update},
    hpack,
    raw::Event,
};

const MAX: u32 = 0x7fff_ffff;
const SIZE: &str = "the h2 crate ends connections with PROTOCOL_ERROR for frames that are too short or too long";

pub(super) fn cases() -> Vec<Case> {
    let new = Case::new;
    let wrong_size = |case: Case| case.but(Is::Connection(code::PROTOCOL), SIZE);
    vec![
        new("9113 §3.4", "another preface", connection(code::PROTOCOL), |c| {
            send(c, "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n")
        })
        .bare(),
        new("9113 §3.4", "a preface that is wrong at its end", connection(code::PROTOCOL), |c| {
            send(c, [b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".as_slice(), &settings(&[])].concat())
        })
        .bare(),
        new("9113 §3.4", "HEADERS instead of SETTINGS behind the preface", connection(code::PROTOCOL), |c| {
            send(c, [PREFACE, &good(1)].concat())
        })
        .bare(),
        new("9113 §3.4", "a request right behind the client's SETTINGS", goes_on(), |c| {
            send(c, [PREFACE, &settings(&[(1, 0)]), &good(1)].concat())
        })
        .bare(),
        // §4.1
        new("9113 §4.1", "a frame of an unknown type", goes_on(), |c| {
            send(c, [frame(0xbe, 0xff, 0, "ignored"), good(1)].concat())
        }),
        new("9113 §4.1", "PING with flags that have no meaning", vec![Is::Acknowledged], |c| {
            c.send(frame(kind::PING, 0xfe, 0, [0; 8]))?;
            c.event()
        }),
        new("9113 §4.1", "the reserved bit in front of a stream's identifier", goes_on(), |c| {
            send(c, headers(1 | 1 << 31, true, hpack::get("/")))
        }),
        // §4.2
        new("9113 §4.2", "DATA of 16384 bytes", goes_on(), |c| {
            send(c, [begun(1), data(1, true, vec![0; 16_384])].concat())
        }),
        new("9113 §4.2", "DATA of 16385 bytes", stream(code::FRAME_SIZE), |c| {
            send(c, [begun(1), data(1, true, vec![0; 16_385])].concat())
        }),
        new("9113 §4.2", "HEADERS of 16385 bytes", connection(code::FRAME_SIZE), |c| {
            let block = [hpack::get("/"), hpack::field("x-own", "y".repeat(16_384))].concat();
            send(c, headers(1, true, &block[..16_385]))
        }),
        new("9113 §4.2", "an unknown frame of 16385 bytes", connection(code::FRAME_SIZE), |c| {
            one(c, 0xbe, 0, 0, vec![0; 16_385])
        }),
        // §4.3
        new("9113 §4.3", "a field block that ends within a field", connection(code::COMPRESSION), |c| {
            let block = hpack::get("/");
            send(c, headers(1, true, &block[..block.len() - 1]))
        })
        .but(Is::Connection(code::PROTOCOL), super::hpack::CODE),
        new("9113 §4.3", "PRIORITY within a field block", connection(code::PROTOCOL), |c| {
            send(
                c,
                [frame(kind::HEADERS, flag::END_STREAM, 1, hpack::get("/")), frame(kind::PRIORITY, 0, 1, [0; 5])]
                    .concat(),
            )
        }),
        new("9113 §4.3", "HEADERS of another stream within a field block", connection(code::PROTOCOL), |c| {
            send(c, [frame(kind::HEADERS, flag::END_STREAM, 1, hpack::get("/")), good(3)].concat())
        }),
        // §5.5
        new("9113 §5.5", "an unknown frame on a stream", goes_on(), |c| {
            send(c, [begun(1), frame(0xbe, 0, 1, "ignored"), data(1, true, "")].concat())
        }),
        new("9113 §5.5", "an unknown frame within a field block", connection(code::PROTOCOL), |c| {
            let begun = frame(kind::HEADERS, flag::END_STREAM, 1, hpack::get("/"));
            send(c, [begun, frame(0xbe, 0, 1, ""), frame(kind::CONTINUATION, flag::END_HEADERS, 1, "")].concat())
        }),
        // §6.1
        new("9113 §6.1", "DATA on stream 0", connection(code::PROTOCOL), |c| one(c, kind::DATA, 0, 0, "x")),
        new("9113 §6.1", "DATA with padding", goes_on(), |c| {
            let head = headers(1, false, hpack::request("POST", "/", &[("content-length", "2")]));
            send(c, [head, frame(kind::DATA, flag::PADDED | flag::END_STREAM, 1, b"\x03hi\0\0\0")].concat())
        }),
        new("9113 §6.1", "DATA with as much padding as it is long", connection(code::PROTOCOL), |c| {
            send(c, [begun(1), frame(kind::DATA, flag::PADDED | flag::END_STREAM, 1, b"\x03hi")].concat())
        }),
        new("9113 §6.1", "DATA with padding whose length is not there", connection(code::FRAME_SIZE), |c| {
            send(c, [begun(1), frame(kind::DATA, flag::PADDED | flag::END_STREAM, 1, "")].concat())
        })
        .but(Is::Connection(code::PROTOCOL), SIZE),
        // §6.2
        new("9113 §6.2", "HEADERS on stream 0", connection(code::PROTOCOL), |c| send(c, good(0))),
        new("9113 §6.2", "HEADERS with padding and priority", goes_on(), |c| {
            let payload = [b"\x02\0\0\0\0\x10".as_slice(), &hpack::get("/"), b"\0\0"].concat();
            one(c, kind::HEADERS, flag::WHOLE | flag::PADDED | flag::PRIORITY, 1, payload)
        }),
        new("9113 §6.2", "HEADERS with more padding than they are long", connection(code::PROTOCOL), |c| {
            one(c, kind::HEADERS, flag::WHOLE | flag::PADDED, 1, [b"\xff".as_slice(), &hpack::get("/")].concat())
        }),
        wrong_size(new("9113 §6.2", "HEADERS without room for the priority", connection(code::FRAME_SIZE), |c| {
            one(c, kind::HEADERS, flag::WHOLE | flag::PRIORITY, 1, "\0\0\0")
        })),
        // §6.3
        new("9113 §6.3", "PRIORITY on stream 0", connection(code::PROTOCOL), |c| one(c, kind::PRIORITY, 0, 0, [0; 5])),
        wrong_size(new("9113 §6.3", "PRIORITY of 4 bytes", stream(code::FRAME_SIZE), |c| {
            send(c, [held(1), frame(kind::PRIORITY, 0, 1, [0; 4])].concat())
        })),
        new("9113 §6.3", "PRIORITY on an idle stream", goes_on(), |c| {
            send(c, [frame(kind::PRIORITY, 0, 99, [0, 0, 0, 0, 1]), good(1)].concat())
        }),
        // §6.4
        new("9113 §6.4", "RST_STREAM on stream 0", connection(code::PROTOCOL), |c| send(c, reset(0, 8))),
        wrong_size(new("9113 §6.4", "RST_STREAM of 3 bytes", connection(code::FRAME_SIZE), |c| {
            send(c, [held(1), frame(kind::RST_STREAM, 0, 1, [0; 3])].concat())
        })),
        // §6.5
        wrong_size(new("9113 §6.5", "SETTINGS with ACK and values", connection(code::FRAME_SIZE), |c| {
            one(c, kind::SETTINGS, flag::ACK, 0, [0, 3, 0, 0, 0, 1])
        })),
        new("9113 §6.5", "SETTINGS on a stream", connection(code::PROTOCOL), |c| one(c, kind::SETTINGS, 0, 1, "")),
        wrong_size(new("9113 §6.5", "SETTINGS of 5 bytes", connection(code::FRAME_SIZE), |c| {
            one(c, kind::SETTINGS, 0, 0, [0; 5])
        })),
        new("9113 §6.5.2", "SETTINGS_ENABLE_PUSH of 2", connection(code::PROTOCOL), |c| send(c, settings(&[(2, 2)]))),
        new("9113 §6.5.2", "SETTINGS_INITIAL_WINDOW_SIZE of 2^31", connection(code::FLOW_CONTROL), |c| {
            send(c, settings(&[(4, 1 << 31)]))
        })
        .but(
            Is::Connection(code::PROTOCOL),
            "the h2 crate ends connections with PROTOCOL_ERROR for all values of SETTINGS",
        ),
        new("9113 §6.5.2", "SETTINGS_MAX_FRAME_SIZE of 16383", connection(code::PROTOCOL), |c| {
            send(c, settings(&[(5, 16_383)]))
        }),
        new("9113 §6.5.2", "SETTINGS_MAX_FRAME_SIZE of 2^24", connection(code::PROTOCOL), |c| {
            send(c, settings(&[(5, 1 << 24)]))
        }),
        new("9113 §6.5.2", "a setting that nobody knows", goes_on(), |c| {
            send(c, [settings(&[(0xbeef, u32::MAX)]), good(1)].concat())
        }),
        new("9113 §6.5.2", "a header table of 2^32-1 bytes", goes_on(), |c| {
            send(c, [settings(&[(1, u32::MAX)]), good(1)].concat())
        }),
        new("8441 §3", "SETTINGS_ENABLE_CONNECT_PROTOCOL of 2", connection(code::PROTOCOL), |c| {
            send(c, settings(&[(8, 2)]))
        }),
        new("9113 §6.5.3", "SETTINGS", vec![Is::Acknowledged], |c| {
            c.send(settings(&[(4, 1000)]))?;
            c.event()
        }),
        new("9113 §6.5.3", "a setting twice, of which the last one counts", goes_on(), |c| {
            c.send([settings(&[(4, 5), (4, 1)]), good(1)].concat())?;
            let first = loop {
                match c.frame()? {
                    Some(frame) if frame.kind == kind::DATA => break frame,
                    Some(_) => {}
                    None => return Ok(Event::Closed),
                }
            };
            ensure!(first.payload.len() == 1, "the window is 1 byte: {first:?}");
            c.send(update(1, 100))?;
            c.wait_for("the rest", |event| event == Event::Ended(1))?;
            Ok(Event::Head(1, 200))
        }),
        // §6.6
        new("9113 §6.6", "PUSH_PROMISE of a client", connection(code::PROTOCOL), |c| {
            let promise = [b"\0\0\0\x02".as_slice(), &hpack::get("/")].concat();
            send(c, [held(1), frame(kind::PUSH_PROMISE, flag::END_HEADERS, 1, promise)].concat())
        }),
        // §6.7
        new("9113 §6.7", "PING", vec![Is::Acknowledged], |c| {
            c.send(frame(kind::PING, 0, 0, "8 bytes!"))?;
            loop {
                match c.frame()? {
                    Some(frame) if frame.kind == kind::PING => {
                        ensure!(frame.payload == b"8 bytes!" && frame.has(flag::ACK), "{frame:?}");
                        return Ok(Event::Pong);
                    }
                    Some(_) => {}
                    None => return Ok(Event::Closed),
                }
            }
        }),
        new("9113 §6.7", "PING with ACK, which is not answered", goes_on(), |c| {
            c.send([frame(kind::PING, flag::ACK, 0, [1; 8]), good(1)].concat())?;
            c.event()
        }),
        new("9113 §6.7", "PING on a stream", connection(code::PROTOCOL), |c| one(c, kind::PING, 0, 1, [0; 8])),
        wrong_size(new("9113 §6.7", "PING of 7 bytes", connection(code::FRAME_SIZE), |c| {
            one(c, kind::PING, 0, 0, [0; 7])
        })),
        // §6.8
        new("9113 §6.8", "GOAWAY on a stream", connection(code::PROTOCOL), |c| one(c, kind::GOAWAY, 0, 1, [0; 8])),
        new("9113 §6.8", "GOAWAY behind a request, which is still answered", goes_on(), |c| {
            c.send([good(1), frame(kind::GOAWAY, 0, 0, [0; 8])].concat())?;
            let answer = c.reaction()?;
            c.wait_for("its end", |event| event == Event::Ended(1))?;
            Ok(answer)
        }),
        // §6.9
        new("9113 §6.9", "WINDOW_UPDATE of 0 on a stream", stream(code::PROTOCOL), |c| {
            send(c, [held(1), update(1, 0)].concat())
        }),
        new("9113 §6.9", "WINDOW_UPDATE of 0 on the connection", connection(code::PROTOCOL), |c| {
            send(c, update(0, 0))
        }),
        wrong_size(new("9113 §6.9", "WINDOW_UPDATE of 3 bytes", connection(code::FRAME_SIZE), |c| {
            one(c, kind::WINDOW_UPDATE, 0, 0, [0, 0, 1])
        })),
        new("9113 §6.9.1", "a window of a stream above 2^31-1", stream(code::FLOW_CONTROL), |c| {
            send(c, [held(1), update(1, MAX)].concat())
        }),
        new("9113 §6.9.1", "a window of the connection above 2^31-1", connection(code::FLOW_CONTROL), |c| {
            send(c, update(0, MAX))
        }),
        new("9113 §6.9.1", "more DATA than the window", stream(code::FLOW_CONTROL), |c| {
            // Content is held until the backend asks for it, which it does not: nothing gives the window back. Of the connection's
            // window, which the server has made larger with its SETTINGS, it is less.
            c.post(1, "/hold", &[("expect", "100-continue")])?;
            send(c, vec![data(1, false, vec![0; 16_384]); 5].concat())
        }),
        new("9113 §6.9.1", "DATA of a server waits for the window", goes_on(), |c| {
            c.send([settings(&[(4, 0)]), good(1)].concat())?;
            let head = c.reaction()?;
            c.send(frame(kind::PING, 0, 0, [0; 8]))?;
            c.wait_for("PING before DATA", |event| event == Event::Pong)?;
            c.send(update(1, 100))?;
            c.wait_for("DATA", |event| event == Event::Ended(1))?;
            Ok(head)
        }),
        new("9113 §6.9.2", "a window that SETTINGS make larger than 2^31-1", connection(code::FLOW_CONTROL), |c| {
            send(c, [held(1), update(1, MAX - 65_535), settings(&[(4, 65_536)])].concat())
        }),
        new("9113 §6.9.2", "a window that SETTINGS make smaller than 0", goes_on(), |c| {
            c.send([settings(&[(4, 3)]), good(1)].concat())?;
            let head = c.reaction()?;
            // 3 bytes have been sent: the window is -3, and 2 bytes are left.
            c.send([settings(&[(4, 0)]), update(1, 3), frame(kind::PING, 0, 0, [0; 8])].concat())?;
            c.wait_for("PING before DATA", |event| event == Event::Pong)?;
            c.send(update(1, 2))?;
            c.wait_for("the rest", |event| event == Event::Ended(1))?;
            Ok(head)
        }),
        // §6.10
        new("9113 §6.10", "a field block in several CONTINUATION, one of them empty", goes_on(), |c| {
            let block = hpack::get("/");
            let (first, rest) = block.split_at(5);
            let (second, third) = rest.split_at(9);
            send(
                c,
                [
                    frame(kind::HEADERS, flag::END_STREAM, 1, first),
                    frame(kind::CONTINUATION, 0, 1, second),
                    frame(kind::CONTINUATION, 0, 1, ""),
                    frame(kind::CONTINUATION, flag::END_HEADERS, 1, third),
                ]
                .concat(),
            )
        }),
        new("9113 §6.10", "CONTINUATION on stream 0", connection(code::PROTOCOL), |c| {
            let begun = frame(kind::HEADERS, flag::END_STREAM, 1, hpack::get("/"));
            send(c, [begun, frame(kind::CONTINUATION, flag::END_HEADERS, 0, "")].concat())
        }),
        new("9113 §6.10", "CONTINUATION of another stream", connection(code::PROTOCOL), |c| {
            let begun = frame(kind::HEADERS, flag::END_STREAM, 1, hpack::get("/"));
            send(c, [begun, frame(kind::CONTINUATION, flag::END_HEADERS, 3, "")].concat())
        }),
        new("9113 §6.10", "CONTINUATION behind END_HEADERS", connection(code::PROTOCOL), |c| {
            send(c, [begun(1), frame(kind::CONTINUATION, flag::END_HEADERS, 1, "")].concat())
        }),
        new("9113 §6.10", "CONTINUATION behind DATA", connection(code::PROTOCOL), |c| {
            send(c, [begun(1), data(1, false, "x"), frame(kind::CONTINUATION, flag::END_HEADERS, 1, "")].concat())
        }),
        new("9113 §6.10", "DATA instead of CONTINUATION", connection(code::PROTOCOL), |c| {
            send(c, [frame(kind::HEADERS, 0, 1, hpack::get("/")), data(1, true, "")].concat())
        }),
        // §7
        new("9113 §7", "RST_STREAM with an unknown error code", goes_on(), |c| {
            send(c, [held(1), reset(1, 0xdead_beef), good(3)].concat())
        }),
        new("9113 §7", "GOAWAY with an unknown error code", goes_on(), |c| {
            let payload = [[0; 4], 0xdead_beef_u32.to_be_bytes()].concat();
            send(c, [good(1), frame(kind::GOAWAY, 0, 0, payload)].concat())
        }),
        new("9113 §4.1", "a frame head and nothing behind it", vec![Is::Acknowledged], |c| {
            // It waits for the rest, and goes on when that has come.
            c.send(head(8, kind::PING, 0, 0))?;
            c.send([0; 8])?;
            c.event()
        }),
    ]
}
