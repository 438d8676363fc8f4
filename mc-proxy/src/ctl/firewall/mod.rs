//! `mcproxyctl firewall`.

mod callers;
mod explain;
mod export;
mod import;
mod list;
mod options;
mod top;
mod watch;

#[cfg(test)]
mod tests;

use std::path::Path;

use clap::Subcommand;
use mc_proxy_proto::v1;
use serde_json::json;

use super::{
    CtlError,
    client::{Client, answer},
    json,
    output::{Output, printable},
};
use crate::{
    admin::rule_to_proto,
    firewall::{Action, Rule, RuleKey, Subject},
};
use options::{ActionArgs, ChangeArgs, PlaceArgs, TtlArgs};

/// Rules of one command, all or none; more come from a file.
const SUBJECTS_MAX: usize = 1000;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Rules, all or some of them.
    List(list::Args),
    /// Blocks addresses, prefixes and countries, or allows addresses and prefixes: all of them or none.
    ///
    /// A rule that exists gets the new time to live and comment.
    Add(Add),
    /// Removes rules: all of them or none.
    Remove(Remove),
    /// Makes a group equal to a list: a file, or `-` for stdin.
    ///
    /// Lists have one entry a line: an address, a CIDR, a range a-b, or JSON with "cidr" (Spamhaus DROP). What follows #
    /// or ; is the rule's comment. A list with a bad line changes nothing.
    Import(import::Import),
    /// Writes a group as a list that `import` reads.
    Export(export::Export),
    /// Groups: rules, what they have dropped, and what their --count rules would have.
    Groups,
    /// What becomes of packets and connections from an address, and which rules say so.
    Explain(explain::Args),
    /// Drops as they happen, sampled.
    Watch(watch::Args),
    /// Drops per second by group and by source network.
    Top(top::Args),
    /// Keeps a change that was made with --confirm.
    Confirm(Pending),
    /// Takes back a change that was made with --confirm, before its time.
    Revert(Pending),
}

#[derive(Debug, clap::Args)]
pub(super) struct Add {
    #[command(flatten)]
    subjects: Subjects,
    #[command(flatten)]
    ttl: TtlArgs,
    /// A word on why, which `list` and `explain` show.
    #[arg(long, value_name = "TEXT", value_parser = options::comment)]
    comment: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    #[command(flatten)]
    subjects: Subjects,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
struct Subjects {
    /// `203.0.113.50`, `198.51.100.0/24`, `RU`: what it is, is inferred.
    #[arg(required = true, value_name = "SUBJECT", num_args = 1..=SUBJECTS_MAX)]
    subjects: Vec<Subject>,
    #[command(flatten)]
    action: ActionArgs,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct Pending {
    /// Of the change, as it was told when it was made; whichever waits when absent.
    #[arg(default_value_t = 0, hide_default_value = true)]
    id: u64,
}

impl Command {
    /// What is done before there is a connection, which would not wait for a slow file.
    pub(super) fn prepare(&mut self, out: &mut Output<'_>) -> Result<(), CtlError> {
        if let Self::Import(import) = self { import.read(out) } else { Ok(()) }
    }
}

pub(super) async fn run(
    command: Command,
    socket: &Path,
    client: &mut Client,
    out: &mut Output<'_>,
) -> Result<(), CtlError> {
    match command {
        Command::List(args) => list::run(&args, client, out).await,
        Command::Add(args) => add(args, client, out).await,
        Command::Remove(args) => remove(args, client, out).await,
        Command::Import(args) => import::run(args, client, out).await,
        Command::Export(args) => export::run(&args, client, out).await,
        Command::Groups => list::groups(client, out).await,
        Command::Explain(args) => explain::run(args, client, out).await,
        Command::Watch(args) => watch::run(&args, socket, client, out).await,
        Command::Top(args) => top::run(&args, socket, client, out).await,
        Command::Confirm(Pending { id }) => {
            answer(client.admin.confirm_firewall(v1::ConfirmFirewallRequest { id })).await?;
            out.say("the change stays");
            out.answer(|| json!({"confirmed": true}), String::new)
        }
        Command::Revert(Pending { id }) => {
            answer(client.admin.revert_firewall(v1::RevertFirewallRequest { id })).await?;
            out.say("the change is taken back");
            out.answer(|| json!({"reverted": true}), String::new)
        }
    }
}

async fn add(args: Add, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let comment = args.comment.unwrap_or_default();
    let rules = args.subjects.rules().map(|rule| v1::FirewallRule { comment: comment.clone(), ..rule });
    let rules = rules.collect::<Vec<_>>();
    let ttl = args.ttl.ttl.map(options::to_proto_duration);
    let options = Some(args.change.to_proto());
    // One rule is told of as "rule", not as the first of many.
    let summary = if let [rule] = rules.as_slice() {
        let request = v1::AddFirewallRuleRequest { rule: Some(rule.clone()), ttl, options };
        answer(client.admin.add_firewall_rule(request)).await?.summary
    } else {
        let request = v1::AddFirewallRulesRequest { rules: rules.clone(), ttl, options };
        answer(client.admin.add_firewall_rules(request)).await?.summary
    };
    let summary = summary.unwrap_or_default();
    let word = match (args.subjects.action.action(), args.change.dry_run) {
        (Action::Block, false) => "blocked",
        (Action::Block, true) => "would block",
        (Action::Allow, false) => "allowed",
        (Action::Allow, true) => "would allow",
        (Action::Count, false) => "counting",
        (Action::Count, true) => "would count",
    };
    for rule in &rules {
        out.say(format_args!("{word} {}", printable(&rule.value)));
    }
    args.change.say_next(&summary, out);
    out.answer(|| changed(&rules, &summary), String::new)
}

async fn remove(args: Remove, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let rules = args.subjects.rules().collect::<Vec<_>>();
    let options = Some(args.change.to_proto());
    let summary = if let [rule] = rules.as_slice() {
        let request = v1::RemoveFirewallRuleRequest { rule: Some(rule.clone()), options };
        answer(client.admin.remove_firewall_rule(request)).await?.summary
    } else {
        let request = v1::RemoveFirewallRulesRequest { rules: rules.clone(), options };
        answer(client.admin.remove_firewall_rules(request)).await?.summary
    };
    let summary = summary.unwrap_or_default();
    let action = args.subjects.action.action();
    let word = if args.change.dry_run { "would be removed" } else { "removed" };
    for rule in &rules {
        out.say(format_args!("{action} {} {word}", printable(&rule.value)));
    }
    args.change.say_next(&summary, out);
    out.answer(|| changed(&rules, &summary), String::new)
}

fn changed(rules: &[v1::FirewallRule], summary: &v1::FirewallChangeSummary) -> serde_json::Value {
    json!({"rules": rules.iter().map(json::rule).collect::<serde_json::Value>(), "summary": json::summary(summary)})
}

impl Subjects {
    /// Without repetitions. Whether a country may be allowed is for the daemon to say.
    fn rules(&self) -> impl Iterator<Item = v1::FirewallRule> {
        let PlaceArgs { group, scope } = self.place;
        let action = self.action.action();
        let mut known = std::collections::HashSet::new();
        self.subjects.iter().filter(move |subject| known.insert(**subject)).map(move |subject| {
            let key = RuleKey { group, action, subject: *subject, scope };
            rule_to_proto(&Rule { key, expires_at: None })
        })
    }
}
