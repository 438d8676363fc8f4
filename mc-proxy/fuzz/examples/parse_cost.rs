//! Prints what one hello costs to read: `cargo run --release --example parse_cost`.

use std::{fs, hint::black_box, path::Path, time::Instant};

use mc_proxy_fuzz::tls::{ClientHelloReader, Progress};

const ROUNDS: u32 = 1_000_000;

fn main() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/curl-7.88.1-https-2026-11-20.bin");
    let whole = fs::read(path).expect("a captured hello");
    let fragments = whole[5..].chunks(128).map(|fragment| {
        let len = u16::try_from(fragment.len()).expect("a record").to_be_bytes();
        [&[22, 3, 1], len.as_slice(), fragment].concat()
    });
    let in_records = fragments.collect::<Vec<_>>().concat();
    for (what, wire, pieces) in [
        ("one record, one read", &whole, 1),
        ("one record, two reads", &whole, 2),
        ("records of 128 bytes, one read", &in_records, 1),
    ] {
        let mut best = u128::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            for _ in 0..ROUNDS {
                let mut reader = ClientHelloReader::new();
                for piece in 1..pieces {
                    black_box(reader.advance(black_box(&wire[..wire.len() * piece / pieces])));
                }
                assert!(matches!(black_box(reader.advance(black_box(wire))), Progress::Complete(_)));
            }
            best = best.min(start.elapsed().as_nanos() / u128::from(ROUNDS));
        }
        println!("{what}: {} bytes, {best} ns", wire.len());
    }
}
