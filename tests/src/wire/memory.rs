//! Memory that a proxy without backpressure would fill: the kernel's, which no process is charged with.

use std::fs;

use anyhow::{Context as _, Result};

/// Memory that is in use, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// What belongs to no process, no file and no cache: the data of packets, for the most part. Other processes move
    /// it by tens of megabytes.
    pub kernel: u64,
    /// What sockets are charged with, and the heads of all packets: only traffic moves it.
    pub network: u64,
}

impl Memory {
    /// What is in use now.
    pub fn now() -> Result<Self> {
        Ok(Self { kernel: kernel_bytes()?, network: charged_bytes()? + packet_heads()? })
    }

    /// By how much it has grown.
    pub fn since(self, base: Self) -> Self {
        Self { kernel: self.kernel.saturating_sub(base.kernel), network: self.network.saturating_sub(base.network) }
    }

    /// The smaller figures of both.
    pub fn min(self, other: Self) -> Self {
        Self { kernel: self.kernel.min(other.kernel), network: self.network.min(other.network) }
    }

    /// The larger of the figures; they overlap.
    pub fn most(self) -> u64 {
        self.kernel.max(self.network)
    }
}

fn kernel_bytes() -> Result<u64> {
    const ELSEWHERE: [&str; 9] = [
        "MemFree",
        "Buffers",
        "Cached",
        "SwapCached",
        "AnonPages",
        "KReclaimable",
        "KernelStack",
        "PageTables",
        "VmallocUsed",
    ];
    let text = read("/proc/meminfo")?;
    let kilobytes = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        let line = line.with_context(|| format!("no {name} in /proc/meminfo"))?;
        line.trim().trim_end_matches(" kB").parse().with_context(|| format!("{name} is {line}"))
    };
    let mut left = kilobytes("MemTotal")?;
    for name in ELSEWHERE {
        left = left.saturating_sub(kilobytes(name)?);
    }
    Ok(left << 10)
}

/// Of all TCP sockets of the host.
fn charged_bytes() -> Result<u64> {
    let text = read("/proc/net/sockstat")?;
    let words = text.lines().find(|line| line.starts_with("TCP:")).context("no TCP in /proc/net/sockstat")?;
    let pages = words.split(' ').skip_while(|word| *word != "mem").nth(1).context("no memory in /proc/net/sockstat")?;
    Ok(pages.parse::<u64>()? * page_size()?)
}

fn page_size() -> Result<u64> {
    let text = read("/proc/self/smaps")?;
    let size = text.lines().find_map(|line| line.strip_prefix("KernelPageSize:")).context("no KernelPageSize")?;
    Ok(size.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

fn packet_heads() -> Result<u64> {
    let text = read("/proc/slabinfo")?;
    let mut bytes = 0;
    for line in text.lines().filter(|line| line.starts_with("skbuff_")) {
        let mut words = line.split_whitespace().skip(1);
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
        let (active, _all, size) = (number(), number(), number());
        bytes += active.zip(size).map(|(active, size)| active * size).with_context(|| format!("slabinfo: {line}"))?;
    }
    Ok(bytes)
}

/// The most that one TCP socket's receive buffer and send buffer may grow to on this host, in bytes.
pub fn buffer_limits() -> Result<(u64, u64)> {
    let most = |name: &str| -> Result<u64> {
        let path = format!("/proc/sys/net/ipv4/{name}");
        let text = read(&path)?;
        text.split_whitespace().last().and_then(|word| word.parse().ok()).with_context(|| format!("{path} is {text}"))
    };
    Ok((most("tcp_rmem")?, most("tcp_wmem")?))
}

/// Sets those limits for the namespace of this thread.
pub fn limit_buffers(receive: u64, send: u64) -> Result<()> {
    for (name, first, most) in [("tcp_rmem", 131_072, receive), ("tcp_wmem", 16_384, send)] {
        let path = format!("/proc/sys/net/ipv4/{name}");
        fs::write(&path, format!("4096 {first} {most}")).with_context(|| format!("writing {path}"))?;
    }
    Ok(())
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}
