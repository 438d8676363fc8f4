//! A small name server: answers A and AAAA from a table that the test changes, and counts what it is asked.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, UdpSocket},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::topology::Namespace;

/// Where it listens; nothing but a DNS port can be written in `resolv.conf`.
pub const ADDR: &str = "127.0.0.53";

const A: u16 = 1;
const AAAA: u16 = 28;

/// What it does with a query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Answers from the table; a name that it does not know does not exist.
    #[default]
    Answers,
    /// Says that it has failed (SERVFAIL).
    Fails,
    /// Does not answer.
    Silent,
}

/// A running name server; it ends when it is dropped.
#[derive(Debug)]
pub struct NameServer {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    names: HashMap<String, (Vec<IpAddr>, u32)>,
    silent_about: HashSet<u16>,
    mood: Mood,
    delay: Duration,
    queries: Vec<String>,
}

impl NameServer {
    /// On [`ADDR`] of a namespace.
    pub fn start_in(namespace: &Namespace) -> Result<Self> {
        let socket = namespace.run(|| UdpSocket::bind((ADDR, 53)))?.context("binding the name server")?;
        // No call wakes who waits for a datagram: the wait ends by itself.
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let state = Arc::new(Mutex::new(State::default()));
        let thread = thread::spawn({
            let state = Arc::downgrade(&state);
            move || {
                let mut query = [0; 1500];
                while let Some(state) = state.upgrade() {
                    let Ok((length, from)) = socket.recv_from(&mut query) else { continue };
                    let answer = lock(&state).answer(&query[..length]);
                    let Some((bytes, delay)) = answer else { continue };
                    thread::park_timeout(delay);
                    // Who has asked may be gone.
                    let _ = socket.send_to(&bytes, from);
                }
            }
        });
        Ok(Self { state, thread: Some(thread) })
    }

    /// Sets the addresses of a name, and their TTL in seconds.
    pub fn set(&self, name: &str, ips: &[&str], ttl: u32) -> Result<()> {
        let ips = ips.iter().map(|ip| ip.parse()).collect::<Result<Vec<IpAddr>, _>>()?;
        lock(&self.state).names.insert(name.to_owned(), (ips, ttl));
        Ok(())
    }

    /// What it does from now on.
    pub fn set_mood(&self, mood: Mood) {
        lock(&self.state).mood = mood;
    }

    /// Queries for AAAA get no answer, as from name servers that have never heard of it.
    pub fn ignore_aaaa(&self) {
        lock(&self.state).silent_about.insert(AAAA);
    }

    /// How long it thinks about each query.
    pub fn set_delay(&self, delay: Duration) {
        lock(&self.state).delay = delay;
    }

    /// Everything that it was asked: `A app.test`.
    pub fn queries(&self) -> Vec<String> {
        lock(&self.state).queries.clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // The thread looks for it.
        self.state = Arc::default();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// RFC 1035 §4.1. Nothing for what is not a query, and for what it is silent about.
    fn answer(&mut self, query: &[u8]) -> Option<(Vec<u8>, Duration)> {
        let mut at = 12;
        let mut labels = Vec::new();
        loop {
            let length = usize::from(*query.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
            at += length;
        }
        let kind = u16::from_be_bytes(query.get(at..at + 2)?.try_into().ok()?);
        let question = query.get(12..at + 4)?;
        let name = labels.join(".");
        let word = if kind == A { "A" } else { "AAAA" };
        self.queries.push(format!("{word} {name}"));
        if self.mood == Mood::Silent || self.silent_about.contains(&kind) {
            return None;
        }
        let known = self.names.get(&name);
        let code = match (self.mood, known) {
            (Mood::Fails, _) => 2,
            (_, None) => 3,
            (_, Some(_)) => 0,
        };
        let (ips, ttl) = known.filter(|_| code == 0).map(|(ips, ttl)| (ips.as_slice(), *ttl)).unwrap_or_default();
        let ips: Vec<_> = ips.iter().filter(|ip| ip.is_ipv4() == (kind == A)).collect();
        let count = u8::try_from(ips.len()).ok()?;
        let mut answer = query.get(..2)?.to_vec();
        // A response to a recursive query, with one question.
        answer.extend([0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
        answer.extend(question);
        for ip in ips {
            // The name of the question, class IN.
            answer.extend([0xc0, 12]);
            answer.extend(kind.to_be_bytes());
            answer.extend([0, 1]);
            answer.extend(ttl.to_be_bytes());
            match ip {
                IpAddr::V4(ip) => {
                    answer.extend([0, 4]);
                    answer.extend(ip.octets());
                }
                IpAddr::V6(ip) => {
                    answer.extend([0, 16]);
                    answer.extend(ip.octets());
                }
            }
        }
        Some((answer, self.delay))
    }
}
