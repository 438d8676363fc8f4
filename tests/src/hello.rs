//! ClientHellos (RFC 8446 §4.1.2) byte by byte: for what no TLS library would send.

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_PADDING: u16 = 21;

/// A ClientHello that is being made.
#[derive(Clone, Debug)]
pub struct Hello {
    server_name: Option<Vec<u8>>,
    extra: Vec<(u16, Vec<u8>)>,
    size: usize,
}

impl Hello {
    /// Asks for `name`, whatever bytes these are.
    pub fn to(name: impl AsRef<[u8]>) -> Self {
        Self { server_name: Some(name.as_ref().to_owned()), extra: Vec::new(), size: 0 }
    }

    /// Has no `server_name` extension.
    pub fn without_name() -> Self {
        Self { server_name: None, extra: Vec::new(), size: 0 }
    }

    /// Offers application protocols (RFC 7301); none of them is no offer.
    pub fn offering(self, names: &[&str]) -> Self {
        if names.is_empty() {
            return self;
        }
        let entry = |name: &&str| {
            let length = u8::try_from(name.len()).expect("a protocol's name has at most 255 bytes");
            [&[length], name.as_bytes()].concat()
        };
        let list = names.iter().flat_map(entry).collect::<Vec<_>>();
        self.with_extension(EXTENSION_ALPN, &prefixed(&list))
    }

    /// With an extension of any kind and content.
    pub fn with_extension(mut self, kind: u16, data: &[u8]) -> Self {
        self.extra.push((kind, data.to_vec()));
        self
    }

    /// Padded (RFC 7685) so that the handshake message has at least `size` bytes. The padding comes first and the
    /// name last: whoever reads only a part of it does not see the name.
    pub fn padded_to(mut self, size: usize) -> Self {
        self.size = size;
        self
    }

    /// The handshake message.
    pub fn message(&self) -> Vec<u8> {
        let bare = self.with_padding(None);
        match self.size.checked_sub(bare.len() + 4) {
            Some(padding) => self.with_padding(Some(padding)),
            None => bare,
        }
    }

    /// The message in as few records as it needs.
    pub fn bytes(&self) -> Vec<u8> {
        self.records_of(16_384)
    }

    /// The message in records of at most `size` bytes.
    pub fn records_of(&self, size: usize) -> Vec<u8> {
        self.message().chunks(size).flat_map(record).collect()
    }

    /// The message in two records, the second beginning in the middle of the name.
    pub fn cut_in_the_name(&self) -> Vec<u8> {
        let message = self.message();
        let name = self.server_name.as_ref().map_or(0, Vec::len);
        let (first, second) = message.split_at(message.len() - name / 2 - 1);
        [record(first), record(second)].concat()
    }

    fn with_padding(&self, padding: Option<usize>) -> Vec<u8> {
        let mut extensions = Vec::new();
        // supported_versions: TLS 1.3 and 1.2; supported_groups: x25519; signature_algorithms: ecdsa_secp256r1_sha256.
        extensions.extend(extension(43, &[4, 0x03, 0x04, 0x03, 0x03]));
        extensions.extend(extension(10, &[0, 2, 0x00, 0x1d]));
        extensions.extend(extension(13, &[0, 2, 0x04, 0x03]));
        for (kind, data) in &self.extra {
            extensions.extend(extension(*kind, data));
        }
        if let Some(length) = padding {
            extensions.extend(extension(EXTENSION_PADDING, &vec![0; length]));
        }
        if let Some(name) = &self.server_name {
            // One entry of type host_name (RFC 6066 §3).
            let entry = [&[0][..], &prefixed(name)].concat();
            extensions.extend(extension(EXTENSION_SERVER_NAME, &prefixed(&entry)));
        }

        let mut body = vec![0x03, 0x03];
        body.extend([0x5a; 32]);
        body.push(32);
        body.extend([0xa5; 32]);
        body.extend(prefixed(&[0x13, 0x01, 0xc0, 0x2b]));
        body.extend([1, 0]);
        body.extend(prefixed(&extensions));

        let [_, high, middle, low] = u32::try_from(body.len()).expect("a hello has at most 64 KiB").to_be_bytes();
        [&[1, high, middle, low][..], &body].concat()
    }
}

/// One TLS record of type handshake.
pub fn record(fragment: &[u8]) -> Vec<u8> {
    [&[22, 0x03, 0x01][..], &prefixed(fragment)].concat()
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &prefixed(data)].concat()
}

/// `bytes` after their length as two bytes.
fn prefixed(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("vectors of a hello have at most 65,535 bytes");
    [&length.to_be_bytes()[..], bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_padded_hello_has_the_size_asked_for_and_ends_with_the_name() {
        for size in [300, 20_000, 60_000] {
            let message = Hello::to("app.example.com").padded_to(size).message();
            assert_eq!(message.len(), size);
            assert!(message.ends_with(b"app.example.com"));
            let length = message[1..4].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            assert_eq!(length, message.len() - 4);
        }
    }

    #[test]
    fn records_carry_the_message_unchanged() {
        let hello = Hello::to("app.example.com").padded_to(20_000);
        for bytes in [hello.bytes(), hello.records_of(1), hello.records_of(16), hello.cut_in_the_name()] {
            let mut rest = bytes.as_slice();
            let mut message = Vec::new();
            while let [22, 3, 1, high, low, tail @ ..] = rest {
                let (fragment, after) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])));
                message.extend_from_slice(fragment);
                rest = after;
            }
            assert!(rest.is_empty());
            assert_eq!(message, hello.message());
        }
    }
}
