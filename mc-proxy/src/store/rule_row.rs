//! A rule as columns, and back.

use std::{
    fmt::{Display, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rusqlite::Row;

use super::{
    StoreError,
    rows::{Failure, unstorable},
};
use crate::firewall::{Action, CountryCode, Expiry, Group, Rule, RuleKey, RuleScope, Subject, check_comment};

const V4: i64 = 4;
const V6: i64 = 6;
const COUNTRY: i64 = 9;

/// `scope` of the port 0, which none has.
const LISTENER: i64 = 1 << 16;

/// The columns of a key that follow the group's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    pub(super) action: i64,
    pub(super) kind: i64,
    addr: [u8; 16],
    addr_len: usize,
    pub(super) prefix_len: i64,
    pub(super) scope: i64,
}

impl Columns {
    /// Refuses what would not be read back as it is.
    pub(super) fn of(key: &RuleKey) -> Result<Self, Failure> {
        key.check().map_err(|error| unstorable(&format!("rule \"{key}\""), error.to_string()))?;
        let mut addr = [0; 16];
        let mut store = |bytes: &[u8]| {
            for (to, from) in addr.iter_mut().zip(bytes) {
                *to = *from;
            }
            bytes.len()
        };
        let (kind, addr_len, prefix_len) = match key.subject {
            Subject::Net(IpNet::V4(net)) => (V4, store(&net.addr().octets()), net.prefix_len()),
            Subject::Net(IpNet::V6(net)) => (V6, store(&net.addr().octets()), net.prefix_len()),
            Subject::Country(code) => (COUNTRY, store(code.as_str().as_bytes()), 0),
        };
        let scope = match key.scope {
            RuleScope::Default => 0,
            RuleScope::Host => 1,
            RuleScope::Listener(port) => LISTENER + i64::from(port),
        };
        Ok(Self { action: action_number(key.action), kind, addr, addr_len, prefix_len: prefix_len.into(), scope })
    }

    pub(super) fn addr(&self) -> &[u8] {
        self.addr.get(..self.addr_len).unwrap_or_default()
    }
}

pub(super) fn action_number(action: Action) -> i64 {
    match action {
        Action::Block => 0,
        Action::Allow => 1,
        Action::Count => 2,
    }
}

pub(super) fn expiry_millis(expires_at: Option<Expiry>) -> Option<i64> {
    expires_at.map(|expiry| expiry.as_millis().cast_signed())
}

/// Refuses what would not be read back.
pub(super) fn comment(text: Option<&str>) -> Result<Option<&str>, Failure> {
    if let Some(text) = text {
        check_comment(text).map_err(|error| unstorable("the comment of a rule", error.to_string()))?;
    }
    Ok(text)
}

/// The columns from `action` to `expires_at` in the order of the table, of which the first is at `first`.
pub(super) struct RuleRow<'r, 's> {
    pub(super) row: &'r Row<'s>,
    pub(super) first: usize,
    pub(super) path: &'r Path,
    pub(super) table: &'static str,
}

impl RuleRow<'_, '_> {
    pub(super) fn rule(&self, group: Group) -> Result<Rule, Failure> {
        let int = |column| self.int(column);
        let action = match int(0)? {
            0 => Action::Block,
            1 => Action::Allow,
            2 => Action::Count,
            other => return Err(self.bad(&format!("action {other} is none of 0, 1 and 2"))),
        };
        let scope = match int(4)? {
            0 => RuleScope::Default,
            1 => RuleScope::Host,
            other => match u16::try_from(other.saturating_sub(LISTENER)) {
                Ok(port) => RuleScope::Listener(port),
                Err(_) => return Err(self.bad(&format!("scope {other} is not one"))),
            },
        };
        let key = RuleKey::new(group, action, self.subject(int(1)?, int(3)?)?, scope);
        let key = key.map_err(|error| self.bad(&error.to_string()))?;
        let expires_at = match self.row.get::<_, Option<i64>>(self.first + 5)? {
            None => None,
            Some(millis) => match u64::try_from(millis) {
                Ok(millis) if millis <= Expiry::MAX.as_millis() => Some(Expiry::from_millis(millis)),
                _ => return Err(self.bad(&format!("expires_at {millis} is not a moment before the year 10000"))),
            },
        };
        Ok(Rule { key, expires_at })
    }

    fn subject(&self, kind: i64, prefix_len: i64) -> Result<Subject, Failure> {
        let addr = self.blob(2)?;
        let length = u8::try_from(prefix_len).map_err(|_| self.bad(&format!("prefix_len {prefix_len} is not one")))?;
        let prefix = |error: ipnet::PrefixLenError| self.bad(&format!("prefix_len {prefix_len}: {error}"));
        let size = |_| self.bad(&format!("an address of kind {kind} does not have {} bytes", addr.len()));
        match kind {
            V4 => {
                let addr = Ipv4Addr::from(<[u8; 4]>::try_from(addr).map_err(size)?);
                Ok(Subject::Net(Ipv4Net::new(addr, length).map_err(prefix)?.into()))
            }
            V6 => {
                let addr = Ipv6Addr::from(<[u8; 16]>::try_from(addr).map_err(size)?);
                Ok(Subject::Net(Ipv6Net::new(addr, length).map_err(prefix)?.into()))
            }
            COUNTRY => {
                let text = String::from_utf8_lossy(addr);
                let code: CountryCode = self.parse(&text)?;
                if code.as_str() != text || length != 0 {
                    return Err(self.bad(&format!("the country \"{text}/{length}\" must be written \"{code}/0\"")));
                }
                Ok(Subject::Country(code))
            }
            _ => Err(self.bad(&format!("kind {kind} is none of {V4}, {V6} and {COUNTRY}"))),
        }
    }

    /// The column after `expires_at`.
    pub(super) fn comment(&self) -> Result<Option<String>, Failure> {
        let text: Option<String> = self.row.get(self.first + 6)?;
        if let Some(text) = &text {
            check_comment(text).map_err(|error| self.bad(&error.to_string()))?;
        }
        Ok(text)
    }

    pub(super) fn parse<T: FromStr<Err: Display>>(&self, text: &str) -> Result<T, Failure> {
        text.parse().map_err(|error: T::Err| self.bad(&error.to_string()))
    }

    pub(super) fn bad(&self, reason: &str) -> Failure {
        let mut row = String::from("with");
        for (at, name) in ["action", "kind", "addr", "prefix_len", "scope"].into_iter().enumerate() {
            let and = if at == 0 { "" } else { " AND" };
            let value = match name {
                "addr" => self.blob(at).map(|blob| format!("x'{}'", hex(blob))),
                _ => self.int(at).map(|int| int.to_string()),
            };
            // A column of another type is what SQLite's own check reports.
            row.push_str(&format!("{and} {name} = {}", value.unwrap_or_else(|_| "?".to_owned())));
        }
        StoreError::BadRow { path: self.path.to_owned(), table: self.table, row, reason: reason.to_owned() }.into()
    }

    fn int(&self, column: usize) -> rusqlite::Result<i64> {
        self.row.get(self.first + column)
    }

    fn blob(&self, column: usize) -> rusqlite::Result<&[u8]> {
        let value = self.row.get_ref(self.first + column)?;
        value
            .as_blob()
            .map_err(|_| rusqlite::Error::InvalidColumnType(self.first + column, "addr".to_owned(), value.data_type()))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02X}");
        text
    })
}
