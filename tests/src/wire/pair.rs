//! A relayed connection after its hello, with both of its ends in the test's hands.

use anyhow::Result;

use super::Wire;
use crate::traffic::{Peer, Random};

/// A relayed connection after its hello.
#[derive(Debug)]
pub struct Pair {
    /// Who connected.
    pub client: Peer,
    /// Who was connected to.
    pub backend: Peer,
    /// What the daemon knows it by.
    pub id: PairId,
}

/// What the daemon knows a pair by.
#[derive(Clone, Copy, Debug)]
pub struct PairId {
    /// What its server name begins with. A client's port may be another one's before long.
    pub number: u64,
    /// Bytes of its hello.
    pub hello: u64,
}

impl Pair {
    /// Round trips of `sizes` bytes each way, one after the other: what makes a pair chatty.
    pub async fn chat(&mut self, rounds: u64, largest: u64, random: &mut Random) -> Result<()> {
        for _ in 0..rounds {
            let (ask, answer) = (random.size(largest), random.size(largest));
            self.client.sender.send(ask).await?;
            self.backend.receiver.receive(ask).await?;
            self.backend.sender.send(answer).await?;
            self.client.receiver.receive(answer).await?;
        }
        Ok(())
    }

    /// `up` bytes from the client and `down` from the backend, both at once, as fast as it goes.
    pub async fn bulk(&mut self, up: u64, down: u64) -> Result<()> {
        let Self { client, backend, .. } = self;
        tokio::try_join!(
            client.sender.send(up),
            backend.receiver.receive(up),
            backend.sender.send(down),
            client.receiver.receive(down),
        )?;
        Ok(())
    }

    /// Whoever acts first, and the other.
    pub fn sides(&mut self, is_client_first: bool) -> (&mut Peer, &mut Peer) {
        let Self { client, backend, .. } = self;
        if is_client_first { (client, backend) } else { (backend, client) }
    }

    /// The same, each of which may be gone before the other is.
    pub fn into_sides(self, is_client_first: bool) -> (Peer, Peer) {
        let Self { client, backend, .. } = self;
        if is_client_first { (client, backend) } else { (backend, client) }
    }

    /// Ends both sides, the client first, and checks that nothing is missing and that the record says so.
    pub async fn close(mut self, wire: &Wire) -> Result<()> {
        self.client.sender.finish()?;
        self.backend.receiver.end_at(self.client.sender.at()).await?;
        self.backend.sender.finish()?;
        self.client.receiver.end_at(self.backend.sender.at()).await?;
        wire.recorded(self.id, "closed", self.client.sender.at(), self.backend.sender.at()).await
    }
}
