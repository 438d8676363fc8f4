//! RFC 7541: field blocks.

use anyhow::ensure;

use super::{Case, Is, ask, connection, goes_on, send};
use crate::http::h2::{
    frame::{code, headers},
    hpack::{field, get, indexed, integer, string},
    raw::Event,
};

/// Why it is another code.
pub(super) const CODE: &str = "the h2 crate ends connections with PROTOCOL_ERROR where HPACK cannot be decoded";

pub(super) fn cases() -> Vec<Case> {
    let new = Case::new;
    let bad = |section, what, play| {
        Case::new(section, what, connection(code::COMPRESSION), play).but(Is::Connection(code::PROTOCOL), CODE)
    };
    vec![
        new("7541 §2.3.2", "a field that the table remembers from another request", goes_on(), |c| {
            c.send(headers(1, true, [get("/"), indexed("x-own", "y")].concat()))?;
            ensure!(c.answer(1)? == 200);
            send(c, headers(3, true, [get("/own"), vec![0x80 | 62]].concat()))
        }),
        new("7541 §2.3.1", "fields of the static table", goes_on(), |c| {
            ask(c, [b"\x82\x87\x84\x41".as_slice(), &string(crate::http::HOST)].concat())
        }),
        bad("7541 §2.3.3", "an index behind the end of both tables", |c| ask(c, [get("/"), vec![0x80 | 70]].concat())),
        bad("7541 §2.3.3", "a name's index behind the end of both tables", |c| {
            ask(c, [get("/"), vec![0x40 | 62], string("y")].concat())
        }),
        bad("7541 §4.3", "an index of an entry that the table's new size has evicted", |c| {
            c.send(headers(1, true, [get("/"), indexed("x-own", "y")].concat()))?;
            ensure!(c.answer(1)? == 200);
            send(c, headers(3, true, [vec![0x20], integer(0x20, 5, 4096), get("/"), vec![0x80 | 62]].concat()))
        }),
        bad("7541 §4.4", "an index of an entry that another one has evicted", |c| {
            c.send(headers(1, true, [get("/"), indexed("x-own", "y")].concat()))?;
            ensure!(c.answer(1)? == 200);
            let large = indexed("x-large", "y".repeat(4_060 - 7));
            send(c, headers(3, true, [get("/"), large, vec![0x80 | 63]].concat()))
        }),
        new("7541 §4.2", "the table's size at the beginning of a block, twice", goes_on(), |c| {
            ask(c, [vec![0x20], integer(0x20, 5, 4096), get("/")].concat())
        }),
        bad("7541 §4.2", "the table's size behind a field", |c| ask(c, [get("/"), vec![0x20]].concat())),
        bad("7541 §6.3", "a larger size of the table than was allowed", |c| {
            ask(c, [integer(0x20, 5, 4097), get("/")].concat())
        }),
        bad("7541 §5.1", "an integer without end", |c| {
            ask(c, [get("/"), vec![0xff], vec![0xff; 20], vec![0x7f]].concat())
        }),
        bad("7541 §5.1", "an integer of more than 32 bits", |c| {
            ask(c, [get("/"), vec![0, 0x7f, 0x80, 0x80, 0x80, 0x80, 0x7f]].concat())
        }),
        bad("7541 §5.2", "a string that is longer than its block", |c| {
            ask(c, [get("/"), vec![0, 0x7f, 0x10, b'x']].concat())
        }),
        new("7541 §5.2", "a string in Huffman's code", goes_on(), |c| {
            // §C.4.1: www.example.com.
            let value = b"\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff";
            ask(c, [get("/"), vec![0], string("x-own"), value.to_vec()].concat())
        }),
        bad("7541 §5.2", "padding of Huffman's code that is not ones", |c| {
            // `a` is 00011.
            ask(c, [get("/"), vec![0], string("x-own"), vec![0x81, 0b0001_1000]].concat())
        }),
        bad("7541 §5.2", "padding of Huffman's code of more than 7 bits", |c| {
            ask(c, [get("/"), vec![0], string("x-own"), vec![0x82, 0b0001_1111, 0xff]].concat())
        }),
        bad("7541 §5.2", "EOS in Huffman's code", |c| {
            ask(c, [get("/"), vec![0], string("x-own"), vec![0x84, 0xff, 0xff, 0xff, 0xff]].concat())
        }),
        bad("7541 §6.1", "index 0", |c| ask(c, [get("/"), vec![0x80]].concat())),
        new("7541 §6.2.3", "a literal that is never indexed", goes_on(), |c| {
            ask(c, [get("/"), vec![0x10], string("x-own"), string("y")].concat())
        }),
        new("7541 §6.2.1", "an entry that is larger than the table", goes_on(), |c| {
            c.send(headers(1, true, [get("/"), indexed("x-own", "y".repeat(5_000))].concat()))?;
            ensure!(c.answer(1)? == 200);
            send(c, headers(3, true, get("/")))
        }),
        new("7541 §2.2", "the table of a stream that was malformed goes on", goes_on(), |c| {
            c.send(headers(1, true, [get("/"), field("connection", "x"), indexed("x-own", "y")].concat()))?;
            ensure!(matches!(c.reaction()?, Event::Reset(1, _)));
            send(c, headers(3, true, [get("/own"), vec![0x80 | 62]].concat()))
        }),
    ]
}
