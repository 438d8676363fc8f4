//! What was typed: every key of the file with its TOML type, read from the spanned document tree.
//!
//! Not serde: a derived deserializer stops at the first error. Here each value is read on its own, so that all errors
//! are found in one go, and an environment variable takes the place of a value under the same rules.

use std::{collections::BTreeMap, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    diagnostic::{At, Report, did_you_mean},
    duration::{self, DurationError},
    size::{self, Size},
    unavailable::{self, Unavailable},
};

/// A value with its origin.
#[derive(Clone, Debug, Default)]
pub(super) struct Given<T> {
    pub(super) value: T,
    pub(super) at: At,
}

/// A key of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

/// What a key holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A scalar or a list of strings.
    Value,
    /// `[table]`.
    Table(&'static [Key]),
    /// `[[table]]`.
    Tables(&'static [Key]),
}

/// A table whose keys are known.
pub(super) trait Shape: Default {
    const KEYS: &'static [Key];

    /// Reads the value of `key`, one of [`Self::KEYS`].
    fn set(&mut self, key: &str, input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>);
}

/// Something that a key can hold.
pub(super) trait Read: Sized {
    const KIND: Kind = Kind::Value;

    /// `None` after an error was reported.
    fn read(input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>) -> Option<Self>;
}

/// Where a value is read from.
#[derive(Clone, Debug)]
pub(super) enum Input<'a> {
    Toml(&'a Spanned<DeValue<'a>>),
    Variable(&'a Override),
}

/// The value of an environment variable, for the key that it stands for.
#[derive(Clone, Debug)]
pub(super) struct Override {
    pub(super) name: String,
    pub(super) value: String,
}

/// Reads tables, collecting errors.
pub(super) struct Reader<'a, 'r> {
    pub(super) report: &'r mut Report<'a>,
    /// By path of the key.
    pub(super) overrides: &'r BTreeMap<String, Override>,
    /// What is refused when it is switched on.
    pub(super) unavailable: &'r [Unavailable],
}

macro_rules! key_name {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $name:literal) => {
        $name
    };
}

/// Declares a table: one line a key, from which come the struct, the list of valid keys and the reading.
macro_rules! shape {
    ($(#[$doc:meta])* $table:ident { $($field:ident $(= $name:literal)?: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default)]
        pub(super) struct $table {
            $(pub(super) $field: Option<Given<$type>>,)*
        }

        impl Shape for $table {
            const KEYS: &'static [Key] =
                &[$(Key { name: key_name!($field $($name)?), kind: <$type as Read>::KIND },)*];

            fn set(&mut self, key: &str, input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>) {
                $(if key == key_name!($field $($name)?) {
                    self.$field = Read::read(input, path, reader).map(|value| Given { value, at: input.at() });
                })*
            }
        }

        impl Read for $table {
            const KIND: Kind = Kind::Table(Self::KEYS);

            fn read(input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>) -> Option<Self> {
                reader.table(input, path)
            }
        }
    };
}

shape! {
    /// The whole file.
    Root {
        database: Database,
        listeners: Vec<Given<Listener>>,
        firewall: Firewall,
        proxy: Proxy,
        http: Http,
        xdp: Xdp,
        grpc: Grpc,
        metrics: Metrics,
        log: Log,
    }
}

shape! {
    /// `[database]`
    Database {
        path: String,
    }
}

shape! {
    /// `[[listeners]]`
    Listener {
        addr: String,
        protocol: String,
        max_connections: i64,
        max_connections_per_source: i64,
        proxy_protocol: bool,
        proxy_trusted: Vec<Given<String>>,
        proxy_trust_any: bool,
        default: Route,
        routes: Vec<Given<Route>>,
    }
}

shape! {
    /// `[[listeners.routes]]`, and without `hostname` and `alpn` `[listeners.default]`
    Route {
        hostname: String,
        alpn: Vec<Given<String>>,
        backend: String,
        backends: Vec<Given<String>>,
        mode: String,
        tls_cert: String,
        tls_key: String,
        backend_tls: bool,
        backend_ca: String,
        backend_server_name: String,
        backend_insecure: bool,
        backend_protocol: String,
        send_proxy_protocol: bool,
        proxy_protocol_version: String,
        transparent: bool,
        splice: String,
        l7_policies: Vec<Given<Policy>>,
    }
}

shape! {
    /// `[[listeners.routes.l7_policies]]`
    Policy {
        kind = "type": String,
        value: String,
        shadow: bool,
    }
}

shape! {
    /// `[firewall]`
    Firewall {
        geoip_db: String,
        blocked_ips: Vec<Given<String>>,
        blocked_cidrs: Vec<Given<String>>,
        blocked_countries: Vec<Given<String>>,
        allowed_cidrs: Vec<Given<String>>,
        rate_limit: i64,
        rate_window: Duration,
        rate_prefix_v4: i64,
        rate_prefix_v6: i64,
        max_bans: i64,
        auto_ban: AutoBan,
    }
}

shape! {
    /// `[firewall.auto_ban]`
    AutoBan {
        after: i64,
        within: Duration,
        ttl: Duration,
    }
}

shape! {
    /// `[proxy]`
    Proxy {
        connect_timeout: Duration,
        handshake_timeout: Duration,
        idle_timeout: Duration,
        shutdown_timeout: Duration,
        splice: String,
        refuse: String,
        transparent_mark: i64,
        transparent_table: i64,
        memory_limit: Size,
    }
}

shape! {
    /// `[http]`
    Http {
        max_head_bytes: Size,
        max_fields: i64,
        max_target_bytes: Size,
        header_timeout: Duration,
        body_timeout: Duration,
        min_body_rate: Size,
        keepalive_timeout: Duration,
        write_timeout: Duration,
        response_timeout: Duration,
        max_body_bytes: Size,
        max_requests: i64,
        max_concurrent_streams: i64,
        max_resets: i64,
        max_continuations: i64,
        max_control_frames: i64,
        window: Duration,
        pool_idle_timeout: Duration,
        pool_max_idle: i64,
        max_backend_connections: i64,
        trusted_proxies: Vec<Given<String>>,
    }
}

shape! {
    /// `[xdp]`
    Xdp {
        interfaces: Vec<Given<String>>,
        mode: String,
        required: bool,
        require_native: bool,
        scope: String,
        on_exit: String,
        pin_path: String,
    }
}

shape! {
    /// `[grpc]`
    Grpc {
        addr: String,
        socket_mode: String,
        socket_group: String,
        tls_cert: String,
        tls_key: String,
        client_ca: String,
    }
}

shape! {
    /// `[metrics]`
    Metrics {
        addr: String,
        path: String,
    }
}

shape! {
    /// `[log]`
    Log {
        level: String,
        format: String,
        access: String,
        access_format: String,
        access_sample: i64,
        redact_clients: bool,
        redact_queries: bool,
    }
}

/// Paths of all keys, tables included, in the order of declaration.
pub(super) fn key_paths() -> Vec<(String, Kind)> {
    fn collect(keys: &[Key], prefix: &str, into: &mut Vec<(String, Kind)>) {
        for key in keys {
            let path = join(prefix, key.name);
            into.push((path.clone(), key.kind));
            match key.kind {
                Kind::Value => {}
                Kind::Table(keys) | Kind::Tables(keys) => collect(keys, &path, into),
            }
        }
    }
    let mut paths = Vec::new();
    collect(Root::KEYS, "", &mut paths);
    // A default route is for whoever has no other.
    paths.retain(|(path, _)| path != "listeners.default.hostname" && path != "listeners.default.alpn");
    paths
}

impl Reader<'_, '_> {
    /// The file. Sections that only the environment speaks of are made up.
    pub(super) fn root(&mut self, mut document: Spanned<DeTable<'_>>) -> Root {
        for path in self.overrides.keys() {
            make_sections(document.get_mut(), path);
        }
        self.keys(document.get_ref(), "")
    }

    fn table<T: Shape>(&mut self, input: &Input<'_>, path: &str) -> Option<T> {
        let Input::Toml(value) = input else { return None };
        match value.get_ref().as_table() {
            Some(table) => Some(self.keys(table, path)),
            None => {
                self.mismatch(input, path, "a table", &format!("write [{path}] above its keys"));
                None
            }
        }
    }

    fn keys<T: Shape>(&mut self, table: &DeTable<'_>, path: &str) -> T {
        let mut shape = T::default();
        for key in table.keys() {
            if !T::KEYS.iter().any(|known| known.name == key.get_ref()) {
                self.unknown(key.get_ref(), &At::Offset(key.span().start), path, T::KEYS);
            }
        }
        let overrides = self.overrides;
        for key in T::KEYS {
            let path = join(path, key.name);
            let input = match (overrides.get(&path), table.get(key.name)) {
                (Some(variable), _) => Input::Variable(variable),
                (None, Some(value)) => Input::Toml(value),
                (None, None) => continue,
            };
            if let Some(value) = input.as_text()
                && let Some(remedy) = unavailable::remedy_in(self.unavailable, &path, &value)
            {
                let version = env!("CARGO_PKG_VERSION");
                let shown = input.shown();
                self.report
                    .error(&input.at(), format!("{path} = {shown} is not available in mc-proxy {version}; {remedy}"));
                continue;
            }
            shape.set(key.name, &input, &path, self);
        }
        shape
    }

    fn unknown(&mut self, key: &str, at: &At, path: &str, valid: &[Key]) {
        let given = join(path, key);
        let mut hint = did_you_mean(key, valid.iter().map(|key| key.name));
        if hint.is_empty() {
            // The right key under the wrong header.
            let suffix = format!(".{key}");
            let elsewhere = key_paths().into_iter().map(|(path, _)| path).find(|path| path.ends_with(&suffix));
            hint = match elsewhere {
                Some(path) => format!("; did you mean \"{path}\"?"),
                None => {
                    let names = valid.iter().map(|key| key.name).collect::<Vec<_>>().join(", ");
                    format!("; valid here: {names}")
                }
            };
        }
        self.report.error(at, format!("{given}: unknown key \"{key}\"{hint}"));
    }

    fn mismatch(&mut self, input: &Input<'_>, path: &str, expected: &str, remedy: &str) {
        let text = match input {
            Input::Toml(value) => {
                let found = match value.get_ref().type_str() {
                    kind @ ("array" | "integer") => format!("an {kind}"),
                    kind => format!("a {kind}"),
                };
                let shown = input.as_text().map(|_| format!(" ({})", input.shown())).unwrap_or_default();
                format!("{path}: {found}{shown} where {expected} belongs; {remedy}")
            }
            Input::Variable(variable) => format!("{path}: {:?} is not {expected}; {remedy}", variable.value),
        };
        self.report.error(&input.at(), text);
    }
}

impl Input<'_> {
    fn at(&self) -> At {
        match self {
            // Made up for the environment.
            Self::Toml(value) if value.span().is_empty() => At::File,
            Self::Toml(value) => At::Offset(value.span().start),
            Self::Variable(variable) => At::Variable(variable.name.clone()),
        }
    }

    /// A scalar without quotes.
    fn as_text(&self) -> Option<String> {
        match self {
            Self::Variable(variable) => Some(variable.value.clone()),
            Self::Toml(value) => match value.get_ref() {
                DeValue::String(text) => Some(text.to_string()),
                DeValue::Integer(_) => self.as_integer().map(|integer| integer.to_string()),
                DeValue::Float(float) => Some(float.to_string()),
                DeValue::Boolean(boolean) => Some(boolean.to_string()),
                DeValue::Datetime(datetime) => Some(datetime.to_string()),
                DeValue::Array(_) | DeValue::Table(_) => None,
            },
        }
    }

    /// A scalar as it would be typed in the file.
    fn shown(&self) -> String {
        let text = self.as_text().unwrap_or_default();
        let is_quoted = match self {
            Self::Variable(_) => false,
            Self::Toml(value) => value.get_ref().is_str(),
        };
        if is_quoted { format!("{text:?}") } else { text }
    }

    fn as_integer(&self) -> Option<i64> {
        match self {
            Self::Variable(variable) => variable.value.trim().parse().ok(),
            Self::Toml(value) => {
                let integer = value.get_ref().as_integer()?;
                i64::from_str_radix(integer.as_str(), integer.radix()).ok()
            }
        }
    }

    fn as_str(&self) -> Option<&str> {
        match self {
            Self::Variable(variable) => Some(&variable.value),
            Self::Toml(value) => value.get_ref().as_str(),
        }
    }
}

impl Read for String {
    fn read(input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>) -> Option<Self> {
        let text = input.as_str().map(Self::from);
        if text.is_none() {
            let remedy = match input.as_text() {
                Some(text) => format!("write {text:?}"),
                None => "write one value in quotes".to_owned(),
            };
            reader.mismatch(input, path, "a string", &remedy);
        }
        text
    }
}

impl Read for bool {
    fn read(input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>) -> Option<Self> {
        let value = match input {
            Input::Toml(value) => value.get_ref().as_bool(),
            Input::Variable(variable) => variable.value.trim().parse().ok(),
        };
        if value.is_none() {
            reader.mismatch(input, path, "true or false", "write true or false, without quotes");
        }
        value
    }
}

impl Read for i64 {
    fn read(input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>) -> Option<Self> {
        let value = input.as_integer();
        if value.is_none() {
            reader.mismatch(input, path, "a whole number", "write digits, without quotes");
        }
        value
    }
}

impl Read for Duration {
    fn read(input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>) -> Option<Self> {
        const REMEDY: &str = "write a number with its unit in quotes, such as \"300ms\", \"5s\" or \"1m30s\"";
        let parsed = match (input.as_str(), input.as_integer()) {
            (Some(text), _) => duration::parse(text.trim()),
            (None, Some(number)) if number < 0 => Err(DurationError::Negative),
            (None, _) => {
                reader.mismatch(input, path, "a duration", REMEDY);
                return None;
            }
        };
        let shown = input.shown();
        let text = match parsed {
            Ok(duration) => return Some(duration),
            Err(error @ DurationError::Negative) => format!("{path} {error}: {shown}; write \"5s\""),
            Err(error @ DurationError::TooLong) => format!("{path}: {shown} {error}; write \"8760h\" or less"),
            Err(error @ DurationError::Malformed) => format!("{path}: {shown} {error}; {REMEDY}"),
        };
        reader.report.error(&input.at(), text);
        None
    }
}

/// A number of bytes, or a text with a unit.
impl Read for Size {
    fn read(input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>) -> Option<Self> {
        const REMEDY: &str = "write bytes without quotes, or a number with its unit in quotes, such as \"512MiB\"";
        let parsed = match (input.as_str(), input.as_integer()) {
            (Some(text), _) => size::parse(text.trim()),
            (None, Some(number)) => u64::try_from(number).map(Size).map_err(|_| size::SizeError::Negative),
            (None, _) => {
                reader.mismatch(input, path, "a size", REMEDY);
                return None;
            }
        };
        let shown = input.shown();
        let text = match parsed {
            Ok(size) => return Some(size),
            Err(error @ size::SizeError::Negative) => format!("{path} {error}: {shown}; write 0 for no limit"),
            Err(error) => format!("{path}: {shown} {error}; {REMEDY}"),
        };
        reader.report.error(&input.at(), text);
        None
    }
}

/// In an environment variable: separated by commas.
impl Read for Vec<Given<String>> {
    fn read(input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>) -> Option<Self> {
        match input {
            Input::Variable(variable) => {
                let items = variable.value.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(items.map(|item| Given { value: item.to_owned(), at: input.at() }).collect())
            }
            Input::Toml(value) => {
                let Some(array) = value.get_ref().as_array() else {
                    let remedy = match input.as_text() {
                        Some(text) => format!("write [{text:?}]"),
                        None => "write it in [ ]".to_owned(),
                    };
                    reader.mismatch(input, path, "a list of strings", &remedy);
                    return None;
                };
                let items = array
                    .iter()
                    .map(Input::Toml)
                    .filter_map(|item| String::read(&item, path, reader).map(|value| Given { value, at: item.at() }));
                Some(items.collect())
            }
        }
    }
}

impl<T: Shape> Read for Vec<Given<T>>
where
    T: Read,
{
    const KIND: Kind = Kind::Tables(T::KEYS);

    fn read(input: &Input<'_>, path: &str, reader: &mut Reader<'_, '_>) -> Option<Self> {
        let Input::Toml(value) = input else { return None };
        let Some(array) = value.get_ref().as_array() else {
            reader.mismatch(input, path, "a list of tables", &format!("write [[{path}]] in double brackets"));
            return None;
        };
        let items = array
            .iter()
            .map(Input::Toml)
            .filter_map(|item| T::read(&item, path, reader).map(|value| Given { value, at: item.at() }));
        Some(items.collect())
    }
}

/// Makes the tables on the way to the key at `path` that are not there.
fn make_sections(table: &mut DeTable<'_>, path: &str) {
    let Some((section, rest)) = path.split_once('.') else { return };
    if !table.contains_key(section) {
        let empty = Spanned::new(0..0, DeValue::Table(DeTable::new()));
        table.insert(Spanned::new(0..0, section.to_owned().into()), empty);
    }
    if let Some(DeValue::Table(inner)) = table.get_mut(section).map(Spanned::get_mut) {
        make_sections(inner, rest);
    }
}

fn join(prefix: &str, key: &str) -> String {
    if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") }
}
