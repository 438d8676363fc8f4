//! Countries of addresses, from a MaxMind database (MaxMind DB file format specification, version 2.0).
//!
//! Two layouts are read: `country.iso_code` (GeoIP2, GeoLite2, DB-IP) and a flat `country_code` (the free databases of
//! ip-location-db). The `registered_country` is not consulted: it says where a network is registered, not where it is.
//!
//! A database is read whole and checked whole when it is opened: one that is damaged anywhere is refused, because the
//! addresses in the damaged part would silently have no country. What stays in memory is the search tree and one country
//! per record.

#[cfg(test)]
pub(crate) mod fixture;
mod prefixes;
#[cfg(test)]
mod tests;
mod tree;
mod watch;

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    fs::{self, File},
    io::{self, Read},
    net::IpAddr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use maxminddb::{LookupResult, MaxMindDbError, PathElement, Reader};

pub use self::watch::{FileWatch, Stamp};
use self::{
    prefixes::MAX_PREFIXES,
    tree::{Leaf, Tree},
};
use super::CountryCode;

/// Largest file that is read into memory; the largest city databases have some 150 MB.
const MAX_BYTES: u64 = 1 << 30;

/// A database in memory; a file that is replaced or truncated later does not matter.
pub struct GeoIp {
    path: PathBuf,
    stamp: Stamp,
    database_type: String,
    built_at: SystemTime,
    tree: Tree,
    /// By the record of the tree; `None` for records that name no country.
    countries: HashMap<u32, Option<CountryCode>>,
}

/// Why a file cannot serve as a GeoIP database.
#[derive(Debug, thiserror::Error)]
pub enum GeoIpError {
    /// Missing, not allowed to be read, or written to meanwhile.
    #[error("reading the GeoIP database {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Not in MaxMind's format, or cut off.
    #[error("{} is not a GeoIP database; firewall.geoip_db needs an .mmdb file, whole and unpacked", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// In MaxMind's format, but with a part that makes no sense.
    #[error("the GeoIP database {} is damaged; fetch it again", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// In MaxMind's format, but about something else.
    #[error(
        "the database {} ({database_type}) has no countries (neither country.iso_code nor country_code); \
         firewall.geoip_db needs a country or city database", .path.display()
    )]
    NoCountries {
        /// The file.
        path: PathBuf,
        /// What the file says of itself.
        database_type: String,
    },
    /// More than the kernel is given.
    #[error(
        "the blocked countries have more than {MAX_PREFIXES} prefixes in {}; block fewer, or use a country database",
        .path.display()
    )]
    TooManyPrefixes {
        /// The file.
        path: PathBuf,
    },
}

/// A record that cannot be decoded.
#[derive(Debug, thiserror::Error)]
#[error("the record of {network}")]
struct BadRecord {
    network: IpNet,
    source: MaxMindDbError,
}

impl GeoIp {
    /// Reads a database whole into memory, and checks it.
    ///
    /// # Errors
    /// See [`GeoIpError`].
    pub fn open(path: &Path) -> Result<Self, GeoIpError> {
        let (bytes, stamp) = read(path).map_err(|source| GeoIpError::Read { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes, path, stamp)
    }

    fn from_bytes(bytes: &[u8], path: &Path, stamp: Stamp) -> Result<Self, GeoIpError> {
        let format = |source: MaxMindDbError| GeoIpError::Format { path: path.to_owned(), source: source.into() };
        let reader = Reader::from_source(bytes).map_err(format)?;
        let metadata = reader.metadata();
        let mut geoip = Self {
            path: path.to_owned(),
            stamp,
            database_type: metadata.database_type.clone(),
            built_at: metadata.build_time().map_err(format)?,
            tree: Tree::new(bytes, metadata),
            countries: HashMap::new(),
        };
        geoip.countries = geoip.decode_all(&reader)?;
        // An ASN database opens just as well, and would silently block nobody.
        if geoip.countries.values().all(Option::is_none) {
            return Err(GeoIpError::NoCountries { path: geoip.path, database_type: geoip.database_type });
        }
        Ok(geoip)
    }

    fn decode_all(&self, reader: &Reader<&[u8]>) -> Result<HashMap<u32, Option<CountryCode>>, GeoIpError> {
        let mut countries = HashMap::new();
        for leaf in self.tree.leaves() {
            let Leaf { net, record } = leaf.map_err(|defect| self.damaged(defect))?;
            if let Entry::Vacant(entry) = countries.entry(record) {
                let decoded = reader.lookup(net.addr()).and_then(|found| decode(&found));
                entry.insert(decoded.map_err(|source| self.damaged(BadRecord { network: net, source }))?);
            }
        }
        Ok(countries)
    }

    /// The country of an address; IPv4-mapped IPv6 is asked for as IPv4. `None` when the database does not know the
    /// address, or does not name a country for it. Other IPv6 forms of IPv4 addresses, such as 6to4, have no country
    /// unless the database gives them one of their own.
    pub fn country(&self, ip: IpAddr) -> Option<CountryCode> {
        self.country_of(self.tree.find(ip.to_canonical())?)
    }

    fn country_of(&self, record: u32) -> Option<CountryCode> {
        self.countries.get(&record).copied().flatten()
    }

    fn damaged(&self, source: impl std::error::Error + Send + Sync + 'static) -> GeoIpError {
        GeoIpError::Damaged { path: self.path.clone(), source: source.into() }
    }

    /// What the database says that it is, such as `GeoLite2-Country`.
    pub fn database_type(&self) -> &str {
        &self.database_type
    }

    /// When the database was built, by its own account.
    pub fn built_at(&self) -> SystemTime {
        self.built_at
    }

    /// How long ago the database was built; nothing when that is in the future.
    pub fn age(&self, now: SystemTime) -> Duration {
        now.duration_since(self.built_at).unwrap_or_default()
    }

    /// The state of the file that was read, for [`FileWatch`].
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }
}

impl fmt::Debug for GeoIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GeoIp")
            .field("database_type", &self.database_type())
            .field("built_at", &self.built_at)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> io::Result<(Vec<u8>, Stamp)> {
    // Before the file is opened, because opening a pipe waits for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let file = File::open(path)?;
    let before = file.metadata()?;
    if before.len() > MAX_BYTES {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 GiB"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(before.len()).map_err(io::Error::other)?);
    (&file).take(MAX_BYTES).read_to_end(&mut bytes)?;
    let stamp = Stamp::from(&before);
    if Stamp::from(&file.metadata()?) != stamp {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "it is being written; replace it by renaming a new one",
        ));
    }
    Ok((bytes, stamp))
}

fn decode(found: &LookupResult<'_, &[u8]>) -> Result<Option<CountryCode>, MaxMindDbError> {
    let text = |path: &[PathElement<'_>]| match found.decode_path::<&str>(path) {
        // Something else of that name, in a layout that is not this one.
        Err(MaxMindDbError::Decoding { .. }) => Ok(None),
        result => result,
    };
    let nested = text(&[PathElement::Key("country"), PathElement::Key("iso_code")])?;
    let code = match nested {
        Some(code) => Some(code),
        None => text(&[PathElement::Key("country_code")])?,
    };
    // Some databases have "" or "-" for addresses of no country.
    Ok(code.and_then(|code| code.parse().ok()))
}
