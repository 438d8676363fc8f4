//! The ClientHello reader against itself (whole and in pieces) and against rustls.

use rustls::server::Acceptor;

use crate::tls::{AlpnOffer, ClientHelloReader, HelloError, KEPT_BYTES, MAX_WIRE, Progress, ServerNameError};

/// What rustls, a strict server, makes of the same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Oracle {
    /// It asks for more.
    Incomplete,
    /// It would go on with the handshake.
    Accepted(Accepted),
    /// It answers with an alert.
    Refused,
}

/// What rustls has read of a hello that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Lower case, its dot kept, `None` for an address.
    pub server_name: Option<String>,
    /// In the client's order.
    pub alpn: Vec<Vec<u8>>,
}

/// # Panics
/// When the reader disagrees with itself, or with rustls where the two have to agree.
pub fn check(wire: &[u8]) -> Progress {
    let whole = ClientHelloReader::new().advance(wire);
    // Byte by byte, but for inputs so long that it would slow the fuzzer down.
    let step = if wire.len() <= 4096 { 1 } else { wire.len() / 512 };
    check_pieces(wire, &whole, |_| step);
    check_pieces(wire, &whole, |at| 1 + usize::from(wire[at]) * 7 % 61 * step);
    if whole == Progress::Incomplete {
        assert!(wire.len() < MAX_WIRE, "still incomplete at {} bytes", wire.len());
    }
    check_oracle(&whole, &acceptor(wire));
    whole
}

/// What `Acceptor` says.
pub fn acceptor(wire: &[u8]) -> Oracle {
    let mut acceptor = Acceptor::default();
    let mut rest = wire;
    while !rest.is_empty() {
        if acceptor.read_tls(&mut rest).is_err() {
            return Oracle::Refused;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                let hello = accepted.client_hello();
                return Oracle::Accepted(Accepted {
                    server_name: hello.server_name().map(str::to_owned),
                    alpn: hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
                });
            }
            Err(_) => return Oracle::Refused,
        }
    }
    Oracle::Incomplete
}

/// However the bytes were cut on their way, the outcome is the same, and does not change with what follows.
fn check_pieces(wire: &[u8], whole: &Progress, step: impl Fn(usize) -> usize) {
    let mut reader = ClientHelloReader::new();
    let mut received = 0;
    let mut last = Progress::Incomplete;
    while received < wire.len() {
        received = (received + step(received)).min(wire.len());
        let progress = reader.advance(&wire[..received]);
        assert!(last == Progress::Incomplete || progress == last, "{last:?} became {progress:?} at {received}");
        last = progress;
    }
    assert_eq!(&last, whole, "in pieces and whole");
}

/// rustls refuses more than we do (it wants `signature_algorithms`, and reads every extension); it must not accept what
/// we cannot read, must not read another name, and must not wait when we do not, nor we when it does not.
fn check_oracle(ours: &Progress, oracle: &Oracle) {
    match (ours, oracle) {
        (Progress::Incomplete, Oracle::Incomplete)
        | (Progress::Complete(_) | Progress::Invalid(_), Oracle::Refused) => {}
        (Progress::Complete(hello), Oracle::Accepted(theirs)) => {
            let folded = theirs.server_name.as_deref().map(|name| name.strip_suffix('.').unwrap_or(name));
            assert_eq!(hello.server_name.as_ref().map(|name| name.as_str()), folded, "the names differ");
            let (kept, offered) = (hello.alpn.names().collect::<Vec<_>>(), &theirs.alpn);
            assert!(offered.iter().zip(&kept).all(|(offered, kept)| offered == kept), "{kept:?} of {offered:?}");
            let bytes = |names: usize| offered.iter().take(names).map(|name| 1 + name.len()).sum::<usize>();
            let is_all = kept.len() == offered.len();
            assert!(bytes(kept.len()) <= KEPT_BYTES && (is_all || bytes(kept.len() + 1) > KEPT_BYTES), "{kept:?}");
            assert_eq!(hello.alpn, AlpnOffer::of(offered), "the offer is that of its names");
            let text = hello.alpn.to_string();
            assert!(text.chars().all(|c| c.is_ascii_graphic() || c == '…'), "{text:?}");
            assert_eq!(text.split(',').count(), kept.len().max(1) + usize::from(!is_all), "{text:?}");
        }
        (Progress::Invalid(error), Oracle::Accepted(_) | Oracle::Incomplete) => {
            assert!(is_stricter_than_rustls(*error), "{error:?} but rustls says {oracle:?}");
        }
        (Progress::Incomplete, Oracle::Accepted(_) | Oracle::Refused) | (Progress::Complete(_), Oracle::Incomplete) => {
            panic!("{ours:?} but rustls says {oracle:?}");
        }
    }
}

/// What we refuse, or refuse before rustls does.
fn is_stricter_than_rustls(error: HelloError) -> bool {
    match error {
        // rustls waits for the end of a record header, of a record and of a message before it judges them.
        HelloError::NotTls
        | HelloError::RecordVersion
        | HelloError::UnexpectedRecord
        | HelloError::NotClientHello
        | HelloError::TooLong
        | HelloError::TrailingHandshake
        // rustls allows a record 2 KiB more, as for ciphertext, and counts no records.
        | HelloError::RecordTooLong
        | HelloError::TooManyRecords
        // rustls ignores what follows a name if its type is not host_name, and takes an address for no name.
        | HelloError::ServerNameMany
        | HelloError::ServerName(ServerNameError::IpLiteral) => true,
        HelloError::EmptyRecord
        | HelloError::Malformed
        | HelloError::ServerNameMalformed
        | HelloError::ServerNameRepeated
        | HelloError::ServerNameType
        | HelloError::AlpnMalformed
        | HelloError::AlpnRepeated
        | HelloError::VersionsMalformed
        | HelloError::VersionsRepeated
        | HelloError::ServerName(ServerNameError::Empty | ServerNameError::Nul | ServerNameError::NotDns) => false,
    }
}
