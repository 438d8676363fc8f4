//! `mcproxyctl firewall import`: a file is read as a whole, then sent in chunks, then in force at once.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ipnet::IpNet;
use mc_proxy_proto::v1::{self, replace_firewall_group_request::Part};
use serde_json::json;
use tonic::Request;

use super::{
    super::{
        CtlError,
        client::{Client, UPLOAD_DEADLINE, answer_within},
        json,
        output::{Output, Progress},
    },
    options::{self, ActionArgs, ChangeArgs, TtlArgs},
};
use crate::{
    admin::action_to_proto,
    control::IMPORT_MAX,
    firewall::{
        Group, RuleScope,
        list::{List, ListOptions, ListParser, Report},
    },
};

/// Read at a time.
const PIECE: usize = 256 * 1024;
/// Of a message, of which the daemon takes 256 KiB.
const CHUNK_BYTES: usize = 128 * 1024;
/// Between two looks at how far the sending is.
const TICK: Duration = Duration::from_millis(200);

#[derive(Debug, clap::Args)]
pub(in crate::ctl) struct Import {
    /// File, or `-` for stdin.
    file: PathBuf,
    /// The group that becomes equal to the list: rules that are not in it are removed.
    #[arg(long, value_name = "NAME", required = true)]
    group: Group,
    #[command(flatten)]
    action: ActionArgs,
    /// Packets that are judged: `default` (what xdp.scope says), `host` (all), or TCP to one port with `listener:443`.
    #[arg(long, value_name = "SCOPE", default_value_t = RuleScope::Default)]
    scope: RuleScope,
    #[command(flatten)]
    ttl: TtlArgs,
    /// Read `198.51.100.7/24` as `198.51.100.0/24` instead of refusing the list.
    #[arg(long)]
    fix_host_bits: bool,
    /// Keep entries that a wider one covers, and siblings that could be one.
    #[arg(long)]
    no_aggregate: bool,
    /// Leave the comments of the list out.
    #[arg(long)]
    no_comments: bool,
    /// Take a list without entries, which empties the group; usually it is a download that failed.
    #[arg(long)]
    allow_empty: bool,
    #[command(flatten)]
    change: ChangeArgs,
    /// What the file has been read into.
    #[arg(skip)]
    list: Option<List>,
}

impl Import {
    /// Reads the file.
    ///
    /// # Errors
    /// With the lines that cannot be read.
    pub(super) fn read(&mut self, out: &mut Output<'_>) -> Result<(), CtlError> {
        let failed = |source| CtlError::File { path: self.file.clone(), source };
        let list = if self.file.as_os_str() == "-" {
            self.read_from(io::stdin().lock(), out)?
        } else {
            self.read_from(File::open(&self.file).map_err(failed)?, out)?
        };
        if list.is_empty() && !self.allow_empty {
            return Err(CtlError::EmptyList(self.name()));
        }
        if list.len() > IMPORT_MAX {
            return Err(CtlError::LongList { list: self.name(), entries: list.len(), max: IMPORT_MAX });
        }
        self.list = Some(list);
        Ok(())
    }

    fn read_from(&self, mut file: impl Read, out: &mut Output<'_>) -> Result<List, CtlError> {
        let mut progress = out.progress();
        let mut parser = ListParser::new(ListOptions {
            fix_host_bits: self.fix_host_bits,
            aggregate: !self.no_aggregate,
            comments: !self.no_comments,
        });
        let mut piece = vec![0; PIECE];
        loop {
            let length = match file.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(CtlError::File { path: self.file.clone(), source }),
            };
            if parser.push(piece.get(..length).unwrap_or_default()).is_break() {
                break;
            }
            progress.show(|| format!("reading {}: {} lines", self.name(), parser.report().lines));
        }
        progress.end();
        parser.finish().map_err(|errors| CtlError::BadList { list: self.name(), errors })
    }

    /// How errors name the list.
    fn name(&self) -> String {
        if self.file == Path::new("-") { "stdin".to_owned() } else { self.file.display().to_string() }
    }
}

pub(super) async fn run(mut args: Import, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let name = args.name();
    let Some(list) = args.list.take() else { return Err(CtlError::EmptyList(name)) };
    let (entries, report) = (list.len() as u64, list.report());
    let header = v1::ReplaceFirewallGroupHeader {
        group: args.group.to_string(),
        action: action_to_proto(args.action.action()).into(),
        scope: args.scope.to_string(),
        expires_at: None,
        ttl: args.ttl.ttl.map(options::to_proto_duration),
        options: Some(args.change.to_proto()),
        entries,
    };
    let sent = Arc::new(AtomicU64::new(0));
    let chunks = Chunks { list, next: 0, sent: Arc::clone(&sent) };
    let messages = std::iter::once(Part::Header(header)).chain(chunks.map(Part::Chunk));
    let messages = messages.map(|part| v1::ReplaceFirewallGroupRequest { part: Some(part) });
    let mut request = Request::new(tokio_stream::iter(messages));
    request.set_timeout(UPLOAD_DEADLINE);

    let mut progress = out.progress();
    let mut call = std::pin::pin!(answer_within(UPLOAD_DEADLINE, client.admin.replace_firewall_group(request)));
    let answered = loop {
        tokio::select! {
            answered = &mut call => break answered,
            () = tokio::time::sleep(TICK) => show(&mut progress, sent.load(Relaxed), entries),
        }
    };
    progress.end();
    let summary = answered?.summary.unwrap_or_default();

    out.say(told(&report, entries));
    let v1::FirewallChangeSummary { added, replaced, removed, unchanged, .. } = summary;
    out.say(format_args!(
        "group {}: {added} added, {replaced} replaced, {removed} removed, {unchanged} unchanged",
        args.group
    ));
    args.change.say_next(&summary, out);
    let Report { lines, read, duplicates, covered, merged, fixed, cut } = report;
    let report = json!({
        "lines": lines,
        "read": read,
        "duplicates": duplicates,
        "covered": covered,
        "merged": merged,
        "fixed": fixed,
        "comments_cut": cut,
    });
    out.answer(
        || {
            json!({
                "group": args.group.as_str(),
                "entries": entries,
                "list": report,
                "summary": json::summary(&summary),
            })
        },
        String::new,
    )
}

fn show(progress: &mut Progress<'_, '_>, sent: u64, entries: u64) {
    progress.show(|| match (sent * 100).checked_div(entries) {
        Some(percent) if percent < 100 => format!("sending {entries} entries: {percent} %"),
        Some(_) | None => format!("{entries} entries are being put in force"),
    });
}

/// What became of the lines, where that is not plain.
fn told(report: &Report, entries: u64) -> String {
    let notes = [
        (report.duplicates, "repeated"),
        (report.covered, "covered by wider ones"),
        (report.merged, "merged with a sibling"),
        (report.fixed, "with host bits cleared"),
        (report.cut, "with a comment cut"),
    ];
    notes
        .iter()
        .filter(|(number, _)| *number > 0)
        .fold(format!("{} lines, {entries} entries", report.lines), |text, (number, what)| {
            text + &format!(", {number} {what}")
        })
}

/// The list in messages, made as they are wanted.
struct Chunks {
    list: List,
    next: usize,
    sent: Arc<AtomicU64>,
}

impl Iterator for Chunks {
    type Item = v1::ReplaceFirewallGroupChunk;

    fn next(&mut self) -> Option<v1::ReplaceFirewallGroupChunk> {
        let mut chunk = v1::ReplaceFirewallGroupChunk::default();
        let mut bytes = 0;
        let mut index = 0;
        while bytes < CHUNK_BYTES {
            let Some((net, comment)) = self.list.get(self.next) else { break };
            match net {
                IpNet::V4(net) => {
                    chunk.v4.extend(net.addr().octets());
                    chunk.v4.push(net.prefix_len());
                    bytes += 5;
                }
                IpNet::V6(net) => {
                    chunk.v6.extend(net.addr().octets());
                    chunk.v6.push(net.prefix_len());
                    bytes += 17;
                }
            }
            if let Some(text) = comment {
                bytes += text.len() + 16;
                chunk.comments.push(v1::FirewallEntryComment { index, text: text.to_owned() });
            }
            self.next += 1;
            index += 1;
        }
        self.sent.store(self.next as u64, Relaxed);
        (index > 0).then_some(chunk)
    }
}
