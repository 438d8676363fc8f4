//! Long streams of bytes that cannot be mistaken for one another, checked byte by byte and by SHA-256.

use std::{
    io::{Read, Write},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use rustls::crypto::{aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256, hash::Context};

const CHUNK: usize = 256 << 10;

/// A pseudo-random stream; equal seeds give equal bytes.
#[derive(Debug)]
pub struct Bytes {
    state: u64,
}

/// A stream that has been sent or received to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Lower-case hex.
    pub sha256: String,
    /// How many bytes.
    pub length: u64,
}

impl Bytes {
    /// The stream of a seed.
    pub fn of(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// The next bytes; only whole multiples of eight continue without a gap.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for word in buffer.chunks_mut(8) {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            word.copy_from_slice(&self.state.to_le_bytes()[..word.len()]);
        }
    }
}

/// Writes `length` bytes of the stream of `seed`.
pub fn send(to: &mut impl Write, seed: u64, length: u64) -> Result<Digest> {
    let mut stream = Bytes::of(seed);
    let mut hash = sha256()?;
    each_chunk(length, |chunk, at| {
        stream.fill(chunk);
        hash.update(chunk);
        to.write_all(chunk).with_context(|| format!("sending at byte {at} of {length}"))
    })?;
    Ok(Digest { sha256: hex(hash), length })
}

/// Reads to the end; it has to be exactly `length` bytes of the stream of `seed`.
pub fn receive(from: &mut impl Read, seed: u64, length: u64) -> Result<Digest> {
    let mut stream = Bytes::of(seed);
    let mut expected = vec![0; CHUNK];
    let mut hash = sha256()?;
    each_chunk(length, |chunk, at| {
        from.read_exact(chunk).with_context(|| format!("receiving at byte {at} of {length}"))?;
        let expected = &mut expected[..chunk.len()];
        stream.fill(expected);
        ensure!(chunk == expected, "bytes {at}.. of {length} are not those that were sent");
        hash.update(chunk);
        Ok(())
    })?;
    ensure!(from.read(&mut [0]).context("reading the end")? == 0, "there is more than {length} bytes");
    Ok(Digest { sha256: hex(hash), length })
}

/// Megabits per second since `start`.
pub fn megabits(bytes: u64, start: Instant) -> f64 {
    bytes as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64()
}

fn each_chunk(length: u64, mut work: impl FnMut(&mut [u8], u64) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let size = usize::try_from(length - at).unwrap_or(CHUNK).min(CHUNK);
        work(&mut buffer[..size], at)?;
        at += size as u64;
    }
    Ok(())
}

fn sha256() -> Result<Box<dyn Context>> {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().context("not a suite of TLS 1.3")?;
    Ok(suite.common.hash_provider.start())
}

fn hex(hash: Box<dyn Context>) -> String {
    hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
