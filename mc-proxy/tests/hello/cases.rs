use mc_proxy::tls::{
    ClientHelloReader,
    HelloError::{self, *},
    MAX_HELLO, MAX_RECORDS, MAX_WIRE, Progress, ServerNameError,
};

use crate::{
    check::client_hello::check,
    wire::{self, Hello, PADDING, SERVER_NAME, record, records},
};

fn outcome(wire: &[u8]) -> Result<Option<String>, HelloError> {
    match check(wire) {
        Progress::Complete(hello) => Ok(hello.server_name.map(|name| name.to_string())),
        Progress::Invalid(error) => Err(error),
        Progress::Incomplete => panic!("incomplete"),
    }
}

fn outcome_of(hello: &Hello) -> Result<Option<String>, HelloError> {
    outcome(&record(22, &hello.message()))
}

fn named(name: &[u8]) -> Result<Option<String>, HelloError> {
    outcome_of(&Hello::new(Some(name)))
}

fn a_example() -> Result<Option<String>, HelloError> {
    Ok(Some("a.example".to_owned()))
}

#[test]
fn records_of_every_size() {
    let plain = Hello::new(Some(b"a.example"));
    // X25519MLKEM768 brings a hello to 1.4-1.8 KB.
    let post_quantum = plain.clone().padded_to(1800);
    for size in [1, 2, 3, 4, 5, 16, 100, 512, 1799, 1800] {
        assert_eq!(outcome(&records(&plain.message(), size)), a_example(), "{size}");
        assert_eq!(outcome(&records(&post_quantum.message(), size)), a_example(), "{size}");
    }
    for len in [8_000, 15_900, 16_384, 20_000, 60_000, 61_440] {
        let message = plain.clone().padded_to(len).message();
        for size in [16, 512, 4096, 16_384] {
            assert_eq!(outcome(&records(&message, size)), a_example(), "{len} in {size}");
        }
    }
}

#[test]
fn name_in_the_second_of_two_records() {
    let message = Hello::new(Some(b"a.example")).padded_to(1800).message();
    for first in [1, 2, 3, 4, 5, 1000, 1780, 1790, 1799] {
        let (head, tail) = message.split_at(first);
        assert_eq!(outcome(&[record(22, head), record(22, tail)].concat()), a_example(), "{first}");
    }
}

#[test]
fn every_strict_prefix_is_incomplete() {
    let message = Hello::new(Some(b"a.example")).padded_to(700).message();
    for size in [1, 16, 100, 700] {
        let wire = records(&message, size);
        let mut reader = ClientHelloReader::new();
        for len in 0..wire.len() {
            assert_eq!(ClientHelloReader::new().advance(&wire[..len]), Progress::Incomplete, "{len}");
            assert_eq!(reader.advance(&wire[..len]), Progress::Incomplete, "{len} by one reader");
        }
        assert!(matches!(reader.advance(&wire), Progress::Complete(_)));
    }
}

#[test]
fn bytes_after_the_hello_are_left_alone() {
    let hello = record(22, &Hello::new(Some(b"a.example")).message());
    for rest in [record(20, &[1]), record(23, &[0; 500]), b"noise".to_vec(), record(22, &[1]), vec![22]] {
        assert_eq!(outcome(&[hello.clone(), rest].concat()), a_example());
    }
}

#[test]
fn no_name_is_not_an_error() {
    assert_eq!(outcome_of(&Hello::new(None)), Ok(None));
    assert_eq!(outcome_of(&Hello::with_extensions(vec![])), Ok(None), "an empty block");
    assert_eq!(outcome_of(&Hello { extensions: None, ..Hello::new(None) }), Ok(None), "no block");
    let old = Hello::with_extensions(vec![(SERVER_NAME, wire::server_name(b"a.example"))]);
    assert_eq!(outcome_of(&old), a_example(), "no signature_algorithms");
}

#[test]
fn names() {
    use ServerNameError::{Empty, IpLiteral, NotDns, Nul};
    assert_eq!(named(b"A.Example"), a_example());
    assert_eq!(named(b"a.example."), a_example());
    for (name, error) in [
        (b"".as_slice(), Empty),
        (b".", Empty),
        (b"a.example\0.evil", Nul),
        (b"192.0.2.1", IpLiteral),
        (b"2001:db8::1", IpLiteral),
        (b"a..example", NotDns),
        (b"a.example..", NotDns),
        (b"\xff\xfe", NotDns),
        (b"a example", NotDns),
    ] {
        assert_eq!(named(name), Err(ServerName(error)), "{name:?}");
    }
}

#[test]
fn server_name_extensions() {
    let extension = |data: Vec<u8>| outcome_of(&Hello::with_extensions(vec![(SERVER_NAME, data)]));
    let name = b"a.example".as_slice();
    assert_eq!(extension(wire::server_names(&[(0, name)])), a_example());
    assert_eq!(extension(wire::server_names(&[(0, name), (0, name)])), Err(ServerNameMany));
    assert_eq!(extension(wire::server_names(&[(0, name), (1, name)])), Err(ServerNameMany));
    assert_eq!(extension(wire::server_names(&[(1, name)])), Err(ServerNameType));
    assert_eq!(extension(wire::server_names(&[])), Err(ServerNameMalformed), "an empty list");
    assert_eq!(extension(vec![]), Err(ServerNameMalformed), "the form that servers answer with");
    assert_eq!(extension([wire::server_name(name), vec![0]].concat()), Err(ServerNameMalformed));
    assert_eq!(extension(vec![0, 5, 0, 0, 9, b'a', b'b']), Err(ServerNameMalformed));
    assert_eq!(extension(vec![0, 4, 0, 0, 9, b'a']), Err(ServerNameMalformed), "a name beyond its list");

    let twice = vec![(SERVER_NAME, wire::server_name(name)), (PADDING, vec![]), (SERVER_NAME, wire::server_name(name))];
    assert_eq!(outcome_of(&Hello::with_extensions(twice)), Err(ServerNameRepeated));
}

#[test]
fn fields_out_of_bounds() {
    let good = Hello::new(Some(b"a.example"));
    let malformed = [
        Hello { session_id: vec![0; 33], ..good.clone() },
        Hello { cipher_suites: vec![], ..good.clone() },
        Hello { cipher_suites: vec![0x13, 1, 0], ..good.clone() },
        Hello { compression_methods: vec![], ..good.clone() },
    ];
    for hello in malformed {
        assert_eq!(outcome_of(&hello), Err(Malformed), "{hello:?}");
    }
    assert!(outcome_of(&Hello { session_id: vec![], ..good }).is_ok());
}

/// Every length inside the message is its own: cut anywhere, or with a byte too many, it is not a hello.
#[test]
fn lengths_that_do_not_add_up() {
    let message = Hello::new(Some(b"a.example")).message();
    let body = &message[4..];
    let without_extensions = Hello { extensions: None, ..Hello::new(None) }.message().len() - 4;
    for len in (0..body.len()).filter(|len| *len != without_extensions) {
        assert_eq!(outcome(&record(22, &wire::handshake(1, &body[..len]))), Err(Malformed), "{len}");
    }
    assert_eq!(outcome(&record(22, &wire::handshake(1, &[body, &[0]].concat()))), Err(Malformed));
}

#[test]
fn what_is_not_a_hello_is_refused_at_its_first_byte() {
    for wire in
        [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"SSH-2.0-x\r\n", b"\x80\x2e\x01\x03\x01", b"\0", b"\x15", b"\x17"]
    {
        assert_eq!(outcome(wire), Err(NotTls), "{wire:?}");
        assert_eq!(outcome(&wire[..1]), Err(NotTls), "{wire:?}");
    }
    assert_eq!(outcome(&[22, 2]), Err(RecordVersion));
    assert_eq!(outcome(&record(22, &[2])), Err(NotClientHello));
    assert_eq!(outcome(&[22, 3, 1, 1, 0, 0]), Err(NotClientHello), "before the record is there");
}

#[test]
fn records_that_do_not_belong() {
    let message = Hello::new(Some(b"a.example")).message();
    let (head, tail) = message.split_at(20);
    let hello = |between: &[u8]| outcome(&[&record(22, head), between, &record(22, tail)].concat());
    assert_eq!(hello(&[]), a_example());
    assert_eq!(hello(&record(20, &[1])), Err(UnexpectedRecord));
    assert_eq!(hello(&record(21, &[1, 0])), Err(UnexpectedRecord));
    assert_eq!(hello(&record(23, &[0])), Err(UnexpectedRecord));
    assert_eq!(hello(b"GET "), Err(UnexpectedRecord));
    assert_eq!(hello(&record(22, &[])), Err(EmptyRecord));
    assert_eq!(hello(&[22, 4]), Err(RecordVersion));
    assert_eq!(outcome(&[record(22, &[]), record(22, &message)].concat()), Err(EmptyRecord));
    assert_eq!(outcome(&record(22, &[&message[..], &[1]].concat())), Err(TrailingHandshake));
    assert_eq!(outcome(&[record(22, head), record(22, &[tail, &[1]].concat())].concat()), Err(TrailingHandshake));
}

#[test]
fn bounds() {
    let largest = Hello::new(Some(b"a.example")).padded_to(MAX_HELLO - 1);
    assert_eq!(outcome(&records(&largest.message(), 1 << 14)), a_example());
    assert_eq!(outcome(&records(&largest.message(), 16)), a_example());
    assert_eq!(outcome(&[22, 3, 1, 0, 4, 1, 0, 0xff, 0xfd]), Err(TooLong), "refused by its header");
    assert_eq!(outcome(&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]), Err(TooLong));
    assert_eq!(outcome(&[22, 3, 1, 0x40, 1]), Err(RecordTooLong));
    assert_eq!(ClientHelloReader::new().advance(&[22, 3, 1, 0x40, 0]), Progress::Incomplete);

    let message = Hello::new(Some(b"a.example")).padded_to(MAX_RECORDS + 1).message();
    assert_eq!(outcome(&records(&message, 1)), Err(TooManyRecords));
    assert_eq!(outcome(&records(&message, 2)), a_example());
    let message = Hello::new(Some(b"a.example")).padded_to(MAX_RECORDS).message();
    assert_eq!(outcome(&records(&message, 1)), a_example());
}

/// The most that a connection can make the caller hold: as many records as there may be, as full as they may be.
#[test]
fn nothing_is_incomplete_at_max_wire() {
    let message = Hello::new(Some(b"a.example")).padded_to(MAX_HELLO).message();
    let wire = records(&message, MAX_HELLO / MAX_RECORDS);
    assert_eq!(wire.len(), MAX_WIRE);
    assert_eq!(ClientHelloReader::new().advance(&wire[..MAX_WIRE - 1]), Progress::Incomplete);
    assert_eq!(outcome(&wire), a_example());
}

#[test]
fn reasons_are_distinct() {
    use ServerNameError::{Empty, IpLiteral, NotDns, Nul};
    let names = [Empty, Nul, IpLiteral, NotDns].map(ServerName);
    let rest = [
        NotTls,
        RecordVersion,
        UnexpectedRecord,
        EmptyRecord,
        RecordTooLong,
        TooManyRecords,
        NotClientHello,
        TooLong,
        TrailingHandshake,
        Malformed,
        ServerNameMalformed,
        ServerNameRepeated,
        ServerNameMany,
        ServerNameType,
        AlpnMalformed,
        AlpnRepeated,
        VersionsMalformed,
        VersionsRepeated,
    ];
    let reasons = names.iter().chain(&rest).map(|error| error.reason()).collect::<std::collections::BTreeSet<_>>();
    assert_eq!(reasons.len(), names.len() + rest.len());
    assert!(reasons.iter().all(|reason| reason.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    assert_eq!(ServerName(Nul).to_string(), "server name: the name contains a NUL byte");
}
