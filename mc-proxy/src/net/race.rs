//! Several addresses of one backend, tried side by side: Happy Eyeballs (RFC 8305 §5).
//!
//! The next address is tried when an attempt has failed, or has not succeeded for a while; those before it stay in the
//! race. The first to connect wins, and it alone gets bytes: a send is taken by a connection that is established and by no
//! other, and all attempts are polled by one task, which drops the others before it polls anything else.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

use super::socket::Socket;

/// RFC 8305 §8: the recommended time between two attempts, and the least.
const ATTEMPT_DELAY: std::ops::RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_millis(250);

/// Whoever won.
#[derive(Debug)]
pub(super) struct Winner {
    pub(super) socket: Socket,
    pub(super) addr: SocketAddr,
    /// Of the first bytes, so many have been sent.
    pub(super) sent: usize,
    /// Others were tried before it.
    pub(super) is_late: bool,
}

struct Attempt {
    socket: Socket,
    addr: SocketAddr,
}

/// How long an attempt has for itself. A deadline that is short is divided, so that the last address has its turn too.
pub(super) fn attempt_delay(timeout: Duration, addresses: usize) -> Duration {
    let share = timeout / u32::try_from(addresses).unwrap_or(u32::MAX).max(1);
    share.clamp(*ATTEMPT_DELAY.start(), *ATTEMPT_DELAY.end())
}

/// Runs the race. `start` makes a socket that is being connected; `first` may be empty.
///
/// # Errors
/// The last failure, when every attempt has failed.
pub(super) async fn race(
    mut addrs: impl Iterator<Item = SocketAddr>,
    delay: Duration,
    first: &[u8],
    start: impl Fn(SocketAddr) -> io::Result<Socket>,
) -> io::Result<Winner> {
    let mut attempts: Vec<Attempt> = Vec::new();
    let mut started = 0_usize;
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    let mut is_due = true;
    let mut next_at = pin!(sleep_until(Instant::now()));
    poll_fn(|cx| {
        loop {
            let (winner, has_failed) = poll_attempts(cx, &mut attempts, first, &mut failure);
            if let Some((attempt, sent)) = winner {
                let Attempt { socket, addr } = attempt;
                return Poll::Ready(Ok(Winner { socket, addr, sent, is_late: started > 1 }));
            }
            is_due |= has_failed;
            if !is_due && next_at.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            match addrs.next() {
                Some(addr) => {
                    started += 1;
                    match start(addr) {
                        Ok(socket) => {
                            attempts.push(Attempt { socket, addr });
                            is_due = false;
                            next_at.as_mut().reset(Instant::now() + delay);
                        }
                        Err(error) => failure = error,
                    }
                }
                None if attempts.is_empty() => {
                    return Poll::Ready(Err(std::mem::replace(&mut failure, io::ErrorKind::NotFound.into())));
                }
                // Nobody else will join: what wakes now is an attempt.
                None => return Poll::Pending,
            }
        }
    })
    .await
}

/// Takes out the attempt that has connected, and those that have failed.
fn poll_attempts(
    cx: &mut Context<'_>,
    attempts: &mut Vec<Attempt>,
    first: &[u8],
    failure: &mut io::Error,
) -> (Option<(Attempt, usize)>, bool) {
    let mut has_failed = false;
    let mut index = 0;
    while let Some(attempt) = attempts.get_mut(index) {
        match attempt.socket.poll_send(cx, first) {
            Poll::Pending => index += 1,
            Poll::Ready(Ok(sent)) => {
                let winner = attempts.swap_remove(index);
                attempts.clear();
                return (Some((winner, sent)), has_failed);
            }
            Poll::Ready(Err(error)) => {
                *failure = error;
                has_failed = true;
                attempts.remove(index);
            }
        }
    }
    (None, has_failed)
}

#[cfg(test)]
pub(in crate::net) mod tests;
