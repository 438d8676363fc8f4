//! Domain values to rows and back.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    path::{Path, PathBuf},
    str::FromStr,
};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::StoreError;
use crate::{
    config::Splice,
    desired::{AcceptProxy, L7Policy, Listener, Protocol, ProxyVersion, Route, RouteKey, Target},
    firewall::Subject,
    net::addr::BackendAddr,
    route::alpn,
    tls::ServerName,
};

/// An error of SQLite that does not know its file yet, or one that is complete.
#[derive(Debug)]
pub(super) enum Failure {
    Sqlite(rusqlite::Error),
    Store(StoreError),
}

impl Failure {
    pub(super) fn at(self, action: &'static str, path: &Path) -> StoreError {
        match self {
            Self::Sqlite(e) => StoreError::sqlite(action, path, e),
            Self::Store(e) => e,
        }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

pub(super) fn is_empty(conn: &Connection) -> rusqlite::Result<bool> {
    conn.query_row("SELECT NOT EXISTS (SELECT 1 FROM listeners)", [], |row| row.get(0))
}

pub(super) fn listener_id(conn: &Connection, addr: &str) -> Result<i64, Failure> {
    conn.prepare_cached("SELECT id FROM listeners WHERE addr = ?1")?
        .query_row([addr], |row| row.get(0))
        .optional()?
        .ok_or_else(|| StoreError::UnknownListener { listener: addr.to_owned() }.into())
}

pub(super) fn route_id(conn: &Connection, listener: &str, route: &RouteKey) -> Result<i64, Failure> {
    find_route(conn, listener_id(conn, listener)?, route)?
        .ok_or_else(|| StoreError::UnknownRoute { listener: listener.to_owned(), route: route.to_string() }.into())
}

fn find_route(conn: &Connection, listener: i64, route: &RouteKey) -> rusqlite::Result<Option<i64>> {
    conn.prepare_cached("SELECT id FROM routes WHERE listener_id = ?1 AND hostname = ?2 AND alpn = ?3")?
        .query_row(params![listener, route.hostname.to_string(), alpn_text(&route.alpn)], |row| row.get(0))
        .optional()
}

fn alpn_text(names: &[String]) -> String {
    alpn::Listed(names).to_string()
}

pub(super) fn insert_listener(conn: &Connection, listener: &Listener) -> Result<(), Failure> {
    let trusted = listener.proxy.iter().flat_map(|proxy| &proxy.trusted).map(ToString::to_string);
    let id = conn
        .prepare_cached(
            "INSERT INTO listeners (addr, protocol, max_connections, max_connections_per_source, proxy_protocol,
                 proxy_trusted, proxy_trust_any)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .insert(params![
            listener.addr.as_str(),
            listener.protocol.as_str(),
            limit("max_connections", listener.max_connections)?,
            limit("max_connections_per_source", listener.max_connections_per_source)?,
            listener.proxy.is_some(),
            trusted.collect::<Vec<_>>().join(","),
            listener.proxy.as_ref().is_some_and(|proxy| proxy.trust_any),
        ])?;
    if let Some(target) = &listener.default {
        insert_target(conn, id, None, target)?;
    }
    for route in &listener.routes {
        insert_target(conn, id, Some(route), &route.target)?;
    }
    Ok(())
}

pub(super) fn upsert_route(conn: &Connection, listener: i64, route: &Route) -> Result<(), Failure> {
    let Some(id) = find_route(conn, listener, &route.key())? else {
        return insert_target(conn, listener, Some(route), &route.target);
    };
    let target = &route.target;
    conn.prepare_cached(
        "UPDATE routes SET mode = ?2, tls_cert = ?3, tls_key = ?4, backend_tls = ?5, send_proxy_protocol = ?6,
             proxy_protocol_version = ?7, transparent = ?8, splice = ?9, backend_ca = ?10, backend_server_name = ?11,
             backend_insecure = ?12, backend_protocol = ?13
         WHERE id = ?1",
    )?
    .execute(params![
        id,
        target.mode.as_str(),
        optional_text(target.tls_cert.as_deref())?,
        optional_text(target.tls_key.as_deref())?,
        target.backend_tls,
        target.send_proxy.is_some(),
        target.send_proxy.unwrap_or_default().as_str(),
        target.transparent,
        target.splice.map(Splice::as_str),
        optional_text(target.backend_ca.as_deref())?,
        target.backend_server_name.as_ref().map(ServerName::as_str),
        target.backend_insecure,
        target.backend_protocol.as_str(),
    ])?;
    conn.prepare_cached("DELETE FROM backends WHERE route_id = ?1")?.execute([id])?;
    conn.prepare_cached("DELETE FROM l7_policies WHERE route_id = ?1")?.execute([id])?;
    insert_lists(conn, id, target)
}

pub(super) fn delete_route(conn: &Connection, listener: i64, route: &RouteKey) -> Result<bool, Failure> {
    let deleted = conn
        .prepare_cached("DELETE FROM routes WHERE listener_id = ?1 AND hostname = ?2 AND alpn = ?3")?
        .execute(params![listener, route.hostname.to_string(), alpn_text(&route.alpn)])?;
    Ok(deleted > 0)
}

pub(super) fn insert_policy(conn: &Connection, route: i64, policy: &L7Policy) -> Result<bool, Failure> {
    let row = params![route, policy.kind.as_str(), policy.value, policy.shadow];
    let updated = conn
        .prepare_cached(
            "UPDATE l7_policies SET shadow = ?4 WHERE route_id = ?1 AND kind = ?2 AND value = ?3 AND shadow <> ?4",
        )?
        .execute(row)?;
    let inserted = conn
        .prepare_cached(
            "INSERT INTO l7_policies (route_id, position, kind, value, shadow)
             SELECT ?1, (SELECT coalesce(max(position) + 1, 0) FROM l7_policies WHERE route_id = ?1), ?2, ?3, ?4
             WHERE NOT EXISTS (SELECT 1 FROM l7_policies WHERE route_id = ?1 AND kind = ?2 AND value = ?3)",
        )?
        .execute(row)?;
    Ok(updated + inserted > 0)
}

pub(super) fn delete_policy(conn: &Connection, route: i64, policy: &L7Policy) -> Result<bool, Failure> {
    let deleted = conn
        .prepare_cached("DELETE FROM l7_policies WHERE route_id = ?1 AND kind = ?2 AND value = ?3")?
        .execute(params![route, policy.kind.as_str(), policy.value])?;
    Ok(deleted > 0)
}

pub(super) fn set_max_connections(conn: &Connection, listener: i64, max: u64) -> Result<(), Failure> {
    conn.prepare_cached("UPDATE listeners SET max_connections = ?2 WHERE id = ?1")?
        .execute(params![listener, limit("max_connections", max)?])?;
    Ok(())
}

/// Reads all tables but those of rules; `path` is for the error.
pub(super) fn listeners(conn: &Connection, path: &Path) -> Result<Vec<Listener>, Failure> {
    let (mut backends, mut policies) = (load_backends(conn, path)?, load_policies(conn, path)?);
    let mut listeners = Vec::new();
    let mut place_of = BTreeMap::new();
    let mut statement = conn.prepare(
        "SELECT id, addr, protocol, max_connections, max_connections_per_source, proxy_protocol, proxy_trusted,
             proxy_trust_any
         FROM listeners ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let at = RowPlace { path, table: "listeners", id: row.get(0)? };
        place_of.insert(at.id, listeners.len());
        let mut listener = Listener::new(at.parse(&row.get::<_, String>(1)?)?);
        listener.protocol = at.parse(&row.get::<_, String>(2)?)?;
        listener.max_connections =
            u64::try_from(row.get::<_, i64>(3)?).map_err(|_| at.bad("max_connections is negative"))?;
        listener.max_connections_per_source =
            u64::try_from(row.get::<_, i64>(4)?).map_err(|_| at.bad("max_connections_per_source is negative"))?;
        if row.get(5)? {
            listener.proxy = Some(accept_proxy(&at, &row.get::<_, String>(6)?, row.get(7)?)?);
        }
        listeners.push(listener);
    }

    let mut statement = conn.prepare(
        "SELECT id, listener_id, hostname, mode, tls_cert, tls_key, backend_tls, send_proxy_protocol,
             proxy_protocol_version, transparent, splice, alpn, backend_ca, backend_server_name, backend_insecure,
             backend_protocol
         FROM routes ORDER BY id",
    )?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let at = RowPlace { path, table: "routes", id: row.get(0)? };
        let listener = place_of.get(&row.get::<_, i64>(1)?).and_then(|place| listeners.get_mut(*place));
        let listener: &mut Listener = listener.ok_or_else(|| at.bad("its listener does not exist"))?;
        let version: ProxyVersion = at.parse(&row.get::<_, String>(8)?)?;
        let splice = row.get::<_, Option<String>>(10)?;
        let server_name = row.get::<_, Option<String>>(13)?;
        let target = Target {
            backends: backends.remove(&at.id).ok_or_else(|| at.bad("it has no backend"))?,
            mode: at.parse(&row.get::<_, String>(3)?)?,
            tls_cert: row.get::<_, Option<String>>(4)?.map(PathBuf::from),
            tls_key: row.get::<_, Option<String>>(5)?.map(PathBuf::from),
            backend_tls: row.get(6)?,
            backend_ca: row.get::<_, Option<String>>(12)?.map(PathBuf::from),
            backend_server_name: server_name.map(|name| at.parse_canonical(&name)).transpose()?,
            backend_insecure: row.get(14)?,
            backend_protocol: at.parse(&row.get::<_, String>(15)?)?,
            send_proxy: row.get::<_, bool>(7)?.then_some(version),
            transparent: row.get(9)?,
            splice: splice.map(|word| at.parse(&word)).transpose()?,
            l7_policies: policies.remove(&at.id).unwrap_or_default(),
        };
        if target.transparent
            && let Some(unix) = target.backends.iter().find(|backend| matches!(backend, BackendAddr::Unix(_)))
        {
            return Err(at.bad(&format!("it is transparent, and its backend \"{unix}\" is a Unix socket")).into());
        }
        match row.get::<_, Option<String>>(2)? {
            None => listener.default = Some(target),
            Some(hostname) => {
                let alpn = route_alpn(&at, &row.get::<_, String>(11)?)?;
                listener.routes.push(Route { hostname: at.parse_canonical(&hostname)?, alpn, target });
            }
        }
    }
    for (id, place) in place_of {
        if let Some(listener) = listeners.get(place) {
            check_protocol(&RowPlace { path, table: "listeners", id }, listener)?;
        }
    }
    Ok(listeners)
}

/// Whether a listener has the routes that its protocol needs, and no others.
fn check_protocol(at: &RowPlace<'_>, listener: &Listener) -> Result<(), Failure> {
    let needs_default = match listener.protocol {
        Protocol::Tls => return Ok(()),
        Protocol::Tcp => true,
        Protocol::HttpRedirect => false,
    };
    let protocol = listener.protocol.as_str();
    if !listener.routes.is_empty() {
        return Err(at.bad(&format!("it has protocol \"{protocol}\", and routes with hostnames")).into());
    }
    if needs_default != listener.default.is_some() {
        let what = if needs_default { "no" } else { "a" };
        return Err(at.bad(&format!("it has protocol \"{protocol}\", and {what} default route")).into());
    }
    Ok(())
}

fn accept_proxy(at: &RowPlace<'_>, trusted: &str, trust_any: bool) -> Result<AcceptProxy, Failure> {
    let mut nets = Vec::new();
    for text in trusted.split(',').filter(|text| !text.is_empty()) {
        match Subject::cidr(text).map_err(|error| at.bad(&format!("proxy_trusted: {error}")))? {
            Subject::Net(net) => nets.push(net),
            Subject::Country(_) => return Err(at.bad("proxy_trusted has a country").into()),
        }
    }
    nets.sort_unstable();
    nets.dedup();
    if nets.is_empty() && !trust_any {
        return Err(at.bad("proxy_protocol is on, and proxy_trusted is empty").into());
    }
    Ok(AcceptProxy { trusted: nets, trust_any })
}

fn route_alpn(at: &RowPlace<'_>, text: &str) -> Result<Vec<String>, Failure> {
    let names = alpn::parse_list(text).map_err(|error| at.bad(&format!("alpn \"{text}\" {error}")))?;
    let canonical = alpn_text(&names);
    if canonical == text {
        Ok(names)
    } else {
        Err(at.bad(&format!("alpn \"{text}\" must be written \"{canonical}\"")).into())
    }
}

fn load_backends(conn: &Connection, path: &Path) -> Result<HashMap<i64, Vec<BackendAddr>>, Failure> {
    by_route(conn, "SELECT route_id, addr FROM backends ORDER BY route_id, position", |row| {
        let at = RowPlace { path, table: "backends", id: row.get(0)? };
        at.parse(&row.get::<_, String>(1)?)
    })
}

fn load_policies(conn: &Connection, path: &Path) -> Result<HashMap<i64, Vec<L7Policy>>, Failure> {
    by_route(conn, "SELECT route_id, kind, value, shadow FROM l7_policies ORDER BY route_id, position", |row| {
        let at = RowPlace { path, table: "l7_policies", id: row.get(0)? };
        Ok(L7Policy { kind: at.parse(&row.get::<_, String>(1)?)?, value: row.get(2)?, shadow: row.get(3)? })
    })
}

fn by_route<T>(
    conn: &Connection,
    sql: &str,
    mut parse: impl FnMut(&Row<'_>) -> Result<T, Failure>,
) -> Result<HashMap<i64, Vec<T>>, Failure> {
    let mut lists = HashMap::<i64, Vec<T>>::new();
    let mut statement = conn.prepare(sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        lists.entry(row.get(0)?).or_default().push(parse(row)?);
    }
    Ok(lists)
}

/// Without a route it is the listener's default.
fn insert_target(conn: &Connection, listener: i64, route: Option<&Route>, target: &Target) -> Result<(), Failure> {
    let id = conn
        .prepare_cached(
            "INSERT INTO routes (listener_id, hostname, mode, tls_cert, tls_key, backend_tls, send_proxy_protocol,
                 proxy_protocol_version, transparent, splice, alpn, backend_ca, backend_server_name, backend_insecure,
                 backend_protocol)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)",
        )?
        .insert(params![
            listener,
            route.map(|route| route.hostname.to_string()),
            target.mode.as_str(),
            optional_text(target.tls_cert.as_deref())?,
            optional_text(target.tls_key.as_deref())?,
            target.backend_tls,
            target.send_proxy.is_some(),
            target.send_proxy.unwrap_or_default().as_str(),
            target.transparent,
            target.splice.map(Splice::as_str),
            route.map(|route| alpn_text(&route.alpn)).unwrap_or_default(),
            optional_text(target.backend_ca.as_deref())?,
            target.backend_server_name.as_ref().map(ServerName::as_str),
            target.backend_insecure,
            target.backend_protocol.as_str(),
        ])?;
    insert_lists(conn, id, target)
}

fn insert_lists(conn: &Connection, route: i64, target: &Target) -> Result<(), Failure> {
    if target.backends.is_empty() {
        return Err(unstorable("a route", "it has no backend"));
    }
    let mut insert = conn.prepare_cached("INSERT INTO backends (route_id, position, addr) VALUES (?1, ?2, ?3)")?;
    for (position, backend) in (0_i64..).zip(&target.backends) {
        let text = backend.to_string();
        if text.parse().as_ref() != Ok(backend) {
            return Err(unstorable(&format!("backend \"{text}\""), "it does not read back as it is"));
        }
        insert.execute(params![route, position, text])?;
    }
    let mut insert = conn.prepare_cached(
        "INSERT INTO l7_policies (route_id, position, kind, value, shadow) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for (position, policy) in (0_i64..).zip(&target.l7_policies) {
        insert.execute(params![route, position, policy.kind.as_str(), policy.value, policy.shadow])?;
    }
    Ok(())
}

/// Which row a value came from.
pub(super) struct RowPlace<'a> {
    pub(super) path: &'a Path,
    pub(super) table: &'static str,
    pub(super) id: i64,
}

impl RowPlace<'_> {
    pub(super) fn bad(&self, reason: &str) -> StoreError {
        StoreError::BadRow {
            path: self.path.to_owned(),
            table: self.table,
            // The lists of a route have no ids of their own.
            row: match self.table {
                "backends" | "l7_policies" => format!("of route {}", self.id),
                _ => self.id.to_string(),
            },
            reason: reason.to_owned(),
        }
    }

    pub(super) fn parse<T: FromStr<Err: Display>>(&self, text: &str) -> Result<T, Failure> {
        text.parse().map_err(|e: T::Err| self.bad(&e.to_string()).into())
    }

    /// For what rows are found by again: another spelling of the same value could not be removed or replaced.
    pub(super) fn parse_canonical<T: FromStr<Err: Display> + Display>(&self, text: &str) -> Result<T, Failure> {
        let value: T = self.parse(text)?;
        let canonical = value.to_string();
        if canonical == text {
            Ok(value)
        } else {
            Err(self.bad(&format!("\"{text}\" must be written \"{canonical}\"")).into())
        }
    }
}

fn limit(key: &str, max: u64) -> Result<i64, Failure> {
    i64::try_from(max).map_err(|_| unstorable(&format!("{key} = {max}"), "it is above 2^63 - 1"))
}

fn optional_text(path: Option<&Path>) -> Result<Option<&str>, Failure> {
    let Some(path) = path else { return Ok(None) };
    match path.to_str() {
        Some(text) => Ok(Some(text)),
        None => Err(unstorable(&format!("path \"{}\"", path.display()), "it is not UTF-8")),
    }
}

pub(super) fn unstorable(what: &str, reason: impl Into<String>) -> Failure {
    StoreError::Unstorable { what: what.to_owned(), reason: reason.into() }.into()
}
