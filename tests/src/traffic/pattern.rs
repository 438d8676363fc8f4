//! A stream of which every position is known, so that what arrives is checked where it arrives.

use std::sync::LazyLock;

use anyhow::{Result, bail};

use super::Random;

/// Bytes that are taken from the table in one piece.
const BLOCK: usize = 1 << 10;

/// Where a piece may begin.
const STARTS: usize = 1 << 20;

static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = Random::of(0x7461_626c_6500);
    (0..(STARTS + BLOCK) / 8).flat_map(|_| random.word().to_le_bytes()).collect()
});

/// The stream of a seed. Two streams, and two places of a stream, have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    seed: u64,
}

impl Pattern {
    /// Equal seeds give equal bytes.
    pub fn of(seed: u64) -> Self {
        Self { seed }
    }

    /// The bytes from position `at` on.
    pub fn fill(self, mut at: u64, mut buffer: &mut [u8]) {
        while !buffer.is_empty() {
            let piece = self.piece(at, buffer.len());
            let (head, rest) = buffer.split_at_mut(piece.len());
            head.copy_from_slice(piece);
            at += piece.len() as u64;
            buffer = rest;
        }
    }

    /// # Errors
    /// When `got` is not what stands at position `at`: which byte is the first wrong one, and what it is instead.
    pub fn check(self, mut at: u64, mut got: &[u8]) -> Result<()> {
        while !got.is_empty() {
            let piece = self.piece(at, got.len());
            if let Some(good) = piece.iter().zip(got).position(|(expected, got)| expected != got) {
                let wrong = at + good as u64;
                bail!("byte {wrong} is wrong: {}", self.diagnose(wrong, &got[good..]));
            }
            at += piece.len() as u64;
            got = &got[piece.len()..];
        }
        Ok(())
    }

    fn piece(self, at: u64, room: usize) -> &'static [u8] {
        let (block, within) = (at / BLOCK as u64, at as usize % BLOCK);
        let start = Random::of(self.seed ^ block.rotate_left(40)).word() as usize % STARTS;
        &TABLE[start + within..start + BLOCK.min(within + room)]
    }

    /// Lost and repeated bytes are the usual damage.
    fn diagnose(self, wrong: u64, got: &[u8]) -> String {
        const BEFORE: u64 = 64 << 20;
        const PROBE: usize = 16;
        let Some(probe) = got.get(..PROBE) else { return format!("{got:?}") };
        let from = wrong.saturating_sub(BEFORE);
        let mut around = vec![0; 2 * BEFORE as usize];
        self.fill(from, &mut around);
        match around.windows(PROBE).position(|window| window == probe).map(|found| from + found as u64) {
            Some(found) if found > wrong => format!("{} bytes are missing", found - wrong),
            Some(found) => format!("what follows is a repetition from byte {found} on, {} bytes back", wrong - found),
            None if probe == [0; PROBE] => "zeros".to_owned(),
            None => format!("foreign bytes, {probe:02x?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_does_not_depend_on_how_it_is_cut() {
        let pattern = Pattern::of(1);
        let mut whole = vec![0; 10_000];
        pattern.fill(777, &mut whole);
        let mut random = Random::of(2);
        let mut at = 0;
        while at < whole.len() {
            let end = whole.len().min(at + 1 + random.below(2_000) as usize);
            let mut part = vec![0; end - at];
            pattern.fill(777 + at as u64, &mut part);
            assert_eq!(part, whole[at..end]);
            pattern.check(777 + at as u64, &part).unwrap();
            at = end;
        }
        assert!(Pattern::of(3).check(777, &whole).is_err());
    }

    #[test]
    fn damage_is_told() {
        let pattern = Pattern::of(4);
        let mut bytes = vec![0; 5_000];
        pattern.fill(0, &mut bytes);
        let told = |bytes: &[u8]| pattern.check(0, bytes).unwrap_err().to_string();
        assert_eq!(told(&[&bytes[..100], &bytes[103..]].concat()), "byte 100 is wrong: 3 bytes are missing");
        assert!(told(&[&bytes[..100], &bytes[60..]].concat()).ends_with("from byte 60 on, 40 bytes back"));
        assert!(told(&[&bytes[..100], &[0; 50]].concat()).ends_with("zeros"));
        bytes[4_999] ^= 1;
        assert!(told(&bytes).starts_with("byte 4999 is wrong"));
    }
}
