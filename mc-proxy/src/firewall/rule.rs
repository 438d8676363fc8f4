//! A firewall rule in the one form in which rules are compared.

mod expiry;
mod group;
mod subject;

use std::{fmt, str::FromStr};

use ipnet::IpNet;

pub use self::{
    expiry::Expiry,
    group::Group,
    subject::{CountryCode, Subject},
};

/// Longest comment, in bytes.
pub const COMMENT_MAX_BYTES: usize = 200;

/// What happens to a source that a rule matches. Any allow beats any block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Refused, in the kernel where that is possible.
    Block,
    /// Let in whatever blocks it.
    Allow,
    /// Decides nothing; what a block would have refused is counted.
    Count,
}

/// Which packets of a source a rule judges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RuleScope {
    /// What `xdp.scope` says.
    #[default]
    Default,
    /// Every packet.
    Host,
    /// TCP to the port of one listener, which is not 0.
    Listener(u16),
}

/// What makes a rule one: of each key there is one rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleKey {
    /// Whose rule it is.
    pub group: Group,
    /// What is done.
    pub action: Action,
    /// To whom.
    pub subject: Subject,
    /// With which packets.
    pub scope: RuleScope,
}

/// A rule. Its comment is in the database alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rule {
    /// What makes it one.
    pub key: RuleKey,
    /// From when on it is as if it were not there; never if absent.
    pub expires_at: Option<Expiry>,
}

/// Precedence: of the rules that hold for a packet, one of the first tier decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Lets in.
    Allow,
    /// An operator's word.
    Block,
    /// The daemon's own.
    Ban,
    /// By the GeoIP database.
    Country,
}

/// Why a text, or a combination of values, is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not an address.
    #[error("\"{0}\" is not an IP address; write \"203.0.113.50\" or \"2001:db8::1\"")]
    Ip(String),
    /// Not CIDR notation.
    #[error("\"{0}\" is not a CIDR; write \"198.51.100.0/24\" or \"2001:db8::/32\"")]
    Cidr(String),
    /// Bits are set below the prefix length.
    #[error("\"{given}\" has host bits set; the canonical CIDR is \"{canonical}\"")]
    HostBits {
        /// As given.
        given: String,
        /// The prefix that contains it.
        canonical: IpNet,
    },
    /// Not two letters.
    #[error("\"{0}\" is not an ISO 3166-1 alpha-2 country code, such as \"RU\"")]
    Country(String),
    /// A country can only be blocked or counted.
    #[error("a country cannot be allowed; allow its prefixes instead")]
    AllowCountry,
    /// Not an action.
    #[error("\"{0}\" is not an action; write \"block\", \"allow\" or \"count\"")]
    Action(String),
    /// Not a scope.
    #[error("\"{0}\" is not a scope; write \"default\", \"host\" or \"listener:443\"")]
    Scope(String),
    /// Not the name of a group.
    #[error(
        "\"{0}\" is not a group; write 1 to 31 of a-z, 0-9 and \".\", \"_\", \"/\", \"-\", the first a letter or a digit"
    )]
    Group(String),
    /// A subject that was put together by hand and not in canonical form.
    #[error("\"{given}\" is not in canonical form; it is \"{canonical}\"")]
    NotCanonical {
        /// As given.
        given: IpNet,
        /// As it is stored and compared.
        canonical: Subject,
    },
    /// Too long a comment.
    #[error("a comment has at most 200 bytes; this one has {0}")]
    CommentTooLong(usize),
    /// A comment that would break a line or a terminal.
    #[error("a comment has no control characters; character {0} of this one is one")]
    CommentControl(usize),
}

/// Refuses a comment that is longer than [`COMMENT_MAX_BYTES`] or is more than one harmless line.
///
/// # Errors
/// [`RuleError::CommentTooLong`], [`RuleError::CommentControl`].
pub fn check_comment(text: &str) -> Result<(), RuleError> {
    if text.len() > COMMENT_MAX_BYTES {
        return Err(RuleError::CommentTooLong(text.len()));
    }
    match text.chars().position(char::is_control) {
        Some(at) => Err(RuleError::CommentControl(at + 1)),
        None => Ok(()),
    }
}

impl RuleKey {
    /// The key of a rule with these values.
    ///
    /// # Errors
    /// [`RuleError::AllowCountry`]; [`RuleError::NotCanonical`] and [`RuleError::Scope`] (port 0) for values that no
    /// parser here makes.
    pub fn new(group: Group, action: Action, subject: Subject, scope: RuleScope) -> Result<Self, RuleError> {
        let key = Self { group, action, subject, scope };
        key.check()?;
        Ok(key)
    }

    /// As [`Self::new`], for a key that was put together field by field.
    ///
    /// # Errors
    /// Those of [`Self::new`].
    pub fn check(&self) -> Result<(), RuleError> {
        match self.subject {
            Subject::Country(_) if self.action == Action::Allow => return Err(RuleError::AllowCountry),
            Subject::Net(given) if !self.subject.is_canonical() => {
                return Err(RuleError::NotCanonical { given, canonical: Subject::covering(given) });
            }
            Subject::Net(_) | Subject::Country(_) => {}
        }
        match self.scope {
            RuleScope::Listener(0) => Err(RuleError::Scope(self.scope.to_string())),
            RuleScope::Default | RuleScope::Host | RuleScope::Listener(_) => Ok(()),
        }
    }

    /// Where the rule stands in the order of precedence. A count stands where it would if it were a block.
    pub fn tier(&self) -> Tier {
        match (self.action, self.subject) {
            (Action::Allow, _) => Tier::Allow,
            (Action::Block | Action::Count, Subject::Country(_)) => Tier::Country,
            (Action::Block | Action::Count, Subject::Net(_)) if self.group.is_automatic() => Tier::Ban,
            (Action::Block | Action::Count, Subject::Net(_)) => Tier::Block,
        }
    }
}

impl Rule {
    /// A rule that an operator adds without saying more: default group, default scope, for good.
    ///
    /// # Errors
    /// Those of [`RuleKey::new`].
    pub fn permanent(action: Action, subject: Subject) -> Result<Self, RuleError> {
        Ok(Self { key: RuleKey::new(Group::DEFAULT, action, subject, RuleScope::Default)?, expires_at: None })
    }

    /// [`Self::permanent`] with [`Action::Block`].
    pub const fn block(subject: Subject) -> Self {
        let key = RuleKey { group: Group::DEFAULT, action: Action::Block, subject, scope: RuleScope::Default };
        Self { key, expires_at: None }
    }

    /// Where the rule stands in the order of precedence.
    pub fn tier(&self) -> Tier {
        self.key.tier()
    }
}

/// `block 203.0.113.50`, with the group and the scope where they are not the default.
impl fmt::Display for RuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.subject)?;
        if self.group != Group::DEFAULT {
            write!(f, " in group {}", self.group)?;
        }
        if self.scope != RuleScope::Default { write!(f, " with scope {}", self.scope) } else { Ok(()) }
    }
}

impl Action {
    /// All of them, sorted.
    pub const ALL: [Self; 3] = [Self::Block, Self::Allow, Self::Count];

    /// The word for it, which [`Self::from_str`] reads back.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Block => "block",
            Self::Allow => "allow",
            Self::Count => "count",
        }
    }
}

impl FromStr for Action {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let found = Self::ALL.into_iter().find(|action| action.as_str() == text);
        found.ok_or_else(|| RuleError::Action(text.to_owned()))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Tier {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Block => "block",
            Self::Ban => "ban",
            Self::Country => "country",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for RuleScope {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let port = |digits: &str| match digits.parse::<u16>() {
            // The parser takes a sign and leading zeros.
            Ok(port) if port > 0 && digits == port.to_string() => Some(Self::Listener(port)),
            _ => None,
        };
        match text {
            "default" => Some(Self::Default),
            "host" => Some(Self::Host),
            _ => text.strip_prefix("listener:").and_then(port),
        }
        .ok_or_else(|| RuleError::Scope(text.to_owned()))
    }
}

/// The form that [`RuleScope::from_str`] reads back.
impl fmt::Display for RuleScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Host => f.write_str("host"),
            Self::Listener(port) => write!(f, "listener:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_country_is_never_allowed() {
        let subject = Subject::country("de").unwrap();
        assert_eq!(Rule::permanent(Action::Allow, subject), Err(RuleError::AllowCountry));
        for action in [Action::Block, Action::Count] {
            assert!(Rule::permanent(action, subject).is_ok());
        }
    }

    #[test]
    fn what_was_put_together_by_hand_is_checked() {
        let mut key = Rule::block("192.0.2.0/24".parse().unwrap()).key;
        assert_eq!(key.check(), Ok(()));
        key.scope = RuleScope::Listener(0);
        assert_eq!(key.check(), Err(RuleError::Scope("listener:0".to_owned())));
        key.scope = RuleScope::Host;
        for (given, canonical) in [
            ("192.0.2.1/24", "192.0.2.0/24"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("2001:db8::1/32", "2001:db8::/32"),
        ] {
            key.subject = Subject::Net(given.parse().unwrap());
            let error = key.check().unwrap_err().to_string();
            assert_eq!(error, format!("\"{given}\" is not in canonical form; it is \"{canonical}\""));
        }
    }

    #[test]
    fn words_are_read_back() {
        for action in Action::ALL {
            assert_eq!(action.to_string().parse(), Ok(action));
        }
        for scope in [RuleScope::Default, RuleScope::Host, RuleScope::Listener(1), RuleScope::Listener(65_535)] {
            assert_eq!(scope.to_string().parse(), Ok(scope));
        }
        for text in ["", "Host", "443", "listener:", "listener:0", "listener:+1", "listener:01", "listener:65536"] {
            assert_eq!(text.parse::<RuleScope>(), Err(RuleError::Scope(text.to_owned())));
        }
        assert_eq!("Block".parse::<Action>(), Err(RuleError::Action("Block".to_owned())));
    }

    #[test]
    fn keys_are_sorted_by_group_action_subject_and_scope() {
        let key = |group: &str, action, subject: &str, scope| RuleKey {
            group: group.parse().unwrap(),
            action,
            subject: subject.parse().unwrap(),
            scope,
        };
        let sorted = [
            key("a", Action::Count, "RU", RuleScope::Listener(9)),
            key("a-b", Action::Block, "0.0.0.0/0", RuleScope::Default),
            key("b", Action::Block, "9.0.0.0/8", RuleScope::Default),
            key("b", Action::Block, "9.0.0.0/9", RuleScope::Default),
            key("b", Action::Block, "10.0.0.0", RuleScope::Default),
            key("b", Action::Block, "10.0.0.0", RuleScope::Host),
            key("b", Action::Block, "10.0.0.0", RuleScope::Listener(443)),
            key("b", Action::Block, "::/0", RuleScope::Default),
            key("b", Action::Block, "AD", RuleScope::Default),
            key("b", Action::Allow, "9.0.0.0/8", RuleScope::Default),
        ];
        assert!(sorted.is_sorted());
        assert_eq!(sorted[0].to_string(), "count RU in group a with scope listener:9");
        assert_eq!(Rule::block("RU".parse().unwrap()).key.to_string(), "block RU");
    }

    #[test]
    fn tiers() {
        let tier = |group: &str, action, subject: &str| {
            let subject = subject.parse().unwrap();
            RuleKey { group: group.parse().unwrap(), action, subject, scope: RuleScope::Host }.tier()
        };
        assert_eq!(tier("auto/rate", Action::Allow, "192.0.2.1"), Tier::Allow);
        assert_eq!(tier("auto/rate", Action::Block, "192.0.2.1"), Tier::Ban);
        assert_eq!(tier("auto", Action::Block, "192.0.2.1"), Tier::Block);
        assert_eq!(tier("default", Action::Count, "192.0.2.0/24"), Tier::Block);
        assert_eq!(tier("auto/rate", Action::Count, "RU"), Tier::Country);
        assert!([Tier::Allow, Tier::Block, Tier::Ban, Tier::Country].is_sorted());
    }

    #[test]
    fn comments_are_one_harmless_line() {
        assert_eq!(check_comment(&"ä".repeat(100)), Ok(()));
        assert_eq!(check_comment(&"ä".repeat(101)), Err(RuleError::CommentTooLong(202)));
        assert_eq!(check_comment("ä\x1b[2J"), Err(RuleError::CommentControl(2)));
    }
}
