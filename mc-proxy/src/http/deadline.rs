//! A deadline that moves with every step of a connection and is hardly ever reached.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// One timer for all deadlines of a connection. To put a deadline off costs nothing: the timer fires early then, and is set
/// anew. Only a deadline before the one that is set touches the timer.
#[derive(Debug)]
pub struct Deadline {
    at: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    /// At `at`. The timer is made when it is first waited for.
    pub fn new(at: Instant) -> Self {
        Self { at, timer: None }
    }

    /// From now on at `at`.
    pub fn set(&mut self, at: Instant) {
        self.at = at;
    }

    /// Ready once the deadline is over.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let at = self.at;
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if timer.deadline() > at {
            timer.as_mut().reset(at);
        }
        loop {
            match timer.as_mut().poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if timer.deadline() >= at => return Poll::Ready(()),
                Poll::Ready(()) => timer.as_mut().reset(at),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn moves_both_ways() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut deadline = Deadline::new(start + second);
        let waited = timeout(second / 2, poll_fn(|cx| deadline.poll_over(cx))).await;
        assert!(waited.is_err());
        deadline.set(start + 3 * second);
        poll_fn(|cx| deadline.poll_over(cx)).await;
        assert_eq!(Instant::now() - start, 3 * second);

        deadline.set(start + 60 * second);
        assert!(timeout(second, poll_fn(|cx| deadline.poll_over(cx))).await.is_err());
        deadline.set(start + 5 * second);
        poll_fn(|cx| deadline.poll_over(cx)).await;
        assert_eq!(Instant::now() - start, 5 * second);
    }
}
