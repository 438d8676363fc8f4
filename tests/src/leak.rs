//! A flood of packets of blocked sources, and whoever counts those that arrive.

use std::{
    net::{IpAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, ensure};

use crate::{
    flood::{Flood, receive},
    site::{PROBE_PORT, Site},
    wait::{SOON, until},
};

/// Datagrams that must have been sent, and control datagrams that must have come, for a change to count as tried.
const SENT_MIN: u64 = 2_000;
const CONTROL_MIN: u64 = 50;

/// A flood of blocked IPv4 and IPv6 sources, a trickle of sources that nothing blocks, and the socket that both are for.
#[derive(Debug)]
pub struct LeakTest {
    blocked: Flood,
    control: Flood,
    counts: Arc<Counts>,
    reader: Reader,
}

#[derive(Debug, Default)]
struct Counts {
    control4: AtomicU64,
    control6: AtomicU64,
    leaked: AtomicU64,
    first: Mutex<Option<(IpAddr, Instant)>>,
    is_over: AtomicBool,
}

/// What happened during a change.
#[derive(Clone, Copy, Debug)]
pub struct During {
    /// Datagrams that blocked sources sent.
    pub sent: u64,
    /// Datagrams of control sources that arrived.
    pub control: u64,
    /// How long the change took.
    pub took: Duration,
}

impl LeakTest {
    /// Begins. `sources` are addresses of the attacker, of which nothing may arrive from now on.
    pub fn start(site: &Site, sources: &[IpAddr]) -> Result<Self> {
        let counts = Arc::<Counts>::default();
        let inbox = site.probe()?;
        inbox.set_read_timeout(Some(Duration::from_millis(100)))?;
        let controls = [site.net.client.v4, site.net.client.v6];
        let thread = thread::spawn({
            let counts = Arc::clone(&counts);
            move || count(&inbox, controls, &counts)
        });
        let to = [site.v4(PROBE_PORT), site.v6(PROBE_PORT)];
        let test = Self {
            blocked: Flood::udp_of(&site.net.attacker.namespace, sources.to_vec(), to, Duration::from_micros(500)),
            control: Flood::udp_of(&site.net.client.namespace, controls.to_vec(), to, Duration::from_millis(1)),
            reader: Reader { counts: Arc::clone(&counts), thread: Some(thread) },
            counts,
        };
        test.during("before any change", || Ok(()))?;
        Ok(test)
    }

    /// Makes a change under the flood.
    ///
    /// # Errors
    /// When a datagram of a blocked source arrived, or when it cannot be told because the flood or the control dried up.
    pub fn during<T>(&self, what: &str, change: impl FnOnce() -> Result<T>) -> Result<(T, During)> {
        let counts = &self.counts;
        let control = || counts.control4.load(Relaxed).min(counts.control6.load(Relaxed));
        let (sent, controls, begin) = (self.blocked.sent(), control(), Instant::now());
        let value = change().with_context(|| what.to_owned())?;
        let took = begin.elapsed();
        // What was sent during the change has arrived when what is sent after it arrives.
        let after = control();
        until("flood and control during a change", SOON, || {
            Ok(self.blocked.sent() - sent >= SENT_MIN && control() - controls >= CONTROL_MIN && control() - after >= 10)
        })
        .with_context(|| what.to_owned())?;
        let leaked = counts.leaked.load(Relaxed);
        let first = counts.first.lock().map_err(|_| anyhow!("the reader panicked"))?.take();
        ensure!(
            leaked == 0,
            "{what}: {leaked} packets of blocked sources arrived, the first from {:?}, {:?} after the change began, \
             which took {took:?}",
            first.map(|(source, _)| source),
            first.and_then(|(_, at)| at.checked_duration_since(begin)),
        );
        let during = During { sent: self.blocked.sent() - sent, control: control() - controls, took };
        println!("{what}: {during:?}, 0 arrived");
        Ok((value, during))
    }

    /// Ends.
    ///
    /// # Errors
    /// When a flood had broken off.
    pub fn stop(self) -> Result<()> {
        let Self { blocked, control, mut reader, .. } = self;
        reader.stop()?;
        blocked.stop()?;
        control.stop()
    }
}

/// The thread at the receiver; it ends with this.
#[derive(Debug)]
struct Reader {
    counts: Arc<Counts>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Reader {
    fn stop(&mut self) -> Result<()> {
        self.counts.is_over.store(true, Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| anyhow!("the reader panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("the receiver broke off: {error:#}");
        }
    }
}

fn count(inbox: &UdpSocket, controls: [IpAddr; 2], counts: &Counts) -> Result<()> {
    let mut buffer = [0; 128];
    while !counts.is_over.load(Relaxed) {
        let Some((_, from)) = receive(inbox, &mut buffer)? else { continue };
        let source = from.ip().to_canonical();
        if source == controls[0] {
            counts.control4.fetch_add(1, Relaxed);
        } else if source == controls[1] {
            counts.control6.fetch_add(1, Relaxed);
        } else {
            counts.leaked.fetch_add(1, Relaxed);
            let mut first = counts.first.lock().map_err(|_| anyhow!("poisoned"))?;
            first.get_or_insert((source, Instant::now()));
        }
    }
    Ok(())
}
