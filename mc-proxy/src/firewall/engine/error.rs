//! Why rules are not put in force.

use std::fmt;

use ipnet::IpNet;
use mc_proxy_common::table::CHAIN_CLAUSES_MAX;

use crate::{
    firewall::{RuleKey, book::BookError},
    xdp::PlaneError,
};

/// Why a change was not made. Rules and tables are as they were before.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The rules themselves.
    #[error(transparent)]
    Book(#[from] BookError),
    /// One decision would depend on too many rules.
    #[error("more than {CHAIN_CLAUSES_MAX} rules would have to be asked about {net}: {}", Listed(.rules))]
    TooManyRules {
        /// For whose addresses.
        net: IpNet,
        /// The rules about them, in the order of evaluation.
        rules: Vec<RuleKey>,
    },
    /// More rules, or more kinds of them, than the tables can ever hold.
    #[error("these are more rules than the firewall's tables can hold")]
    TooLarge,
    /// Larger tables could not be made.
    #[error("making larger tables for the firewall")]
    Prepare(#[source] PlaneError),
    /// They could not be put in force.
    #[error("putting larger tables of the firewall in force")]
    Commit(#[source] PlaneError),
    /// Packets under way could not be waited for.
    #[error("waiting for packets that are being judged")]
    Settle(#[source] PlaneError),
}

/// At most a dozen rules, as text.
struct Listed<'a>(&'a [RuleKey]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 12;
        for (index, key) in self.0.iter().take(SHOWN).enumerate() {
            write!(f, "{}{key}", if index == 0 { "" } else { ", " })?;
        }
        if self.0.len() > SHOWN { write!(f, " and {} more", self.0.len() - SHOWN) } else { Ok(()) }
    }
}
