//! Prints what a million lines cost to read: `cargo run --release --example list_cost`.

use std::{fmt::Write as _, hint::black_box, net::Ipv4Addr, time::Instant};

use mc_proxy_fuzz::firewall::list::{ListOptions, ListParser};

const LINES: u32 = 1_000_000;
const PIECE: usize = 256 * 1024;

fn main() {
    // A permutation of the odd numbers: distinct, scattered, nothing to merge.
    let addr = |n: u32| Ipv4Addr::from_bits((n * 2 + 1).wrapping_mul(0x9e37_79b1));
    let lines = |line: fn(&mut String, Ipv4Addr)| {
        (0..LINES).fold(String::new(), |mut text, n| {
            line(&mut text, addr(n));
            text.push('\n');
            text
        })
    };
    for (what, text) in [
        (
            "addresses",
            lines(|text, addr| {
                let _ = write!(text, "{addr}");
            }),
        ),
        (
            "/24 prefixes",
            lines(|text, addr| {
                let [a, b, c, _] = addr.octets();
                let _ = write!(text, "{a}.{b}.{c}.0/24");
            }),
        ),
        (
            "addresses with a comment",
            lines(|text, addr| {
                let _ = write!(text, "{addr} # {addr:?}");
            }),
        ),
        (
            "IPv6 addresses",
            lines(|text, addr| {
                let _ = write!(text, "2001:db8::{:x}:{:x}", addr.to_bits() >> 16, addr.to_bits() & 0xffff);
            }),
        ),
        (
            "JSON lines",
            lines(|text, addr| {
                let _ = write!(text, "{{\"cidr\":\"{addr}\",\"sblid\":\"SBL1\"}}");
            }),
        ),
    ] {
        let mut best = f64::MAX;
        let mut kept = 0;
        for _ in 0..5 {
            let start = Instant::now();
            let mut parser = ListParser::new(ListOptions::default());
            for piece in text.as_bytes().chunks(PIECE) {
                assert!(parser.push(black_box(piece)).is_continue());
            }
            let list = parser.finish().expect("every line is good");
            kept = black_box(list).len();
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{LINES} {what}: {} MB, {:.0} ms, {kept} entries", text.len() / 1_000_000, best * 1e3);
    }
}
