//! `mcproxyctl firewall`.

use clap::Subcommand;
use mc_proxy_proto::v1;

use super::{
    CtlError,
    client::{Client, answer},
    json,
    output::{Output, table},
};
use crate::{
    admin::rule_to_proto,
    firewall::{Action, Rule, RuleKey, Subject},
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// All rules.
    List,
    /// Blocks addresses, prefixes and countries, or allows addresses and prefixes.
    Add(Subjects),
    /// Removes rules.
    Remove(Subjects),
}

#[derive(Debug, clap::Args)]
pub(super) struct Subjects {
    /// `203.0.113.50`, `198.51.100.0/24`, `RU`: what it is, is inferred.
    #[arg(required = true, value_name = "SUBJECT")]
    subjects: Vec<Subject>,
    /// A rule that lets in, whatever blocks.
    #[arg(long)]
    allow: bool,
}

pub(super) async fn run(command: Command, client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    match command {
        Command::List => list(client, out).await,
        Command::Add(subjects) => {
            let rules = subjects.rules();
            for (done, rule) in rules.iter().enumerate() {
                let request = v1::AddFirewallRuleRequest { rule: Some(rule.clone()) };
                let added = answer(client.admin.add_firewall_rule(request)).await;
                added.map_err(|error| error.at(&rule.value, done, rules.len()))?;
                out.say(format_args!("{} {}", if subjects.allow { "allowed" } else { "blocked" }, rule.value));
            }
            out.answer(|| json::rules(&rules), String::new)
        }
        Command::Remove(subjects) => {
            let rules = subjects.rules();
            for (done, rule) in rules.iter().enumerate() {
                let request = v1::RemoveFirewallRuleRequest { rule: Some(rule.clone()) };
                let removed = answer(client.admin.remove_firewall_rule(request)).await;
                removed.map_err(|error| error.at(&rule.value, done, rules.len()))?;
                out.say(format_args!("{} {} removed", if subjects.allow { "allow" } else { "block" }, rule.value));
            }
            out.answer(|| json::rules(&rules), String::new)
        }
    }
}

impl Subjects {
    /// Whether a country may be allowed is for the daemon to say.
    fn rules(&self) -> Vec<v1::FirewallRule> {
        let action = if self.allow { Action::Allow } else { Action::Block };
        self.subjects
            .iter()
            .map(|subject| {
                let block = Rule::block(*subject);
                rule_to_proto(&Rule { key: RuleKey { action, ..block.key }, ..block })
            })
            .collect()
    }
}

async fn list(client: &mut Client, out: &mut Output<'_>) -> Result<(), CtlError> {
    let rules = answer(client.admin.get_firewall_rules(v1::GetFirewallRulesRequest {})).await?.rules;
    let rows = rules.iter().map(|rule| {
        let action = match rule.action() {
            v1::FirewallAction::Allow => "allow",
            v1::FirewallAction::Block | v1::FirewallAction::Unspecified => "block",
        };
        let kind = match rule.r#type() {
            v1::FirewallRuleType::Ip => "ip",
            v1::FirewallRuleType::Cidr => "cidr",
            v1::FirewallRuleType::Country => "country",
            v1::FirewallRuleType::Unspecified => "unknown",
        };
        [action.to_owned(), kind.to_owned(), rule.value.clone()]
    });
    out.answer(|| json::rules(&rules), || table(["ACTION", "TYPE", "VALUE"], rows))
}
