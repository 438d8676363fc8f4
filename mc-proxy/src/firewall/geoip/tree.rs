//! The search tree of a database (MaxMind DB file format specification, § "Binary Search Tree Section").
//!
//! The library walks the tree as well, but on one whose branches grow together its iterator does not end in useful time,
//! and where all of IPv4 is one record it takes every other network with that record for an alias.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use maxminddb::Metadata;

/// How often a walk may visit nodes, per node. A tree is walked with one visit each; some room is for writers that let
/// equal branches share nodes.
const VISITS_PER_NODE: u64 = 4;

/// Enough to find that a tree of few nodes is endless.
const MIN_VISITS: u64 = 256;

/// `::ffff:0:0/96` without its last 32 bits. Such addresses are looked up as IPv4.
const MAPPED: u128 = 0xffff;

const ROOT: u32 = 0;

/// The nodes. A record below the number of nodes is a node, the number itself means "nothing is known here", and what
/// is above stands for a place in the data.
pub(super) struct Tree {
    nodes: Vec<u8>,
    /// Bytes of a node, which has two records.
    node_bytes: usize,
    node_count: u32,
    has_ipv6: bool,
    /// The record below which IPv4 is found.
    ipv4: u32,
}

/// A network and the record that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf {
    pub(super) net: IpNet,
    /// The same for networks with the same data.
    pub(super) record: u32,
}

/// Why nodes are not a tree.
#[derive(Debug, thiserror::Error)]
pub(super) enum Defect {
    /// Deeper than an address is long.
    #[error("its search tree goes on below {0}")]
    Endless(IpNet),
    /// Branches that share so many nodes that a walk does not end in useful time.
    #[error("the branches of its search tree grow together")]
    Tangled,
}

impl Tree {
    /// The tree at the start of a file, of which the library has checked that it has room there.
    pub(super) fn new(file: &[u8], metadata: &Metadata) -> Self {
        let node_bytes = usize::from(metadata.record_size) / 4;
        let nodes = file.get(..node_bytes * metadata.node_count as usize).unwrap_or_default().to_vec();
        let has_ipv6 = metadata.ip_version == 6;
        let mut tree = Self { nodes, node_bytes, node_count: metadata.node_count, has_ipv6, ipv4: ROOT };
        // In a tree for IPv6, IPv4 is ::/96.
        for _ in 0..if has_ipv6 { 96 } else { 0 } {
            if !tree.is_node(tree.ipv4) {
                break;
            }
            tree.ipv4 = tree.child(tree.ipv4, false);
        }
        tree
    }

    /// The record of an address; `None` when there is none. IPv6 addresses that only stand for IPv4 ones have none:
    /// `::/96`, and what the tree makes an alias of it (as a rule `2002::/16` and `2001::/32`).
    pub(super) fn find(&self, addr: IpAddr) -> Option<u32> {
        let mut at = match addr {
            IpAddr::V4(addr) => Step { record: self.ipv4, bits: u128::from(addr.to_bits()) << 96, depth: 0, v6: false },
            IpAddr::V6(addr) if self.has_ipv6 => Step { record: ROOT, bits: addr.to_bits(), depth: 0, v6: true },
            IpAddr::V6(_) => return None,
        };
        while self.is_node(at.record) && at.depth < at.width() {
            if self.is_alias(&at) {
                return None;
            }
            at.record = self.child(at.record, at.bits << at.depth >> 127 == 1);
            at.depth += 1;
        }
        (at.record > self.node_count).then_some(at.record)
    }

    /// The networks that have a record, without overlap, in ascending order, IPv4 first; and after a defect no more.
    /// IPv6 networks that only stand for IPv4 ones are left out, as in [`Self::find`].
    pub(super) fn leaves(&self) -> Leaves<'_> {
        let mut stack = Vec::with_capacity(Step::MAX_WIDTH + 2);
        if self.has_ipv6 {
            stack.push(Step { record: ROOT, bits: 0, depth: 0, v6: true });
        }
        stack.push(Step { record: self.ipv4, bits: 0, depth: 0, v6: false });
        let visits = u64::from(self.node_count) * VISITS_PER_NODE + MIN_VISITS;
        Leaves { tree: self, stack, visits }
    }

    fn is_node(&self, record: u32) -> bool {
        record < self.node_count
    }

    fn is_alias(&self, step: &Step) -> bool {
        step.v6 && step.record == self.ipv4 && self.is_node(self.ipv4)
    }

    fn child(&self, node: u32, right: bool) -> u32 {
        let start = node as usize * self.node_bytes;
        let record = match (self.nodes.get(start..start + self.node_bytes), right) {
            (Some(&[a, b, c, _, _, _]), false) | (Some(&[_, _, _, a, b, c]), true) => [0, a, b, c],
            // The byte in the middle has the upper four bits of both.
            (Some(&[b, c, d, a, _, _, _]), false) => [a >> 4, b, c, d],
            (Some(&[_, _, _, a, b, c, d]), true) => [a & 0xf, b, c, d],
            (Some(&[a, b, c, d, _, _, _, _]), false) | (Some(&[_, _, _, _, a, b, c, d]), true) => [a, b, c, d],
            _ => return self.node_count,
        };
        u32::from_be_bytes(record)
    }
}

/// A place on the way through the tree.
#[derive(Clone, Copy)]
struct Step {
    record: u32,
    /// The address so far, from the highest bit on.
    bits: u128,
    depth: u8,
    v6: bool,
}

impl Step {
    const MAX_WIDTH: usize = 128;

    fn width(&self) -> u8 {
        if self.v6 { 128 } else { 32 }
    }

    fn is_mapped(&self) -> bool {
        self.v6 && self.depth == 96 && self.bits >> 32 == MAPPED
    }

    fn net(&self) -> IpNet {
        if self.v6 {
            IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::from_bits(self.bits), self.depth))
        } else {
            let [a, b, c, d, ..] = self.bits.to_be_bytes();
            IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), self.depth))
        }
    }
}

/// See [`Tree::leaves`].
pub(super) struct Leaves<'a> {
    tree: &'a Tree,
    stack: Vec<Step>,
    /// How many nodes may still be visited.
    visits: u64,
}

impl Leaves<'_> {
    fn defect(&mut self, defect: Defect) -> Option<Result<Leaf, Defect>> {
        self.stack.clear();
        Some(Err(defect))
    }
}

impl Iterator for Leaves<'_> {
    type Item = Result<Leaf, Defect>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(step) = self.stack.pop() {
            if step.record == self.tree.node_count || step.is_mapped() || self.tree.is_alias(&step) {
                continue;
            }
            if !self.tree.is_node(step.record) {
                return Some(Ok(Leaf { net: step.net(), record: step.record }));
            }
            if step.depth == step.width() {
                return self.defect(Defect::Endless(step.net()));
            }
            let Some(visits) = self.visits.checked_sub(1) else { return self.defect(Defect::Tangled) };
            self.visits = visits;
            for right in [true, false] {
                let record = self.tree.child(step.record, right);
                let bits = step.bits | (u128::from(right) << 127 >> step.depth);
                self.stack.push(Step { record, bits, depth: step.depth + 1, ..step });
            }
        }
        None
    }
}
