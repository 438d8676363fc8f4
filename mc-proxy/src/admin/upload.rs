//! A list that comes in pieces, for `ReplaceFirewallGroup`.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use mc_proxy_proto::v1::{self, replace_firewall_group_request::Part};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::convert::{self, invalid};
use crate::{
    control::{ChangeOptions, GroupImport, IMPORT_MAX},
    firewall::{Action, Subject, check_comment, list::COMMENTS_MAX},
};

/// Lists that are read at a time; the next waits. One is at most some 200 MB in memory: 36 for its entries, and its
/// comments.
pub(super) const UPLOADS: usize = 1;
/// Between two messages.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

const V4_BYTES: usize = 5;
const V6_BYTES: usize = 17;

/// The list as a whole, once its end has come.
pub(super) async fn read(
    mut messages: impl Stream<Item = Result<v1::ReplaceFirewallGroupRequest, Status>> + Unpin,
) -> Result<(GroupImport, ChangeOptions), Status> {
    let Some(Part::Header(header)) = next(&mut messages).await? else {
        return Err(invalid("header", "is required, as the first message"));
    };
    let options = convert::options(header.options.clone())?;
    let mut import = begin(&header)?;
    let mut comment_bytes = 0;
    while let Some(part) = next(&mut messages).await? {
        let Part::Chunk(chunk) = part else { return Err(invalid("header", "is the first message only")) };
        let first = import.entries.len();
        add(&mut import, &chunk)?;
        if import.entries.len() as u64 > header.entries {
            return Err(invalid(
                "chunk",
                format_args!("has more than the {} entries of header.entries", header.entries),
            ));
        }
        comment(&mut import, chunk.comments, first, &mut comment_bytes)?;
    }
    if import.entries.len() as u64 != header.entries {
        let problem = format_args!("is {}, but {} came; nothing has changed", header.entries, import.entries.len());
        return Err(invalid("header.entries", problem));
    }
    Ok((import, options))
}

/// The next part; `None` at the end.
async fn next(
    messages: &mut (impl Stream<Item = Result<v1::ReplaceFirewallGroupRequest, Status>> + Unpin),
) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(PATIENCE, messages.next()).await.map_err(|_| {
        Status::deadline_exceeded(format!("no message for {} s; nothing has changed", PATIENCE.as_secs()))
    })?;
    match message {
        None => Ok(None),
        Some(message) => message?.part.map(Some).ok_or_else(|| invalid("part", "is required: a header or a chunk")),
    }
}

fn begin(header: &v1::ReplaceFirewallGroupHeader) -> Result<GroupImport, Status> {
    let group = convert::group("header.group", &header.group)?.ok_or_else(|| invalid("header.group", "is required"))?;
    let expires_at = convert::expires_at("header.expires_at", header.expires_at)?;
    if expires_at.is_some() && header.ttl.is_some() {
        return Err(invalid("header.ttl", "is instead of header.expires_at, not beside it"));
    }
    if header.entries > IMPORT_MAX as u64 {
        return Err(invalid("header.entries", format_args!("is more than {IMPORT_MAX}")));
    }
    Ok(GroupImport {
        group: convert::own_group("header.group", group)?,
        action: convert::action("header.action", header.action)?.unwrap_or(Action::Block),
        scope: convert::scope("header.scope", &header.scope)?,
        expires_at: expires_at.or(convert::ttl("header.ttl", header.ttl)?),
        entries: Vec::new(),
        comments: Vec::new(),
    })
}

fn add(import: &mut GroupImport, chunk: &v1::ReplaceFirewallGroupChunk) -> Result<(), Status> {
    let (v4, v4_rest) = chunk.v4.as_chunks::<V4_BYTES>();
    let (v6, v6_rest) = chunk.v6.as_chunks::<V6_BYTES>();
    for (field, rest, bytes) in [("chunk.v4", v4_rest, V4_BYTES), ("chunk.v6", v6_rest, V6_BYTES)] {
        if !rest.is_empty() {
            return Err(invalid(field, format_args!("is not a multiple of {bytes} bytes")));
        }
    }
    import.entries.reserve(v4.len() + v6.len());
    for (index, [a, b, c, d, len]) in v4.iter().enumerate() {
        let net = Ipv4Net::new(Ipv4Addr::new(*a, *b, *c, *d), *len).ok().map(IpNet::V4);
        import.entries.push(canonical(net, "chunk.v4", index)?);
    }
    for (index, [octets @ .., len]) in v6.iter().enumerate() {
        let net = Ipv6Net::new(Ipv6Addr::from_octets(*octets), *len).ok().map(IpNet::V6);
        import.entries.push(canonical(net, "chunk.v6", index)?);
    }
    Ok(())
}

fn canonical(net: Option<IpNet>, field: &str, index: usize) -> Result<IpNet, Status> {
    let Some(net) = net else {
        return Err(invalid(format_args!("{field}[{index}]"), "has a prefix length that is too long"));
    };
    match Subject::covering(net) {
        Subject::Net(canonical) if canonical == net => Ok(net),
        canonical @ (Subject::Net(_) | Subject::Country(_)) => Err(invalid(
            format_args!("{field}[{index}]"),
            format_args!("\"{net}\" is not in canonical form, which is \"{canonical}\""),
        )),
    }
}

fn comment(
    import: &mut GroupImport,
    comments: Vec<v1::FirewallEntryComment>,
    first: usize,
    bytes: &mut usize,
) -> Result<(), Status> {
    let in_chunk = import.entries.len() - first;
    for (at, v1::FirewallEntryComment { index, text }) in comments.into_iter().enumerate() {
        let field = |name: &str| format!("chunk.comments[{at}].{name}");
        let entry = usize::try_from(index).ok().filter(|index| *index < in_chunk).map(|index| first + index);
        let entry = entry.and_then(|entry| u32::try_from(entry).ok());
        let entry = entry.ok_or_else(|| invalid(field("index"), "is not that of an entry of the chunk"))?;
        if import.comments.last().is_some_and(|(last, _)| *last >= entry) {
            return Err(invalid(field("index"), "is not above the one before"));
        }
        if text.is_empty() {
            return Err(invalid(field("text"), "is required"));
        }
        check_comment(&text).map_err(|error| invalid(field("text"), error))?;
        *bytes += text.len();
        if *bytes > COMMENTS_MAX {
            return Err(invalid(field("text"), format_args!("comes to more than {} MiB", COMMENTS_MAX >> 20)));
        }
        import.comments.push((entry, text));
    }
    Ok(())
}
