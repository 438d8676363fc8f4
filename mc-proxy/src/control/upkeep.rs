//! What the thread does without being asked: rules expire, changes that nobody confirms are taken back, offenders are
//! banned, the GeoIP database is read when its file changes, and programs are kept on their interfaces.

use std::{
    cell::LazyCell,
    collections::BTreeSet,
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use ipnet::IpNet;

use super::{
    ControlError,
    bans::{backend_addresses, has_backend, has_proxy, log_ban},
    rules::moment,
    thread::{Owned, Thread},
};
use crate::{
    firewall::{
        Action, Ban, CountryCode, Covering, EngineConfig, EngineError, FileWatch, GeoIp, GeoIpError, Rule, RuleBook,
        RuleChange, RuleScope, Subject,
    },
    store,
    telemetry::describe,
    xdp::Repairs,
};

/// Changes that wait for a database that takes none.
const UNSTORED_MAX: usize = 131_072;

/// The GeoIP database in memory, and its file.
#[derive(Debug)]
pub struct Countries {
    path: PathBuf,
    geoip: Arc<GeoIp>,
    watch: FileWatch,
}

impl Countries {
    /// Reads a database and watches its file from now on.
    ///
    /// # Errors
    /// See [`GeoIpError`].
    pub fn open(path: PathBuf) -> Result<Self, GeoIpError> {
        let geoip = Arc::new(GeoIp::open(&path)?);
        let watch = FileWatch::new(path.clone(), geoip.stamp(), Instant::now());
        Ok(Self { path, geoip, watch })
    }

    /// What is in memory.
    pub fn geoip(&self) -> &Arc<GeoIp> {
        &self.geoip
    }

    pub(super) fn country(&self, address: IpAddr) -> Option<CountryCode> {
        self.geoip.country(address)
    }

    /// The prefixes of the countries that rules of the book are about.
    pub(super) fn prefixes(&self, book: &RuleBook) -> Vec<(IpNet, CountryCode)> {
        self.prefixes_of(&book.countries().collect())
    }

    /// The prefixes of the countries that these rules are about.
    pub fn prefixes_for(&self, rules: &[Rule]) -> Vec<(IpNet, CountryCode)> {
        let country = |rule: &Rule| match rule.key.subject {
            Subject::Country(code) => Some(code),
            Subject::Net(_) => None,
        };
        self.prefixes_of(&rules.iter().filter_map(country).collect())
    }

    fn prefixes_of(&self, codes: &BTreeSet<CountryCode>) -> Vec<(IpNet, CountryCode)> {
        if codes.is_empty() {
            return Vec::new();
        }
        match self.geoip.prefixes(codes) {
            Ok(prefixes) => {
                let found: BTreeSet<CountryCode> = prefixes.iter().map(|(_, code)| *code).collect();
                for country in codes.difference(&found) {
                    tracing::warn!(%country, "the GeoIP database knows no address of this country");
                }
                prefixes
            }
            // The whole file was checked when it was read.
            Err(error) => {
                tracing::error!(error = describe(&error), "countries are not blocked");
                Vec::new()
            }
        }
    }
}

impl Owned {
    pub(super) fn engine_config(&self) -> EngineConfig {
        EngineConfig {
            is_host_scope: self.is_host_scope,
            bans_max: self.bans_max,
            groups: self.engine.book().groups().clone(),
        }
    }
}

impl Thread {
    /// About every second.
    pub(super) fn tick(&mut self) {
        self.is_troubled = false;
        self.keep_attached();
        let limiter = &self.owned.edge.firewall.limiter;
        if limiter.limit().interval != 0 {
            limiter.set_second(self.owned.plane.status().is_active);
        }
        if self.needs_rebuild {
            self.rebuild("an earlier failure");
        }
        self.expire();
        self.store_bans();
        let is_over = self.pending_until.is_some_and(|until| until <= Instant::now());
        if self.pending.is_some_and(|pending| is_over || pending.deadline <= SystemTime::now()) {
            match self.take_back() {
                Ok(()) => tracing::warn!("a change was not confirmed in time and has been taken back"),
                Err(error) => self.tell_trouble(format!("a change that nobody confirmed stays in force: {error}")),
            }
        }
        if self.owned.geoip.as_mut().is_some_and(|countries| countries.watch.changed(Instant::now())) {
            tracing::info!("the GeoIP database has changed, reloading it");
            if let Err(error) = self.reload_geoip() {
                tracing::error!(error = describe(&error), "the old GeoIP database stays");
            }
        }
        self.owned.certificates.tick(Instant::now(), SystemTime::now());
        self.publish_authorities();
        self.publish_tables();
        if !self.is_troubled {
            self.trouble.clear();
        }
    }

    fn keep_attached(&mut self) {
        match self.owned.plane.keep_attached() {
            Ok(repairs) if repairs == Repairs::default() => {}
            Ok(repairs) => tracing::warn!(
                attached = repairs.attached,
                repinned = repairs.repinned,
                "the kernel differed from the desired state and has been put right"
            ),
            Err(error) => self.tell_trouble(describe(&error)),
        }
    }

    fn expire(&mut self) {
        match self.owned.engine.expire(moment(), &mut *self.owned.plane) {
            Ok(keys) if keys.is_empty() => {}
            Ok(keys) => {
                tracing::debug!(rules = keys.len(), "expired");
                // Behind the bans that the database does not have yet, which may be among them.
                self.unstored.extend(keys.into_iter().map(store::Change::Remove));
            }
            Err(error) => self.tell_trouble(describe(&error)),
        }
    }

    /// Puts bans in force that follow from what connections have reported. The database has them a moment later: a ban
    /// that a crash takes from it would have been forgotten by the next offence anyway, and must not wait for a disk.
    pub(super) fn ban(&mut self) {
        let found: Vec<Ban> = {
            let Owned { bans, listeners, edge, engine, .. } = &mut self.owned;
            // Few offences are followed by a ban, and routes may be many.
            let backends = LazyCell::new(|| backend_addresses(listeners, &edge.resolver));
            let is_allowed = |net: &IpNet| {
                let now = SystemTime::now();
                engine.covering(net.addr()).iter().any(|Covering { rule, .. }| {
                    let holds = rule.expires_at.is_none_or(|expiry| !expiry.is_past(now));
                    rule.key.action == Action::Allow && holds && !matches!(rule.key.scope, RuleScope::Listener(_))
                })
            };
            bans.drain(moment().boot, |net| has_backend(&backends, net) || has_proxy(listeners, net) || is_allowed(net))
        };
        if !found.is_empty() {
            self.put_bans(&found);
            self.publish_tables();
        }
    }

    fn put_bans(&mut self, found: &[Ban]) {
        let Owned { bans, engine, plane, .. } = &mut self.owned;
        let wall = SystemTime::now();
        let rules: Vec<Rule> = found.iter().map(|ban| ban.rule(wall)).collect();
        let changes: Vec<RuleChange> = rules.iter().copied().map(RuleChange::Put).collect();
        match engine.apply(&changes, moment(), &mut **plane) {
            Ok(applied) => {
                found.iter().for_each(log_ban);
                self.unstored.extend(rules.into_iter().map(|rule| store::Change::Put(rule, None)));
                self.unstored.extend(applied.evicted.into_iter().map(store::Change::Remove));
            }
            // A source about which there are too many rules must not save the others.
            Err(EngineError::TooManyRules { .. }) if found.len() > 1 => {
                let (first, second) = found.split_at(found.len() / 2);
                self.put_bans(first);
                self.put_bans(second);
            }
            Err(error) => {
                for ban in found {
                    bans.forget(ban.net);
                }
                self.tell_trouble(format!("bans are not in force: {}", describe(&error)));
            }
        }
    }

    /// Writes down what is in force already: bans, which outlive a restart, and that rules have expired.
    pub(super) fn store_bans(&mut self) {
        if self.unstored.is_empty() {
            return;
        }
        if let Err(error) = self.owned.store.apply(self.unstored.iter().cloned()) {
            self.tell_trouble(format!("bans and expiries are in force, but not in the database: {}", describe(&error)));
            // A database that stays away must not fill the memory: the last ones are the ones that last longest.
            let excess = self.unstored.len().saturating_sub(UNSTORED_MAX);
            self.unstored.drain(..excess);
        } else {
            self.unstored.clear();
        }
    }

    pub(super) fn reload_geoip(&mut self) -> Result<bool, ControlError> {
        let Some(countries) = &self.owned.geoip else { return Ok(false) };
        let geoip = GeoIp::open(&countries.path).map_err(|error| ControlError::Failed(describe(&error)))?;
        let geoip = Arc::new(geoip);
        self.owned.edge.geoip.store(Some(Arc::clone(&geoip)));
        let Some(countries) = &mut self.owned.geoip else { return Ok(false) };
        countries.watch.loaded(geoip.stamp());
        countries.geoip = geoip;
        self.refresh_countries();
        self.publish_tables();
        Ok(true)
    }

    /// The tables get the prefixes of the countries that are blocked now.
    pub(super) fn refresh_countries(&mut self) {
        let Owned { engine, plane, geoip, .. } = &mut self.owned;
        let Some(countries) = geoip else { return };
        let prefixes = countries.prefixes(engine.book());
        if let Err(error) = engine.set_countries(prefixes, moment(), &mut **plane) {
            self.tell_trouble(format!("the countries' old prefixes stay in force: {}", describe(&error)));
            self.needs_rebuild = true;
        }
    }
}
