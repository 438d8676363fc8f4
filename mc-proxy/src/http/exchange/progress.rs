//! Whom an exchange waits for, and since when.

use tokio::time::{Duration, Instant};

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Party {
    /// The client, which is to send more of the request.
    Sender,
    /// The client, which is to take more of the response.
    Taker,
    /// The backend, which is to take more of the request, to answer, or to send more of the response.
    Backend,
}

/// What has moved so far: each grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// Of the request.
    pub(super) up: u64,
    /// Of the response.
    pub(super) down: u64,
    /// What the client has taken of it.
    pub(super) taken: u64,
}

/// Time counts for whoever could do something and does not. It begins anew when it is somebody else's turn: a client is not
/// late because its backend was silent before it spoke.
#[derive(Debug)]
pub(super) struct Progress {
    party: Party,
    /// Since when nothing has moved and it has been that party's turn.
    since: Instant,
    moved: Moved,
    /// Since when content of the request could come; none while nobody asks for it.
    sending_since: Option<Instant>,
    /// For how long it could before.
    sending: Duration,
}

impl Progress {
    /// `moved`: what is no progress of this exchange.
    pub(super) fn new(moved: Moved, now: Instant) -> Self {
        Self { party: Party::Backend, since: now, moved, sending_since: None, sending: Duration::ZERO }
    }

    /// Takes note of how things stand; `true` if something has moved. `is_sending`: the client could send more of the request.
    pub(super) fn look(&mut self, party: Party, is_sending: bool, moved: Moved) -> bool {
        self.look_at(party, is_sending, moved, Instant::now)
    }

    /// Most looks find that nothing is new, and need not know the time.
    fn look_at(&mut self, party: Party, is_sending: bool, moved: Moved, now: impl Fn() -> Instant) -> bool {
        let before = std::mem::replace(&mut self.moved, moved);
        let has_moved = moved != before;
        // What a client sends does not excuse it from taking what it is sent, nor do more parts that wait for it.
        let is_progress = if party == Party::Taker { moved.taken != before.taken } else { has_moved };
        if is_progress || party != self.party {
            self.since = now();
            self.party = party;
        }
        match self.sending_since {
            None if is_sending => self.sending_since = Some(now()),
            Some(since) if !is_sending => {
                self.sending += now() - since;
                self.sending_since = None;
            }
            None | Some(_) => {}
        }
        has_moved
    }

    /// Begins anew.
    pub(super) fn restart(&mut self, now: Instant) {
        self.since = now;
    }

    /// When whoever is waited for will have had so much time.
    pub(super) fn deadline(&self, timeout: Duration) -> Instant {
        self.since + timeout
    }

    /// How long the client has been able to send content so far.
    pub(super) fn sending(&self, now: Instant) -> Duration {
        self.sending + self.sending_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn moved(up: u64, down: u64, taken: u64) -> Moved {
        Moved { up, down, taken }
    }

    #[test]
    fn time_begins_anew_with_another_party() {
        let start = Instant::now();
        let mut progress = Progress::new(moved(0, 0, 0), start);
        assert!(!progress.look_at(Party::Backend, false, moved(0, 0, 0), || start + SECOND));
        assert_eq!(progress.deadline(SECOND), start + SECOND);
        // The backend speaks after a long silence, and the client has not taken it yet.
        let spoken = start + 40 * SECOND;
        assert!(progress.look_at(Party::Taker, false, moved(0, 1, 0), || spoken));
        assert_eq!(progress.deadline(SECOND), spoken + SECOND);
        assert!(!progress.look_at(Party::Taker, false, moved(0, 1, 0), || spoken + 2 * SECOND));
        assert_eq!(progress.deadline(SECOND), spoken + SECOND);
    }

    #[test]
    fn only_taking_is_progress_of_a_client_that_has_to_take() {
        let start = Instant::now();
        let mut progress = Progress::new(moved(0, 0, 0), start);
        progress.look_at(Party::Taker, true, moved(0, 1, 0), || start);
        assert!(progress.look_at(Party::Taker, true, moved(7, 1, 0), || start + SECOND), "it has sent something");
        assert!(progress.look_at(Party::Taker, true, moved(7, 2, 0), || start + SECOND), "more waits for it");
        assert_eq!(progress.deadline(SECOND), start + SECOND);
        assert!(progress.look_at(Party::Taker, true, moved(7, 2, 1), || start + 2 * SECOND));
        assert_eq!(progress.deadline(SECOND), start + 3 * SECOND);
    }

    #[test]
    fn a_sender_is_charged_for_its_own_time_only() {
        let start = Instant::now();
        let mut progress = Progress::new(moved(0, 0, 0), start);
        let at = |seconds: u32| start + seconds * SECOND;
        progress.look_at(Party::Backend, false, moved(0, 0, 0), || at(40));
        assert_eq!(progress.sending(at(40)), Duration::ZERO, "the backend has not asked for it");
        progress.look_at(Party::Sender, true, moved(0, 0, 0), || at(40));
        assert_eq!(progress.sending(at(43)), 3 * SECOND);
        progress.look_at(Party::Backend, false, moved(1, 0, 0), || at(43));
        assert_eq!(progress.sending(at(100)), 3 * SECOND, "the backend takes nothing");
        progress.look_at(Party::Sender, true, moved(1, 0, 0), || at(100));
        assert_eq!(progress.sending(at(101)), 4 * SECOND);
    }
}
