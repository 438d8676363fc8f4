//! What is kept of a PROXY header's TLVs for as long as the connection lives: what is logged and passed on.

use crate::proxy_header::Tlvs;

/// Values are kept up to this length, in bytes: as long as names in DNS, ALPN and certificates (RFC 5280: 64) can be, so
/// that a header of 16 KiB does not cost as much memory for as long as its connection lives.
const KEPT: usize = 255;

/// Every value is of [`KEPT`] bytes at most; longer ones are treated as absent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The application protocol in use.
    pub(super) alpn: Option<Box<[u8]>>,
    /// The name that the client asked for.
    pub(super) authority: Option<Box<str>>,
    /// The sender's name for the connection; never empty.
    pub(super) unique_id: Option<Box<[u8]>>,
    /// The client's version of TLS, as `TLSv1.3`.
    pub(super) tls: Option<Box<str>>,
    /// That of a client certificate which the sender has verified.
    pub(super) common_name: Option<Box<[u8]>>,
}

impl Told {
    /// `None` when there is nothing to keep.
    pub(super) fn of(tlvs: Tlvs) -> Option<Self> {
        let Tlvs { alpn, authority, unique_id, ssl } = tlvs;
        let is_verified = ssl.as_ref().is_some_and(|ssl| ssl.is_verified());
        let (tls, common_name) = ssl.map(|ssl| (ssl.version, ssl.common_name)).unwrap_or_default();
        let told = Self {
            alpn: alpn.filter(|name| name.len() <= KEPT),
            authority: authority.filter(|name| name.len() <= KEPT),
            unique_id: unique_id.filter(|id| (1..=KEPT).contains(&id.len())),
            tls: tls.filter(|version| version.len() <= KEPT),
            common_name: common_name.filter(|name| is_verified && name.len() <= KEPT),
        };
        (told != Self::default()).then_some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy_header::Ssl;

    fn tlvs(len: usize, verify: u32) -> Tlvs {
        let ssl =
            Ssl { client: 7, verify, version: Some("v".repeat(len).into()), common_name: Some(vec![0xe9; len].into()) };
        Tlvs {
            alpn: Some(vec![b'a'; len].into()),
            authority: Some("n".repeat(len).into()),
            unique_id: Some(vec![0; len.min(128)].into()),
            ssl: Some(Box::new(ssl)),
        }
    }

    #[test]
    fn what_is_used_is_kept_and_no_more() {
        let told = Told::of(tlvs(KEPT, 0)).unwrap();
        assert_eq!(told.alpn.as_deref(), Some([b'a'; KEPT].as_slice()));
        assert_eq!((told.authority.unwrap().len(), told.tls.unwrap().len()), (KEPT, KEPT));
        assert_eq!(told.common_name.as_deref(), Some([0xe9; KEPT].as_slice()));
        assert_eq!(told.unique_id.unwrap().len(), 128);

        let only_id = Told { unique_id: Some(vec![0; 128].into()), ..Told::default() };
        assert_eq!(Told::of(tlvs(KEPT + 1, 0)), Some(only_id));
        assert_eq!(Told::of(tlvs(1, 1)).unwrap().common_name, None, "not verified");
        assert_eq!(Told::of(Tlvs { unique_id: Some(Box::default()), ..Tlvs::default() }), None);
    }
}
