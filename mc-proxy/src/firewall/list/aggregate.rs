//! Fewer prefixes that say the same: one sort, then one pass.

use super::{
    Report,
    entry::{CommentId, Comments, V4, V6},
};

/// What one pass over sorted entries has to know of a prefix.
trait Prefix: Copy + Ord {
    fn covers(self, other: Self) -> bool;
    fn is_same_net(self, other: Self) -> bool;
    /// The prefix of which the two are the halves, this one being the lower; with the comment of this one.
    fn merged(self, upper: Self) -> Option<Self>;
    fn comment_id(self) -> CommentId;
}

/// Sorts, removes repetitions and, if asked to, what a wider prefix covers, and merges siblings whose comments agree.
#[expect(private_bounds, reason = "the families are two, and both are here")]
pub(super) fn normalise<P: Prefix>(entries: &mut Vec<P>, comments: &Comments, aggregate: bool, report: &mut Report) {
    entries.sort_unstable();
    let before = entries.len();
    entries.dedup_by(|later, earlier| later.is_same_net(*earlier));
    report.duplicates += (before - entries.len()) as u64;
    if !aggregate {
        entries.shrink_to_fit();
        return;
    }
    let comment = |entry: P| comments.text(entry.comment_id());
    // entries[..kept] is a stack: sorted, disjoint, and no two neighbours can be merged.
    let mut kept = 0;
    for index in 0..entries.len() {
        let mut entry = entries[index];
        // Whatever covers this one sorts before it, and nothing that came between lies outside of that.
        if kept > 0 && entries[kept - 1].covers(entry) {
            report.covered += 1;
            continue;
        }
        while kept > 0 {
            let lower = entries[kept - 1];
            match lower.merged(entry) {
                Some(parent) if comment(lower) == comment(entry) => entry = parent,
                _ => break,
            }
            report.merged += 1;
            kept -= 1;
        }
        entries[kept] = entry;
        kept += 1;
    }
    entries.truncate(kept);
    entries.shrink_to_fit();
}

impl Prefix for V4 {
    fn covers(self, other: Self) -> bool {
        self.len() <= other.len()
            && (self.addr() ^ other.addr()).checked_shr(32 - u32::from(self.len())).unwrap_or(0) == 0
    }

    fn is_same_net(self, other: Self) -> bool {
        (self.addr(), self.len()) == (other.addr(), other.len())
    }

    fn merged(self, upper: Self) -> Option<Self> {
        let bit = 1_u32.checked_shl(32 - u32::from(self.len()))?;
        let are_halves = self.len() == upper.len() && self.addr() & bit == 0 && self.addr() | bit == upper.addr();
        are_halves.then(|| Self::new(self.addr(), self.len() - 1, self.comment()))
    }

    fn comment_id(self) -> CommentId {
        self.comment()
    }
}

impl Prefix for V6 {
    fn covers(self, other: Self) -> bool {
        self.len <= other.len && (self.addr ^ other.addr).checked_shr(128 - u32::from(self.len)).unwrap_or(0) == 0
    }

    fn is_same_net(self, other: Self) -> bool {
        (self.addr, self.len) == (other.addr, other.len)
    }

    fn merged(self, upper: Self) -> Option<Self> {
        let bit = 1_u128.checked_shl(128 - u32::from(self.len))?;
        let are_halves = self.len == upper.len && self.addr & bit == 0 && self.addr | bit == upper.addr;
        are_halves.then(|| Self { len: self.len - 1, ..self })
    }

    fn comment_id(self) -> CommentId {
        self.comment
    }
}
