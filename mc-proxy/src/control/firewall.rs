//! What can be asked of the firewall: the types of the questions and answers, and the questions themselves.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use tokio::sync::broadcast;

use super::{Command, Control, ControlError, Reply};
use crate::firewall::{Action, CountryCode, Expiry, Group, Rule, RuleKey, RuleScope};

/// Entries of a group that is replaced.
pub const IMPORT_MAX: usize = 2_000_000;

/// Drops that wait for a watcher; what a slower one has missed, it is told.
pub(super) const DROPS: usize = 4096;

/// How a change is to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeOptions {
    /// Say what would change, and change nothing.
    pub dry_run: bool,
    /// Also what cuts off a caller, an established admin connection or a backend.
    pub force: bool,
    /// Take the change back after this time unless it is confirmed.
    pub confirm: Option<Duration>,
    /// Addresses that whoever asks would not want to lock out, folded to IPv4 where they are mapped.
    pub callers: Vec<IpAddr>,
}

/// A rule that is to be put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRule {
    /// The rule.
    pub rule: Rule,
    /// At most [`crate::firewall::COMMENT_MAX_BYTES`] bytes, without control characters; not empty.
    pub comment: Option<String>,
}

/// What a group is made equal to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupImport {
    /// Not an automatic one.
    pub group: Group,
    /// Of all of its rules.
    pub action: Action,
    /// Of all of its rules.
    pub scope: RuleScope,
    /// Of all of its rules.
    pub expires_at: Option<Expiry>,
    /// At most [`IMPORT_MAX`], in canonical form and in any order; repetitions are one rule.
    pub entries: Vec<IpNet>,
    /// Comments by index into `entries`, in ascending order.
    pub comments: Vec<(u32, String)>,
}

/// What a change has done or, in a dry run, would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeSummary {
    /// Rules that were not there.
    pub added: u64,
    /// Rules that were there with another expiry or comment.
    pub replaced: u64,
    /// Rules that were there.
    pub removed: u64,
    /// Rules that are as they were.
    pub unchanged: u64,
    /// When the change is taken back.
    pub confirm_by: Option<SystemTime>,
    /// What [`Control::confirm`] is told; never 0.
    pub confirm_id: Option<u64>,
}

/// Which rules are listed; what is absent does not filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleFilter {
    /// In this group.
    pub group: Option<Group>,
    /// With this action.
    pub action: Option<Action>,
    /// On a prefix that contains the address, or on its country.
    pub covers: Option<IpAddr>,
}

/// A rule with what only the database knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    /// The rule.
    pub rule: Rule,
    /// Never empty.
    pub comment: Option<String>,
    /// When it was first put.
    pub created_at: SystemTime,
}

/// A group and what it has dropped since its counters began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// Its name.
    pub group: Group,
    /// Rules in it.
    pub rules: u64,
    /// Packets, and connections refused in user space.
    pub dropped_packets: u64,
    /// Bytes of the packets.
    pub dropped_bytes: u64,
    /// What rules that count would have dropped.
    pub shadow_packets: u64,
    /// Bytes of these.
    pub shadow_bytes: u64,
}

/// From where and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainRequest {
    /// Folded to IPv4 where it is mapped.
    pub source: IpAddr,
    /// The first one when absent.
    pub listener: Option<String>,
    /// To be told the route.
    pub server_name: Option<String>,
    /// What the client offers by ALPN, which may decide on the route.
    pub alpn: Vec<String>,
}

/// What becomes of packets and connections from an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Of both planes together.
    pub verdict: Verdict,
    /// Why, in words.
    pub reason: String,
    /// The rule that decides.
    pub decisive: Option<ListedRule>,
    /// Rules on the address, in the order of evaluation.
    pub covering: Vec<Considered>,
    /// Where the GeoIP database places the address.
    pub country: Option<CountryCode>,
    /// What the attached program says.
    pub kernel: KernelAnswer,
    /// What user space says.
    pub user: String,
    /// Where the connection would go.
    pub route: Option<String>,
}

/// What becomes of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let in.
    Pass,
    /// Dropped by the kernel, or refused by user space.
    Drop,
}

/// A rule on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// The rule.
    pub rule: ListedRule,
    /// Whether it is in scope and not expired.
    pub holds: bool,
    /// Why it does or does not hold, or why it does not decide.
    pub why: String,
}

/// What the attached program answers to a crafted segment of an established connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelAnswer {
    /// It was run.
    Ran {
        /// Whether it dropped the packet.
        drop: bool,
        /// The reason that it counted.
        reason: String,
    },
    /// It was not, and why.
    NotAttached(String),
}

/// A drop as a watcher is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DropEvent {
    /// When.
    pub at: SystemTime,
    /// Where the packet came in; a listener's name in user space.
    pub interface: String,
    /// As in the counters.
    pub reason: &'static str,
    /// Of the rule that dropped it.
    pub group: Group,
    /// From whom.
    pub source: IpAddr,
    /// Destination port; 0 when the packet shows none.
    pub port: u16,
    /// Length of the frame; 0 in user space.
    pub bytes: u32,
    /// Who dropped it.
    pub plane: Plane,
    /// One of this many is told.
    pub sampled: u32,
}

/// Who dropped a packet or a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// The XDP program.
    Kernel,
    /// The daemon.
    User,
}

/// What `status` tells of the firewall, beside the kernel plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FirewallStatus {
    /// Absent without a database.
    pub geoip: Option<GeoIpStatus>,
    /// All groups that have rules or counters.
    pub groups: Vec<GroupStatus>,
    /// The change that waits to be confirmed.
    pub pending: Option<Pending>,
    /// Rules of automatic groups.
    pub bans: u64,
    /// Rules of all groups.
    pub rules: u64,
}

/// The GeoIP database in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GeoIpStatus {
    /// As it calls itself.
    pub database_type: String,
    /// By its own account.
    pub built_at: SystemTime,
}

/// A change that is taken back unless it is confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Never 0.
    pub id: u64,
    /// When it is taken back.
    pub confirm_by: SystemTime,
}

/// What the thread is asked for.
#[derive(Debug)]
pub(crate) enum FirewallCommand {
    PutRules(Vec<NewRule>, ChangeOptions, Reply<ChangeSummary>),
    RemoveRules(Vec<RuleKey>, ChangeOptions, Reply<ChangeSummary>),
    ReplaceGroup(GroupImport, ChangeOptions, Reply<ChangeSummary>),
    List(RuleFilter, Option<RuleKey>, usize, Reply<Vec<ListedRule>>),
    Groups(Reply<Vec<GroupStatus>>),
    Explain(ExplainRequest, Reply<Explanation>),
    Confirm(Option<u64>, Reply<()>),
    Revert(Option<u64>, Reply<()>),
}

impl FirewallCommand {
    pub(super) fn is_abandoned(&self) -> bool {
        match self {
            Self::PutRules(_, _, reply) | Self::RemoveRules(_, _, reply) | Self::ReplaceGroup(_, _, reply) => {
                reply.is_closed()
            }
            Self::List(_, _, _, reply) => reply.is_closed(),
            Self::Groups(reply) => reply.is_closed(),
            Self::Explain(_, reply) => reply.is_closed(),
            Self::Confirm(_, reply) | Self::Revert(_, reply) => reply.is_closed(),
        }
    }
}

impl Plane {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::User => "user",
        }
    }
}

impl Verdict {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }
}

impl Control {
    /// Puts rules, all or none. A rule that exists gets the expiry and the comment of the new one.
    ///
    /// # Errors
    /// See [`ControlError`]; [`ControlError::Refused`] also for what would cut somebody off.
    pub async fn put_rules(&self, rules: Vec<NewRule>, options: ChangeOptions) -> Result<ChangeSummary, ControlError> {
        self.ask(|reply| FirewallCommand::PutRules(rules, options, reply)).await
    }

    /// Removes rules, all or none.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] when one of them is not there; see [`ControlError`].
    pub async fn remove_rules(
        &self,
        rules: Vec<RuleKey>,
        options: ChangeOptions,
    ) -> Result<ChangeSummary, ControlError> {
        self.ask(|reply| FirewallCommand::RemoveRules(rules, options, reply)).await
    }

    /// Makes a group equal to a list.
    ///
    /// # Errors
    /// As [`Self::put_rules`].
    pub async fn replace_group(
        &self,
        import: GroupImport,
        options: ChangeOptions,
    ) -> Result<ChangeSummary, ControlError> {
        self.ask(|reply| FirewallCommand::ReplaceGroup(import, options, reply)).await
    }

    /// At most `limit` rules that `filter` lets through, sorted by key, from the one behind `after` on. Fewer than
    /// `limit` are the last.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn list(
        &self,
        filter: RuleFilter,
        after: Option<RuleKey>,
        limit: usize,
    ) -> Result<Vec<ListedRule>, ControlError> {
        self.ask(|reply| FirewallCommand::List(filter, after, limit, reply)).await
    }

    /// Groups that have rules or counters, sorted by name.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn groups(&self) -> Result<Vec<GroupStatus>, ControlError> {
        self.ask(FirewallCommand::Groups).await
    }

    /// What becomes of an address, by the code that judges it.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] for an unknown listener.
    pub async fn explain(&self, request: ExplainRequest) -> Result<Explanation, ControlError> {
        self.ask(|reply| FirewallCommand::Explain(request, reply)).await
    }

    /// Keeps the change that waits, which is `id` unless that is absent.
    ///
    /// # Errors
    /// [`ControlError::NotFound`] when none waits, or another.
    pub async fn confirm(&self, id: Option<u64>) -> Result<(), ControlError> {
        self.ask(|reply| FirewallCommand::Confirm(id, reply)).await
    }

    /// Takes back the change that waits, which is `id` unless that is absent.
    ///
    /// # Errors
    /// As [`Self::confirm`], and when it cannot be taken back.
    pub async fn revert(&self, id: Option<u64>) -> Result<(), ControlError> {
        self.ask(|reply| FirewallCommand::Revert(id, reply)).await
    }

    /// Drops from now on, sampled. A receiver that lags behind by [`DROPS`] loses the oldest and is told how many.
    pub fn watch(&self) -> broadcast::Receiver<DropEvent> {
        self.drops.subscribe()
    }

    /// Where drops are told; without watchers they go nowhere.
    pub fn drops(&self) -> &broadcast::Sender<DropEvent> {
        &self.drops
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> FirewallCommand) -> Result<T, ControlError> {
        self.call(|reply| Command::Firewall(command(reply))).await
    }
}
