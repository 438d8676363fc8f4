//! RFC 9113 §8: what a request is made of.

use super::{Case, Is, ask, goes_on, malformed, post, send, stream};
use crate::http::{
    HOST,
    h2::{
        frame::{code, data, headers},
        hpack::{block, field, get, request},
    },
};

const TRAILERS: &str = "the h2 crate drops pseudo-fields of trailers before anybody sees them; they are not forwarded";
const FRAGMENT: &str = "the http crate cuts the fragment off before anybody sees it; it is not forwarded";

pub(super) fn cases() -> Vec<Case> {
    let new = Case::new;
    let with = |section, what, play| Case::new(section, what, malformed(), play);
    vec![
        // §8.1.1
        new("9113 §8.1.1", "content as long as Content-Length says", goes_on(), |c| {
            post(c, &[("content-length", "5")], &[b"he", b"llo"])
        }),
        with("9113 §8.1.1", "less content than Content-Length says", |c| {
            post(c, &[("content-length", "5")], &[b"he", b"ll"])
        }),
        with("9113 §8.1.1", "more content than Content-Length says", |c| {
            post(c, &[("content-length", "5")], &[b"he", b"llo!"])
        }),
        with("9113 §8.1.1", "END_STREAM with a head that has a Content-Length", |c| {
            post(c, &[("content-length", "5")], &[])
        }),
        with("9113 §8.1.1", "trailers where there is content to come", |c| {
            let head = headers(1, false, request("POST", "/", &[("content-length", "5")]));
            send(c, [head, data(1, false, "he"), headers(1, true, field("x-sum", "1"))].concat())
        }),
        with("9113 §8.1.1", "Content-Length that is no number", |c| post(c, &[("content-length", "5x")], &[b"hello"])),
        with("9113 §8.1.1", "two lengths", |c| {
            post(c, &[("content-length", "5"), ("content-length", "6")], &[b"hello"])
        }),
        // §8.2.1
        with("9113 §8.2.1", "a name in upper case", |c| ask(c, request("GET", "/", &[("X-Own", "y")]))),
        with("9113 §8.2.1", "a name with a space", |c| ask(c, request("GET", "/", &[("x own", "y")]))),
        with("9113 §8.2.1", "a name with a colon", |c| ask(c, request("GET", "/", &[("x:own", "y")]))),
        with("9113 §8.2.1", "a name of other bytes than ASCII", |c| {
            ask(c, [get("/"), field(b"x-\xff", "y")].concat())
        }),
        with("9113 §8.2.1", "an empty name", |c| ask(c, request("GET", "/", &[("", "y")]))),
        with("9113 §8.2.1", "a value with NUL", |c| ask(c, request("GET", "/", &[("x-own", "a\0b")]))),
        with("9113 §8.2.1", "a value with CR", |c| ask(c, request("GET", "/", &[("x-own", "a\rb")]))),
        with("9113 §8.2.1", "a value with LF", |c| ask(c, request("GET", "/", &[("x-own", "a\nb: c")]))),
        with("9113 §8.2.1", "a value that begins with a space", |c| ask(c, request("GET", "/", &[("x-own", " a")]))),
        with("9113 §8.2.1", "a value that ends with a tab", |c| ask(c, request("GET", "/", &[("x-own", "a\t")]))),
        new("9113 §8.2.1", "an empty value", goes_on(), |c| ask(c, request("GET", "/", &[("x-own", "")]))),
        // §8.2.2
        with("9113 §8.2.2", "Connection", |c| ask(c, request("GET", "/", &[("connection", "x-own")]))),
        with("9113 §8.2.2", "Keep-Alive", |c| ask(c, request("GET", "/", &[("keep-alive", "1")]))),
        with("9113 §8.2.2", "Proxy-Connection", |c| {
            ask(c, request("GET", "/", &[("proxy-connection", "keep-alive")]))
        }),
        with("9113 §8.2.2", "Transfer-Encoding", |c| post(c, &[("transfer-encoding", "chunked")], &[b"0\r\n\r\n"])),
        with("9113 §8.2.2", "Upgrade", |c| ask(c, request("GET", "/", &[("upgrade", "websocket")]))),
        with("9113 §8.2.2", "TE with something besides trailers", |c| {
            ask(c, request("GET", "/", &[("te", "trailers, deflate")]))
        }),
        new("9113 §8.2.2", "TE with trailers", goes_on(), |c| ask(c, request("GET", "/", &[("te", "trailers")]))),
        with("9113 §8.2.2", "Connection in trailers", |c| {
            let head = headers(1, false, request("POST", "/hold", &[]));
            send(c, [head, headers(1, true, field("connection", "close"))].concat())
        }),
        // §8.2.3
        new("9113 §8.2.3", "Cookie in pieces", goes_on(), |c| {
            ask(c, request("GET", "/cookies", &[("cookie", "a=b"), ("cookie", "c=d")]))
        }),
        // §8.3
        with("9113 §8.3", "an unknown pseudo-field", |c| ask(c, [field(":own", "y"), get("/")].concat())),
        with("9113 §8.3", "a pseudo-field of responses", |c| ask(c, [field(":status", "200"), get("/")].concat())),
        with("9113 §8.3", "a pseudo-field behind a field", |c| {
            let first = [(":method", "GET"), (":scheme", "https"), (":authority", HOST)];
            ask(c, block(&[&first[..], &[("x-own", "y"), (":path", "/")]].concat()))
        }),
        with("9113 §8.3", "a pseudo-field in trailers", |c| {
            let head = headers(1, false, request("POST", "/", &[]));
            send(c, [head, data(1, false, "x"), headers(1, true, field(":path", "/"))].concat())
        })
        .but(Is::Answer(200), TRAILERS),
        with("9113 §8.3", ":method twice", |c| ask(c, [field(":method", "GET"), get("/")].concat())),
        with("9113 §8.3", ":scheme twice", |c| ask(c, [field(":scheme", "https"), get("/")].concat())),
        with("9113 §8.3", ":authority twice", |c| ask(c, [field(":authority", HOST), get("/")].concat())),
        with("9113 §8.3", ":path twice", |c| ask(c, [field(":path", "/"), get("/")].concat())),
        // §8.3.1
        with("9113 §8.3.1", "no :method", |c| {
            ask(c, block(&[(":scheme", "https"), (":authority", HOST), (":path", "/")]))
        }),
        with("9113 §8.3.1", "no :scheme", |c| {
            ask(c, block(&[(":method", "GET"), (":authority", HOST), (":path", "/")]))
        }),
        with("9113 §8.3.1", "no :path", |c| {
            ask(c, block(&[(":method", "GET"), (":scheme", "https"), (":authority", HOST)]))
        }),
        with("9113 §8.3.1", "an empty :path", |c| ask(c, get(""))),
        with("9113 §8.3.1", "a :path that does not begin with a slash", |c| ask(c, get("x/y"))),
        with("9113 §8.3.1", "a :path of * with another method than OPTIONS", |c| ask(c, get("*"))),
        new("9113 §8.3.1", "a :path of * with OPTIONS", goes_on(), |c| ask(c, request("OPTIONS", "*", &[]))),
        with("9113 §8.3.1", "a :path with a space", |c| ask(c, get("/a b"))),
        with("9113 §8.3.1", "a :path with a fragment", |c| ask(c, get("/a#b"))).but(Is::Answer(200), FRAGMENT),
        with("9113 §8.3.1", "a :scheme that is none of HTTP", |c| {
            ask(c, block(&[(":method", "GET"), (":scheme", "ftp"), (":authority", HOST), (":path", "/")]))
        }),
        with("9113 §8.3.1", "a :scheme with a space", |c| {
            ask(c, block(&[(":method", "GET"), (":scheme", "ht tp"), (":authority", HOST), (":path", "/")]))
        }),
        with("9113 §8.3.1", "a :method that is no token", |c| ask(c, request("G T", "/", &[]))),
        new("9113 §8.3.1", "Host instead of :authority", goes_on(), |c| {
            ask(c, block(&[(":method", "GET"), (":scheme", "https"), (":path", "/"), ("host", HOST)]))
        }),
        with("9113 §8.3.1", "neither Host nor :authority", |c| {
            ask(c, block(&[(":method", "GET"), (":scheme", "https"), (":path", "/")]))
        }),
        new("9113 §8.3.1", "Host and :authority that say the same", goes_on(), |c| {
            ask(c, request("GET", "/", &[("host", HOST)]))
        }),
        with("9113 §8.3.1", "Host and :authority that say something else", |c| {
            ask(c, request("GET", "/", &[("host", "other.example.com")]))
        }),
        with("9113 §8.3.1", "an :authority with a user name", |c| {
            let authority = format!("user@{HOST}");
            ask(c, block(&[(":method", "GET"), (":scheme", "https"), (":authority", &authority), (":path", "/")]))
        }),
        with("9113 §8.3.1", "an empty :authority", |c| {
            ask(c, block(&[(":method", "GET"), (":scheme", "https"), (":authority", ""), (":path", "/")]))
        }),
        new("9113 §9.1.2", "an :authority that the connection was not made for", vec![Is::Answer(421)], |c| {
            let of = [(":method", "GET"), (":scheme", "https"), (":authority", "x.example.com"), (":path", "/")];
            ask(c, block(&of))
        }),
        // §8.5
        new(
            "9113 §8.5",
            "CONNECT to a host",
            vec![Is::Answer(501), Is::Answer(405), Is::Stream(code::REFUSED)],
            |c| ask(c, block(&[(":method", "CONNECT"), (":authority", "app.example.com:443")])),
        ),
        with("9113 §8.5", "CONNECT with :scheme and :path", |c| ask(c, request("CONNECT", "/", &[]))),
        with("9113 §8.5", "CONNECT without :authority", |c| ask(c, block(&[(":method", "CONNECT")]))),
        // RFC 8441
        with("8441 §4", ":protocol with another method than CONNECT", |c| {
            ask(c, [field(":protocol", "websocket"), get("/")].concat())
        }),
        with("8441 §4", "extended CONNECT without :path", |c| {
            let of = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":authority", HOST)];
            send(c, headers(1, false, block(&of)))
        }),
        with("8441 §4", ":protocol twice", |c| {
            let block =
                [field(":protocol", "websocket"), field(":protocol", "websocket"), request("CONNECT", "/", &[])];
            send(c, headers(1, false, block.concat()))
        }),
        new("9113 §10.5.1", "three fields of 4000 bytes, where a head may have 10 KiB", vec![Is::Answer(431)], |c| {
            let values = "x".repeat(4_000);
            let fields = [("x-1", values.as_str()), ("x-2", &values), ("x-3", &values)];
            ask(c, request("GET", "/", &[&fields[..], &[("x-4", "y"); 3]].concat()))
        }),
        new("9113 §8.1.1", "a request behind one that is malformed", stream(code::PROTOCOL), |c| {
            ask(c, request("GET", "/", &[("X-Own", "y")]))
        }),
    ]
}
