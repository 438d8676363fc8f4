//! Builds hellos, well-formed and not, and cuts them into records.

pub(crate) const SERVER_NAME: u16 = 0;
pub(crate) const SUPPORTED_GROUPS: u16 = 10;
pub(crate) const SIGNATURE_ALGORITHMS: u16 = 13;
pub(crate) const ALPN: u16 = 16;
pub(crate) const PADDING: u16 = 21;
pub(crate) const SUPPORTED_VERSIONS: u16 = 43;

/// The fields of a ClientHello, each as it goes onto the wire between its length prefixes.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) version: u16,
    pub(crate) session_id: Vec<u8>,
    pub(crate) cipher_suites: Vec<u8>,
    pub(crate) compression_methods: Vec<u8>,
    /// `None`: the hello ends before the block.
    pub(crate) extensions: Option<Vec<(u16, Vec<u8>)>>,
}

impl Hello {
    /// What rustls accepts, with the server name last.
    pub(crate) fn new(name: Option<&[u8]>) -> Self {
        let mut extensions =
            vec![(SUPPORTED_GROUPS, vec![0, 2, 0, 29]), (SIGNATURE_ALGORITHMS, vec![0, 4, 4, 3, 8, 4])];
        extensions.extend(name.map(|name| (SERVER_NAME, server_name(name))));
        Self {
            version: 0x0303,
            session_id: vec![7; 32],
            cipher_suites: vec![0x13, 1, 0xc0, 0x2f],
            compression_methods: vec![0],
            extensions: Some(extensions),
        }
    }

    pub(crate) fn with_extensions(extensions: Vec<(u16, Vec<u8>)>) -> Self {
        Self { extensions: Some(extensions), ..Self::new(None) }
    }

    /// Pads to a message of `len` bytes, in front of the other extensions.
    pub(crate) fn padded_to(mut self, len: usize) -> Self {
        let missing = len.checked_sub(self.message().len() + 4).expect("room for the padding");
        self.extensions.as_mut().expect("a block to pad").insert(0, (PADDING, vec![0; missing]));
        self
    }

    /// The handshake message.
    pub(crate) fn message(&self) -> Vec<u8> {
        let mut body = self.version.to_be_bytes().to_vec();
        body.extend([42; 32]);
        push_vec8(&mut body, &self.session_id);
        push_vec16(&mut body, &self.cipher_suites);
        push_vec8(&mut body, &self.compression_methods);
        if let Some(extensions) = &self.extensions {
            let mut block = Vec::new();
            for (kind, data) in extensions {
                block.extend(kind.to_be_bytes());
                push_vec16(&mut block, data);
            }
            push_vec16(&mut body, &block);
        }
        handshake(1, &body)
    }
}

/// The extension's data with one `host_name`.
pub(crate) fn server_name(name: &[u8]) -> Vec<u8> {
    server_names(&[(0, name)])
}

pub(crate) fn server_names(names: &[(u8, &[u8])]) -> Vec<u8> {
    let mut list = Vec::new();
    for (kind, name) in names {
        list.push(*kind);
        push_vec16(&mut list, name);
    }
    let mut data = Vec::new();
    push_vec16(&mut data, &list);
    data
}

/// The extension's data.
pub(crate) fn alpn(names: &[&[u8]]) -> Vec<u8> {
    let mut list = Vec::new();
    for name in names {
        push_vec8(&mut list, name);
    }
    let mut data = Vec::new();
    push_vec16(&mut data, &list);
    data
}

/// The extension's data.
pub(crate) fn supported_versions(versions: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    push_vec8(&mut data, &versions.iter().flat_map(|version| version.to_be_bytes()).collect::<Vec<_>>());
    data
}

pub(crate) fn handshake(kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("a message of less than 4 GiB").to_be_bytes();
    [&[kind], &len[1..], body].concat()
}

pub(crate) fn record(kind: u8, fragment: &[u8]) -> Vec<u8> {
    let mut record = vec![kind, 3, 1];
    push_vec16(&mut record, fragment);
    record
}

/// The message in records of `size` bytes.
pub(crate) fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|fragment| record(22, fragment)).collect()
}

fn push_vec8(to: &mut Vec<u8>, data: &[u8]) {
    to.push(data.len().try_into().expect("a vector of up to 255 bytes"));
    to.extend(data);
}

fn push_vec16(to: &mut Vec<u8>, data: &[u8]) {
    to.extend(u16::try_from(data.len()).expect("a vector of up to 65535 bytes").to_be_bytes());
    to.extend(data);
}
