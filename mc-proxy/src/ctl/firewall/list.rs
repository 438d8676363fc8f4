//! `mcproxyctl firewall list` and `groups`.

use std::net::IpAddr;

use mc_proxy_proto::v1;
use serde_json::{Value, json};

use super::super::{
    CtlError,
    client::{Client, Pages, answer},
    json,
    output::{Columns, Output, table},
};
use crate::{
    admin::action_to_proto,
    firewall::{Action, Group},
};

#[derive(Debug, clap::Args)]
pub(in crate::ctl) struct Args {
    /// Only of this group.
    #[arg(long, value_name = "NAME")]
    group: Option<Group>,
    /// Only with this action: `block`, `allow` or `count`.
    #[arg(long)]
    action: Option<Action>,
    /// Only on prefixes that contain this address, and on its country.
    #[arg(long, value_name = "IP")]
    covers: Option<IpAddr>,
}

const HEADINGS: [&str; 7] = ["ACTION", "TYPE", "VALUE", "GROUP", "SCOPE", "EXPIRES", "COMMENT"];

pub(super) async fn run(args: &Args, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let request = v1::ListFirewallRulesRequest {
        group: args.group.map(|group| group.to_string()).unwrap_or_default(),
        action: args.action.map_or(0, |action| action_to_proto(action).into()),
        covers: args.covers.map(|address| address.to_string()).unwrap_or_default(),
    };
    let mut pages = Pages::new(client.admin.list_firewall_rules(request)).await?;
    let mut columns = Columns::new(HEADINGS);
    let mut is_first = true;
    // One object, written as it comes: a million rules are some 200 MB.
    out.answer_part(|| "{\n  \"rules\": [".to_owned(), String::new)?;
    while let Some(page) = pages.next().await? {
        let json = |rule| {
            let separator = if std::mem::take(&mut is_first) { "\n    " } else { ",\n    " };
            format!("{separator}{}", json::rule(rule))
        };
        let rules = page.rules;
        out.answer_part(
            || rules.iter().map(json).collect(),
            || columns.rows(rules.iter().map(row).collect::<Vec<_>>()),
        )?;
    }
    out.answer_part(|| if is_first { "]\n}\n".to_owned() } else { "\n  ]\n}\n".to_owned() }, String::new)
}

pub(super) async fn groups(client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let groups = answer(client.admin.list_firewall_groups(v1::ListFirewallGroupsRequest {})).await?.groups;
    let rows = groups.iter().map(|group| {
        [
            group.name.clone(),
            group.rules.to_string(),
            group.dropped_packets.to_string(),
            group.dropped_bytes.to_string(),
            group.shadow_packets.to_string(),
            group.shadow_bytes.to_string(),
        ]
    });
    out.answer(
        || json!({"groups": groups.iter().map(json::group).collect::<Value>()}),
        || table(["GROUP", "RULES", "DROPPED", "BYTES", "WOULD-DROP", "WOULD-BYTES"], rows),
    )
}

fn row(rule: &v1::FirewallRule) -> [String; 7] {
    let kind = match rule.r#type() {
        v1::FirewallRuleType::Ip => "ip",
        v1::FirewallRuleType::Cidr => "cidr",
        v1::FirewallRuleType::Country => "country",
        v1::FirewallRuleType::Unspecified => "unknown",
    };
    [
        action(rule).to_owned(),
        kind.to_owned(),
        rule.value.clone(),
        rule.group.clone(),
        rule.scope.clone(),
        expires(rule),
        rule.comment.clone(),
    ]
}

pub(super) fn action(rule: &v1::FirewallRule) -> &'static str {
    match rule.action() {
        v1::FirewallAction::Allow => "allow",
        v1::FirewallAction::Count => "count",
        v1::FirewallAction::Block | v1::FirewallAction::Unspecified => "block",
    }
}

/// As RFC 3339 has it, to the second.
pub(super) fn expires(rule: &v1::FirewallRule) -> String {
    rule.expires_at.map_or_else(|| "never".to_owned(), |at| prost_types::Timestamp { nanos: 0, ..at }.to_string())
}
