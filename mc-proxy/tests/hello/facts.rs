//! What a hello offers: application protocols and versions.

use mc_proxy::tls::{
    ClientHello, ClientHelloReader,
    HelloError::{self, *},
    Progress,
};

use crate::{
    check::client_hello::check,
    wire::{ALPN, Hello, PADDING, SUPPORTED_VERSIONS, alpn, record, records, supported_versions},
};

fn read(extensions: &[(u16, Vec<u8>)]) -> Result<ClientHello, HelloError> {
    let mut hello = Hello::new(Some(b"a.example"));
    hello.extensions.as_mut().expect("a block").extend_from_slice(extensions);
    match check(&record(22, &hello.message())) {
        Progress::Complete(hello) => Ok(hello),
        Progress::Invalid(error) => Err(error),
        Progress::Incomplete => panic!("incomplete"),
    }
}

fn offered(data: Vec<u8>) -> Result<String, HelloError> {
    read(&[(ALPN, data)]).map(|hello| hello.alpn.to_string())
}

fn versions(data: Vec<u8>) -> Result<String, HelloError> {
    read(&[(SUPPORTED_VERSIONS, data)]).map(|hello| hello.versions.to_string())
}

#[test]
fn application_protocols() {
    assert_eq!(read(&[]).unwrap().alpn.to_string(), "");
    assert!(read(&[]).unwrap().alpn.is_empty());
    assert_eq!(offered(alpn(&[b"h2", b"http/1.1"])).as_deref(), Ok("h2,http/1.1"));
    assert_eq!(offered(alpn(&[b"acme-tls/1"])).as_deref(), Ok("acme-tls/1"));
    assert_eq!(offered(alpn(&[&[b'x'; 255]])), Ok("x".repeat(255)));
    let twice = [(ALPN, alpn(&[b"h2"])), (PADDING, vec![]), (ALPN, alpn(&[b"h2"]))];
    assert_eq!(read(&twice), Err(AlpnRepeated));
}

#[test]
fn a_list_that_is_none_is_refused() {
    for data in [
        vec![],
        vec![0],
        alpn(&[]),
        alpn(&[b""]),
        alpn(&[b"h2", b""]),
        alpn(&[b"", b"h2"]),
        [alpn(&[b"h2"]), vec![0]].concat(),
        vec![0, 4, 2, b'h', b'2', 1],
        vec![0, 2, 2, b'h', b'2'],
        vec![0, 9, 2, b'h', b'2'],
    ] {
        assert_eq!(offered(data.clone()), Err(AlpnMalformed), "{data:?}");
    }
    let good = alpn(&[b"h2", b"http/1.1"]);
    for len in 0..good.len() {
        assert_eq!(offered(good[..len].to_vec()), Err(AlpnMalformed), "{len}");
    }
}

#[test]
fn versions_offered() {
    assert_eq!(versions(supported_versions(&[0x2a2a, 0x0304, 0x0303])).as_deref(), Ok("1.3,1.2"));
    assert_eq!(versions(supported_versions(&[0x0303, 0x0304])).as_deref(), Ok("1.3,1.2"));
    assert_eq!(versions(supported_versions(&[0x0304])).as_deref(), Ok("1.3"));
    for data in
        [vec![], vec![0], vec![1, 3], vec![3, 3, 4, 3], vec![2, 3], [supported_versions(&[0x0304]), vec![0]].concat()]
    {
        assert_eq!(versions(data.clone()), Err(VersionsMalformed), "{data:?}");
    }
    let twice = (SUPPORTED_VERSIONS, supported_versions(&[0x0304]));
    assert_eq!(read(&[twice.clone(), twice]), Err(VersionsRepeated));
}

#[test]
fn without_the_extension_the_version_of_the_hello_counts() {
    for (version, text) in [(0x0303, "1.2"), (0x0302, "1.1"), (0x0301, "1.0"), (0x0300, "ssl3"), (0x0304, "1.2")] {
        let hello = Hello { version, ..Hello::new(Some(b"a.example")) };
        for hello in [hello.clone(), Hello { extensions: None, ..hello }] {
            let Progress::Complete(read) = check(&record(22, &hello.message())) else { panic!("{version:#06x}") };
            assert_eq!(read.versions.to_string(), text);
        }
    }
}

#[test]
fn every_strict_prefix_is_incomplete() {
    let mut hello = Hello::new(Some(b"a.example"));
    let extensions = hello.extensions.as_mut().unwrap();
    extensions.push((ALPN, alpn(&[b"h2", b"http/1.1"])));
    extensions.push((SUPPORTED_VERSIONS, supported_versions(&[0x0304, 0x0303])));
    for size in [1, 7, 400] {
        let wire = records(&hello.message(), size);
        let mut reader = ClientHelloReader::new();
        for len in 0..wire.len() {
            assert_eq!(reader.advance(&wire[..len]), Progress::Incomplete, "{len}");
        }
        let Progress::Complete(read) = reader.advance(&wire) else { panic!("{size}") };
        assert_eq!((read.alpn.to_string().as_str(), read.versions.to_string().as_str()), ("h2,http/1.1", "1.3,1.2"));
    }
}
