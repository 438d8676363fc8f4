//! Arguments that several commands share.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use mc_proxy_proto::v1;

use super::{super::output::Output, callers};
use crate::firewall::{Action, Group, RuleScope, check_comment};

const DAY: u64 = 24 * 3600;

/// Which action; blocking without a word.
#[derive(Clone, Copy, Debug, clap::Args)]
#[group(multiple = false)]
pub(super) struct ActionArgs {
    /// A rule that lets in, whatever blocks.
    #[arg(long)]
    allow: bool,
    /// A rule that decides nothing: what it would have dropped is counted (see `groups`).
    #[arg(long)]
    count: bool,
}

/// What makes rules one, beside action and subject.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct PlaceArgs {
    /// Group of the rules, such as `office` or `bots/scrapers`.
    #[arg(long, value_name = "NAME", default_value_t = Group::DEFAULT)]
    pub(super) group: Group,
    /// Packets that are judged: `default` (what xdp.scope says), `host` (all), or TCP to one port with `listener:443`.
    #[arg(long, value_name = "SCOPE", default_value_t = RuleScope::Default)]
    pub(super) scope: RuleScope,
}

/// How a change is made.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct ChangeArgs {
    /// Say what would change, and change nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Also when it cuts off this SSH session, another admin connection or a backend.
    #[arg(long)]
    force: bool,
    /// Take the whole change back after this time (1s to 24h) unless `mcproxyctl firewall confirm` is run before.
    ///
    /// This is a safety net for the change: what was replaced or removed comes back too, also after a crash. It has
    /// nothing to do with --ttl, which is how long a rule that stays is meant to hold.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    confirm: Option<Duration>,
}

/// How long rules hold.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct TtlArgs {
    /// The rules end by themselves after this time, such as `90s`, `1h30m` or `7d`; for good when absent.
    ///
    /// The kernel keeps the time, also while the daemon is down. This is not --confirm, which takes a change back unless
    /// somebody confirms it.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) ttl: Option<Duration>,
}

impl ActionArgs {
    pub(super) fn action(self) -> Action {
        match (self.allow, self.count) {
            (true, _) => Action::Allow,
            (false, true) => Action::Count,
            (false, false) => Action::Block,
        }
    }
}

impl ChangeArgs {
    pub(super) fn to_proto(self) -> v1::FirewallChangeOptions {
        v1::FirewallChangeOptions {
            dry_run: self.dry_run,
            force: self.force,
            confirm: self.confirm.map(to_proto_duration),
            callers: callers::of_this_process().iter().map(IpAddr::to_string).collect(),
        }
    }

    /// Says what has to be done next, if anything.
    pub(super) fn say_next(self, summary: &v1::FirewallChangeSummary, out: &mut Output<'_>) {
        if self.dry_run {
            out.say("nothing has been changed (--dry-run)");
        }
        if let Some(confirm_by) = &summary.confirm_by {
            out.say(format_args!(
                "taken back at {confirm_by} unless confirmed: mcproxyctl firewall confirm {}",
                summary.confirm_id
            ));
        }
    }
}

/// A duration that was read by [`duration`] has few enough seconds.
pub(super) fn to_proto_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration { seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX), nanos: 0 }
}

/// `90s`, `1h30m`, `7d`: whole numbers with a unit each, the larger ones first.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let problem = || format!("\"{text}\" is not a time; write \"90s\", \"1h30m\" or \"7d\"");
    let mut units = [('d', DAY), ('h', 3600), ('m', 60), ('s', 1)].into_iter();
    let mut rest = text;
    let mut seconds = 0_u64;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let unit = tail.chars().next().ok_or_else(problem)?;
        let (_, unit_seconds) = units.find(|(name, _)| *name == unit).ok_or_else(problem)?;
        let term = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_seconds));
        seconds = term.and_then(|term| seconds.checked_add(term)).ok_or_else(problem)?;
        rest = tail.get(1..).unwrap_or_default();
    }
    let is_whole = seconds > 0 && seconds <= 3650 * DAY;
    if is_whole { Ok(Duration::from_secs(seconds)) } else { Err(problem() + ", at most 3650d") }
}

pub(super) fn comment(text: &str) -> Result<String, String> {
    check_comment(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

/// As RFC 3339 has it, in UTC and to the second.
pub(super) fn now() -> prost_types::Timestamp {
    let mut now = prost_types::Timestamp::from(SystemTime::now());
    now.nanos = 0;
    now
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, seconds) in [("90s", 90), ("1h30m", 5400), ("7d", 7 * DAY), ("1d1s", DAY + 1), ("3650d", 3650 * DAY)]
        {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in
            ["", "0s", "1", "s", "1m1h", "1s1s", "-1s", "1.5h", "1 h", "3651d", "99999999999999999999s", "1ms", "é"]
        {
            assert!(duration(text).unwrap_err().starts_with(&format!("\"{text}\" is not a time")), "{text}");
        }
    }
}
