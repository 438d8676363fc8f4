use mc_proxy::tls::{AlpnOffer, ClientHelloReader, MAX_RECORDS, MAX_WIRE, Progress};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

use crate::{
    check::{
        client_hello::{Oracle, acceptor, check},
        route_pattern,
    },
    wire::{
        self, ALPN, Hello, PADDING, SERVER_NAME, SIGNATURE_ALGORITHMS, SUPPORTED_GROUPS, SUPPORTED_VERSIONS, record,
        server_name,
    },
};

/// A hello, the name that it asks for in canonical form, what it offers, and whether a strict server is content with it.
#[derive(Clone, Debug)]
struct Sample {
    hello: Hello,
    name: Option<String>,
    alpn: Vec<Vec<u8>>,
    versions: Vec<u16>,
    is_modern: bool,
}

prop_compose! {
    /// A host name with its spelling: some letters upper case, perhaps a dot at the end.
    fn arb_name()(
        labels in vec("[a-z0-9]([a-z0-9_-]{0,20}[a-z0-9])?", 1..6),
        top in "[a-z]{2,8}",
        is_shouted: bool,
        has_dot: bool,
    ) -> (String, String) {
        let name = format!("{}.{top}", labels.join("."));
        let spelt = if is_shouted { name.to_ascii_uppercase() } else { name.clone() };
        (name, if has_dot { format!("{spelt}.") } else { spelt })
    }
}

/// GREASE (RFC 8701 §2) and numbers that nobody has taken, of little data or of much.
fn arb_extension() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let kind = prop_oneof![(0..16_u16).prop_map(|n| 0x0a0a + n * 0x1010), 0x7000..0x7fff_u16];
    let data = prop_oneof![4 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 0..3000)];
    (kind, data)
}

/// Application protocols, and versions with GREASE among them; rustls wants one that it knows.
fn arb_offer() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<u16>)> {
    let name = prop_oneof![4 => vec(any::<u8>(), 1..12), 1 => vec(any::<u8>(), 1..256)];
    let version =
        prop_oneof![select(vec![0x0304_u16, 0x0303, 0x0302, 0x0301]), (0..16_u16).prop_map(|n| 0x0a0a + n * 0x1010)];
    (vec(name, 0..6), vec(version, 0..8))
}

fn arb_sample() -> impl Strategy<Value = Sample> {
    let fields = (vec(any::<u8>(), 0..=32), vec(any::<[u8; 2]>(), 1..40), any::<bool>());
    let padding = prop_oneof![4 => 0..300_usize, 2 => 300..16_000_usize, 1 => 16_000..45_000_usize];
    (fields, proptest::option::of(arb_name()), vec(arb_extension(), 0..5), padding, arb_offer())
        .prop_flat_map(|((session_id, suites, is_modern), name, extra, padding, (alpn, versions))| {
            let mut extensions = extra;
            extensions.sort_by_key(|(kind, _)| *kind);
            extensions.dedup_by_key(|(kind, _)| *kind);
            extensions.push((PADDING, vec![0; padding]));
            extensions.push((SUPPORTED_GROUPS, vec![0, 4, 0x7a, 0x7a, 0, 29]));
            if is_modern {
                extensions.push((SIGNATURE_ALGORITHMS, vec![0, 4, 4, 3, 8, 4]));
            }
            extensions.extend(name.as_ref().map(|(_, spelt)| (SERVER_NAME, server_name(spelt.as_bytes()))));
            if !alpn.is_empty() {
                extensions.push((ALPN, wire::alpn(&alpn.iter().map(Vec::as_slice).collect::<Vec<_>>())));
            }
            if !versions.is_empty() {
                extensions.push((SUPPORTED_VERSIONS, wire::supported_versions(&versions)));
            }
            let name = name.map(|(name, _)| name);
            (Just((session_id, suites.concat(), is_modern, name, alpn, versions)), Just(extensions).prop_shuffle())
        })
        .prop_map(|((session_id, cipher_suites, is_modern, name, alpn, versions), extensions)| {
            let extensions = Some(extensions);
            let hello = Hello { version: 0x0303, session_id, cipher_suites, compression_methods: vec![0], extensions };
            Sample { hello, name, alpn, versions, is_modern }
        })
}

/// Cuts the message at these sizes, over and over, larger where there would be too many records.
fn cut(message: &[u8], sizes: &[usize]) -> Vec<u8> {
    let least = message.len().div_ceil(MAX_RECORDS);
    let mut rest = message;
    let mut wire = Vec::new();
    for size in sizes.iter().cycle() {
        let (fragment, after) = rest.split_at((*size).max(least).min(rest.len()));
        wire.extend(record(22, fragment));
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    wire
}

fn arb_sizes() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        3 => Just(vec![1 << 14]),
        1 => Just(vec![1]),
        1 => Just(vec![16]),
        2 => vec(select(vec![1, 2, 3, 4, 5, 17, 100, 512, 1400, 4096, 16_384]), 1..6),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn well_formed_hellos_are_read(sample in arb_sample(), sizes in arb_sizes(), after in vec(any::<u8>(), 0..50)) {
        let mut wire = cut(&sample.hello.message(), &sizes);
        let end = wire.len();
        wire.extend(after);
        let Progress::Complete(hello) = check(&wire) else { panic!("{:?}", check(&wire)) };
        prop_assert_eq!(hello.server_name.map(|name| name.to_string()), sample.name);
        prop_assert_eq!(hello.alpn, AlpnOffer::of(&sample.alpn));
        let legacy = [0x0303];
        let offered = if sample.versions.is_empty() { &legacy[..] } else { &sample.versions };
        let known = [(0x0304, "1.3"), (0x0303, "1.2"), (0x0302, "1.1"), (0x0301, "1.0"), (0x0300, "ssl3")];
        let names: Vec<_> = known.iter().filter(|(version, _)| offered.contains(version)).map(|(_, name)| *name).collect();
        prop_assert_eq!(hello.versions.to_string(), names.join(","));
        prop_assert_eq!(ClientHelloReader::new().advance(&wire[..end - 1]), Progress::Incomplete);
        if sample.is_modern {
            prop_assert!(matches!(acceptor(&wire), Oracle::Accepted(_)), "a vacuous oracle");
        }
    }

    #[test]
    fn mutated_hellos_do_no_harm(
        sample in arb_sample(),
        sizes in arb_sizes(),
        flips in vec((any::<Index>(), any::<u8>()), 1..4),
        is_early: bool,
        cut_at in proptest::option::of(any::<Index>()),
    ) {
        let mut wire = cut(&sample.hello.message(), &sizes);
        for (at, byte) in flips {
            // Half of the time near the lengths at the front, which the padding would otherwise hide.
            let at = if is_early { at.index(wire.len().min(120)) } else { at.index(wire.len()) };
            wire[at] = byte;
        }
        if let Some(at) = cut_at {
            wire.truncate(at.index(wire.len()));
        }
        check(&wire);
    }

    /// No bytes keep a connection waiting beyond what the caller buffers.
    #[test]
    fn noise_never_waits_for_ever(start in vec(any::<u8>(), 0..40), filler in vec(any::<u8>(), 1..8), is_tls: bool) {
        let mut wire = if is_tls { vec![22, 3, 1, 0, 200, 1, 0, 0x80, 0] } else { Vec::new() };
        wire.extend(start);
        wire.extend(filler.iter().cycle().take(MAX_WIRE - wire.len()));
        prop_assert_ne!(ClientHelloReader::new().advance(&wire), Progress::Incomplete);
    }

    #[test]
    fn patterns_and_names_round_trip(text in "(\\*\\.)?[a-zA-Z0-9._*:\\[\\]-]{0,20}", bytes in vec(any::<u8>(), 0..12)) {
        route_pattern::check(text.as_bytes());
        route_pattern::check(&bytes);
    }
}
