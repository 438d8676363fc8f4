//! Traffic for tests of the relay: streams that can be checked at every byte, and peers that follow a script.

mod pattern;
mod peer;
mod random;

pub use self::{
    pattern::Pattern,
    peer::{Ending, PATIENCE, Peer, Position, Receiver, Sender},
    random::{Random, SEED_VARIABLE},
};
