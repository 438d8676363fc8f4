//! nftables and ipset as subjects.

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::Context;

use super::super::process::run;
use super::memory;
use super::subject::{Installed, Place, words};
use super::table::Table;
use super::wire::DEVICE;

impl Installed {
    pub(super) fn nftables(&mut self, at_ingress: bool, tables: &[Table], place: &Place<'_>) -> anyhow::Result<()> {
        let family = if at_ingress { "netdev" } else { "inet" };
        let hook = if at_ingress {
            format!("ingress device \"{DEVICE}\" priority -500")
        } else {
            "input priority filter".to_owned()
        };
        let path = place.dir.join("nftables");
        let write = || {
            let mut file = BufWriter::new(File::create(&path)?);
            writeln!(file, "table {family} mcbench {{")?;
            // One set for single addresses that are added later, if no table has one.
            let sets = if tables.is_empty() { vec![(0, false, false)] } else { sets(tables) };
            for (number, is_ipv6, is_prefixes) in &sets {
                let kind = if *is_ipv6 { "ipv6_addr" } else { "ipv4_addr" };
                let flags = if *is_prefixes { "flags interval; " } else { "" };
                writeln!(file, "set blocked{number} {{ type {kind}; {flags}}}")?;
            }
            writeln!(file, "chain judge {{ type filter hook {hook}; policy accept;")?;
            for (number, is_ipv6, _) in &sets {
                writeln!(file, "{} saddr @blocked{number} drop", if *is_ipv6 { "ip6" } else { "ip" })?;
            }
            writeln!(file, "}}\n}}")?;
            for (number, table) in tables.iter().enumerate() {
                write!(file, "add element {family} mcbench blocked{number} {{ ")?;
                table.write(&mut file, "", ", ")?;
                writeln!(file, "}}")?;
            }
            file.flush()
        };
        write().with_context(|| format!("writing {}", path.display()))?;
        self.undo.push(words(&["nft", "delete", "table", family, "mcbench"]));
        self.add = words(&["nft", "add", "element", family, "mcbench", "blocked0", "{", "@ADDRESS@", "}"]);
        self.timed(|| place.run(&["nft", "-f", &path.to_string_lossy()]))
    }

    pub(super) fn ipset(&mut self, is_raw: bool, tables: &[Table], place: &Place<'_>) -> anyhow::Result<()> {
        let path = place.dir.join("ipset");
        let kind = |is_prefixes| if is_prefixes { "hash:net" } else { "hash:ip" };
        let sets = if tables.is_empty() { vec![(0, false, false)] } else { sets(tables) };
        let write = || {
            let mut file = BufWriter::new(File::create(&path)?);
            for (number, is_ipv6, is_prefixes) in &sets {
                let family = if *is_ipv6 { "inet6" } else { "inet" };
                // As large as it becomes: otherwise it is rehashed again and again while it is filled.
                let hashes = tables.get(*number).map_or(1024, |table| table.count.next_power_of_two().max(1024));
                let kind = kind(*is_prefixes);
                writeln!(file, "create mcbench{number} {kind} family {family} hashsize {hashes} maxelem 2097152")?;
            }
            for (number, table) in tables.iter().enumerate() {
                table.write(&mut file, &format!("add mcbench{number} "), "\n")?;
            }
            file.flush()
        };
        write().with_context(|| format!("writing {}", path.display()))?;
        // Undone in reverse.
        for (number, _, _) in &sets {
            self.undo.push(words(&["ipset", "destroy", &format!("mcbench{number}")]));
        }
        self.timed(|| place.run(&["ipset", "restore", "-file", &path.to_string_lossy()]))?;
        for (number, is_ipv6, _) in &sets {
            let program = if *is_ipv6 { "ip6tables" } else { "iptables" };
            let (table, chain) = if is_raw { ("raw", "PREROUTING") } else { ("filter", "INPUT") };
            let set = format!("mcbench{number}");
            let rule = ["-m", "set", "--match-set", &set, "src", "-j", "DROP"];
            let command = |what: &'static str| [&[program, "-t", table, what, chain], &rule[..]].concat();
            place.run(&command("-I"))?;
            self.undo.push(words(&command("-D")));
        }
        let netns = format!("--net=/run/netns/{}", self.receiver);
        let printed = run("nsenter", &[&netns, "--", "ipset", "list", "-terse"])?;
        self.metrics.insert("maps_mb", memory::ipset_bytes(&printed) as f64 / 1e6);
        self.add = words(&["ipset", "add", "mcbench0", "@ADDRESS@"]);
        Ok(())
    }
}

/// Number, family and kind of the set for each table.
fn sets(tables: &[Table]) -> Vec<(usize, bool, bool)> {
    let set = |(number, table): (usize, &Table)| (number, table.shape.is_ipv6, table.shape.is_prefixes);
    tables.iter().enumerate().map(set).collect()
}
