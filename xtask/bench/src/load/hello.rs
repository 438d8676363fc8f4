//! The ClientHello that opens every connection, and what it asks the backend to do.
//!
//! A proxy sees a hello as a browser sends it: 517 bytes, padded, with a server name. The backend recognises its own by
//! the hello's random field, which also says how to serve the connection; after the hello only raw bytes pass, so that
//! no cryptography is in the path.

/// The server name in every hello.
pub(crate) const SERVER_NAME: &str = "bench.test";
/// Bytes of a hello: the size that browsers pad theirs to.
pub(crate) const HELLO_LEN: usize = 517;
/// As much of a hello as the backend looks at: record and handshake header, version, the start of the random field.
pub(crate) const HEAD_LEN: usize = 19;

const MAGIC: [u8; 2] = *b"BN";
const RECORD_HEADER_LEN: usize = 5;
const HANDSHAKE_HEADER_LEN: usize = 4;
const RANDOM_AT: usize = 11;

/// What the backend does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Discards what comes.
    Sink,
    /// Sends until the peer goes away.
    Source,
    /// Sends back what comes.
    Echo,
    /// Sends this many bytes, then closes.
    Answer(u32),
    /// Sends one byte and stays open.
    Hold,
    /// Does what the requests say that follow (see `turns`).
    Turns,
}

impl Service {
    fn code(self) -> (u8, u32) {
        match self {
            Self::Sink => (b'U', 0),
            Self::Source => (b'D', 0),
            Self::Echo => (b'E', 0),
            Self::Answer(bytes) => (b'R', bytes),
            Self::Hold => (b'I', 0),
            Self::Turns => (b'T', 0),
        }
    }

    fn from_code(code: u8, bytes: u32) -> Option<Self> {
        match code {
            b'U' => Some(Self::Sink),
            b'D' => Some(Self::Source),
            b'E' => Some(Self::Echo),
            b'R' => Some(Self::Answer(bytes)),
            b'I' => Some(Self::Hold),
            b'T' => Some(Self::Turns),
            _ => None,
        }
    }
}

/// The first bytes of a hello, read back by the backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// `None`: not one of ours.
    pub(crate) service: Option<Service>,
    /// Bytes of the hello, its record header included.
    pub(crate) hello_len: usize,
}

impl Head {
    /// Reads the head of a hello.
    pub(crate) fn parse(head: &[u8; HEAD_LEN]) -> Self {
        let hello_len = RECORD_HEADER_LEN + usize::from(u16::from_be_bytes([head[3], head[4]]));
        let is_ours = head[0] == 22 && head[RANDOM_AT..RANDOM_AT + 2] == MAGIC;
        let bytes = u32::from_be_bytes([head[15], head[16], head[17], head[18]]);
        let service = if is_ours { Service::from_code(head[RANDOM_AT + 2], bytes) } else { None };
        Self { service, hello_len }
    }
}

/// Builds the hello that asks for `service` (RFC 8446 §4.1.2, in one record).
pub(crate) fn client_hello(service: Service) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend(random(service));
    body.push(32);
    body.extend([0x5a; 32]); // session id
    let ciphers: [u16; 7] = [0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030];
    put_u16(&mut body, 2 * ciphers.len());
    body.extend(ciphers.iter().flat_map(|cipher| cipher.to_be_bytes()));
    body.extend([1, 0]); // no compression

    let mut extensions = extensions();
    let without_padding = RECORD_HEADER_LEN + HANDSHAKE_HEADER_LEN + body.len() + 2 + extensions.len();
    let padding = HELLO_LEN.saturating_sub(without_padding + 4);
    extension(&mut extensions, 21, &vec![0; padding]);
    put_u16(&mut body, extensions.len());
    body.extend(extensions);

    let mut hello = vec![22, 3, 1];
    put_u16(&mut hello, HANDSHAKE_HEADER_LEN + body.len());
    hello.extend([1, 0]); // client_hello, and the high byte of its length
    put_u16(&mut hello, body.len());
    hello.extend(body);
    hello
}

fn random(service: Service) -> [u8; 32] {
    let (code, bytes) = service.code();
    let mut random = [0xa5; 32];
    random[..2].copy_from_slice(&MAGIC);
    random[2] = code;
    random[4..8].copy_from_slice(&bytes.to_be_bytes());
    random
}

fn extensions() -> Vec<u8> {
    let mut all = Vec::new();
    let mut names = Vec::new();
    put_u16(&mut names, SERVER_NAME.len() + 3);
    names.push(0);
    put_u16(&mut names, SERVER_NAME.len());
    names.extend(SERVER_NAME.as_bytes());
    extension(&mut all, 0, &names); // server_name
    extension(&mut all, 10, &[0, 2, 0, 29]); // supported_groups: x25519
    extension(&mut all, 11, &[1, 0]); // ec_point_formats
    extension(&mut all, 13, &[0, 6, 4, 3, 8, 4, 4, 1]); // signature_algorithms
    extension(&mut all, 16, b"\0\x0c\x02h2\x08http/1.1"); // application_layer_protocol_negotiation
    extension(&mut all, 43, &[4, 3, 4, 3, 3]); // supported_versions
    extension(&mut all, 45, &[1, 1]); // psk_key_exchange_modes
    let mut share = vec![0, 36, 0, 29, 0, 32];
    share.extend([0x42; 32]);
    extension(&mut all, 51, &share); // key_share
    all
}

fn extension(all: &mut Vec<u8>, kind: usize, content: &[u8]) {
    put_u16(all, kind);
    put_u16(all, content.len());
    all.extend(content);
}

/// Appends a number that the layout of a hello keeps under 65,536.
fn put_u16(all: &mut Vec<u8>, value: usize) {
    let value = u16::try_from(value).expect("a hello's lengths fit 16 bits");
    all.extend(value.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICES: [Service; 6] =
        [Service::Sink, Service::Source, Service::Echo, Service::Answer(0x0102_0304), Service::Hold, Service::Turns];

    fn head_of(hello: &[u8]) -> Head {
        Head::parse(hello[..HEAD_LEN].try_into().unwrap())
    }

    #[test]
    fn every_service_survives_the_hello() {
        for service in SERVICES {
            let hello = client_hello(service);
            assert_eq!(head_of(&hello), Head { service: Some(service), hello_len: HELLO_LEN });
            assert_eq!(hello.len(), HELLO_LEN);
        }
    }

    #[test]
    fn lengths_nest() {
        let hello = client_hello(Service::Echo);
        let u16_at = |at: usize| usize::from(u16::from_be_bytes([hello[at], hello[at + 1]]));
        assert_eq!(u16_at(3), HELLO_LEN - 5, "record");
        assert_eq!(u16_at(7), HELLO_LEN - 9, "handshake");
        let extensions = 9 + 2 + 32 + 33 + 2 + 14 + 2;
        assert_eq!(u16_at(extensions), HELLO_LEN - extensions - 2, "extensions");
        let (mut at, mut names) = (extensions + 2, Vec::new());
        while at < hello.len() {
            let len = u16_at(at + 2);
            if u16_at(at) == 0 {
                names.push(hello[at + 9..at + 4 + len].to_vec());
            }
            at += 4 + len;
        }
        assert_eq!(at, hello.len(), "the last extension ends the hello");
        assert_eq!(names, [SERVER_NAME.as_bytes()]);
    }

    #[test]
    fn strangers_are_recognised() {
        let mut hello = client_hello(Service::Echo);
        hello[RANDOM_AT] = b'X';
        assert_eq!(head_of(&hello).service, None);
        let mut hello = client_hello(Service::Echo);
        hello[RANDOM_AT + 2] = b'?';
        assert_eq!(head_of(&hello).service, None);
    }
}
