//! Lists as they are published, lists that are broken, and what has to hold of any.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

fn parse_with(options: ListOptions, text: &[u8]) -> Result<List, ListErrors> {
    let mut parser = ListParser::new(options);
    let _ = parser.push(text);
    parser.finish()
}

/// Without aggregation: what stands in the list.
fn plain() -> ListOptions {
    ListOptions { aggregate: false, ..ListOptions::default() }
}

fn entries(list: &List) -> Vec<(String, String)> {
    list.iter().map(|(net, comment)| (net.to_string(), comment.unwrap_or_default().to_owned())).collect()
}

fn nets(text: &str) -> Vec<String> {
    let list = parse_with(plain(), text.as_bytes()).unwrap();
    list.iter().map(|(net, _)| net.to_string()).collect()
}

fn errors(text: &[u8]) -> Vec<String> {
    parse_with(ListOptions::default(), text).unwrap_err().errors.iter().map(ToString::to_string).collect()
}

#[test]
fn the_formats_of_the_world() {
    let drop = "; Spamhaus DROP List 2026/11/20 - (c) 2026 The Spamhaus Project SLU\n; Last-Modified: x\n\
                1.10.16.0/20 ; SBL256894\n1.19.0.0/16 ; SBL434604\n";
    let pair = |net: &str, comment: &str| (net.to_owned(), comment.to_owned());
    let list = parse_with(plain(), drop.as_bytes()).unwrap();
    assert_eq!(entries(&list), [pair("1.10.16.0/20", "SBL256894"), pair("1.19.0.0/16", "SBL434604")]);
    assert_eq!(list.report(), Report { lines: 4, read: 2, ..Report::default() });

    let json = "{\"cidr\":\"1.10.16.0/20\",\"sblid\":\"SBL256894\",\"rir\":\"apnic\"}\n\
                {\"cidr\":\"2001:db8::/32\",\"sblid\":\"SBL1\",\"rir\":\"ripencc\"}\n\
                {\"type\":\"metadata\",\"timestamp\":1732000000,\"size\":90,\"records\":2,\"terms\":\"https://x\"}\n";
    let list = parse_with(plain(), json.as_bytes()).unwrap();
    assert_eq!(entries(&list), [pair("1.10.16.0/20", "SBL256894"), pair("2001:db8::/32", "SBL1")]);

    let firehol = "#\n# firehol_level1\n#\n# ipv4 hash:net ipset\n#\n0.0.0.0/8\n1.10.16.0/20\n223.254.0.0/16\n";
    assert_eq!(nets(firehol), ["0.0.0.0/8", "1.10.16.0/20", "223.254.0.0/16"]);

    let mixed = "\u{feff}10.0.0.1\r\n\r\n \t10.0.0.2/32 # a \u{e4}\u{1}b ;c  \r\n10.0.1.0-10.0.1.255;range\n\
                 2001:DB8::1\n::ffff:10.0.0.3\n::ffff:10.1.0.0/112\n10.2.0.0 - 10.2.0.2#";
    assert_eq!(
        entries(&parse_with(plain(), mixed.as_bytes()).unwrap()),
        [
            pair("10.0.0.1/32", ""),
            pair("10.0.0.2/32", "a \u{e4} b ;c"),
            pair("10.0.0.3/32", ""),
            pair("10.0.1.0/24", "range"),
            pair("10.1.0.0/16", ""),
            pair("10.2.0.0/31", ""),
            pair("10.2.0.2/32", ""),
            pair("2001:db8::1/128", ""),
        ]
    );
    assert!(nets("").is_empty());
    assert!(nets("# nothing\n\n").is_empty());
}

#[test]
fn errors_have_line_numbers_and_say_what_is_wrong() {
    let text =
        b"10.0.0.1\n10.0.0.256\n198.51.100.7/24 # x\n10.0.0.0/33\n10.0.0.0/08\n10.0.0.9-10.0.0.1\n10.0.0.1-::1\n\
        10.0.0.1 10.0.0.2\n10.0.0.0/8 \x1b[2J\n{\"asn\":1}\nexample.com\n010.0.0.1\n10.0.0.1-10.0.0.2/31\n\xff\xfe\n";
    assert_eq!(
        errors(text),
        [
            "line 2: \"10.0.0.256\" is not an address, a CIDR or a range",
            "line 3: \"198.51.100.7/24\" has host bits set; the canonical CIDR is \"198.51.100.0/24\"",
            "line 4: \"10.0.0.0/33\" has no valid prefix length, which is a number from 0 to 32",
            "line 5: \"10.0.0.0/08\" has no valid prefix length, which is a number from 0 to 32",
            "line 6: \"10.0.0.9-10.0.0.1\" is a range that ends before it begins",
            "line 7: \"10.0.0.1-::1\" is a range between two address families",
            "line 8: \"10.0.0.2\" follows the entry; a line has one entry, and a comment begins with # or ;",
            "line 9: \"\\u{1b}[2J\" follows the entry; a line has one entry, and a comment begins with # or ;",
            "line 10: the JSON object has no \"cidr\"",
            "line 11: \"example.com\" is not an address, a CIDR or a range",
            "line 12: \"010.0.0.1\" is not an address, a CIDR or a range",
            "line 13: \"10.0.0.1-10.0.0.2/31\" is not an address, a CIDR or a range",
            "line 14: \"\u{fffd}\u{fffd}\" is not an address, a CIDR or a range",
        ]
    );
    assert_eq!(
        errors(b"10.0.0.1\n1\x000\x00\nnope"),
        ["line 2: there is a NUL byte; a list is a text file (ASCII or UTF-8)"]
    );
    let long = [b"#".repeat(LINE_MAX), b"\n#".to_vec(), b"#".repeat(LINE_MAX), b"\nx".to_vec()].concat();
    assert_eq!(
        errors(&long),
        ["line 2: the line is longer than 4096 bytes", "line 3: \"x\" is not an address, a CIDR or a range"]
    );
    let quoted = errors("ä".repeat(100).as_bytes());
    assert_eq!(quoted, [format!("line 1: \"{}…\" is not an address, a CIDR or a range", "ä".repeat(60))]);
}

#[test]
fn reading_stops_at_the_twentieth_error() {
    let mut parser = ListParser::new(ListOptions::default());
    for _ in 0..ERRORS_MAX - 1 {
        assert_eq!(parser.push(b"nope\n"), ControlFlow::Continue(()));
    }
    assert_eq!(parser.push(b"nope\n10.0.0.1\n"), ControlFlow::Break(()));
    assert_eq!(parser.push(b"10.0.0.1\nnope\n"), ControlFlow::Break(()));
    let errors = parser.finish().unwrap_err();
    assert_eq!((errors.errors.len(), errors.is_cut), (ERRORS_MAX, true));
    assert!(
        errors.to_string().ends_with("line 20: \"nope\" is not an address, a CIDR or a range\nreading stopped here")
    );
}

#[test]
fn host_bits_are_cleared_when_asked_to() {
    let options = ListOptions { fix_host_bits: true, ..plain() };
    let list = parse_with(options, b"198.51.100.7/24\n2001:db8::1/32\n::ffff:10.0.0.1/120\n10.0.0.1/32\n").unwrap();
    let nets = list.iter().map(|(net, _)| net.to_string()).collect::<Vec<_>>();
    assert_eq!(nets, ["10.0.0.0/24", "10.0.0.1/32", "198.51.100.0/24", "2001:db8::/32"]);
    assert_eq!(list.report().fixed, 3);
}

#[test]
fn comments_are_cut_kept_or_left_out() {
    let text = format!("10.0.0.1 # {}\n10.0.0.3\n10.0.0.3 # late\n10.0.0.3 # later\n", "ä".repeat(120));
    let list = parse_with(plain(), text.as_bytes()).unwrap();
    assert_eq!(
        entries(&list),
        [("10.0.0.1/32".into(), "ä".repeat(100)), ("10.0.0.3/32".into(), "late".into())],
        "of equal entries the first comment stays"
    );
    assert_eq!((list.report().cut, list.report().duplicates), (1, 2));
    let list = parse_with(ListOptions { comments: false, ..plain() }, text.as_bytes()).unwrap();
    assert!(list.iter().all(|(_, comment)| comment.is_none()));
}

#[test]
fn aggregation_keeps_what_comments_tell() {
    let text = "10.0.0.0/24\n10.0.1.0/24\n10.0.1.7 # covered\n10.0.2.0/24 # a\n10.0.3.0/24 # b\n10.0.4.0/24 # a\n\
                10.0.5.0/24 # a\n2001:db8::/33\n2001:db8:8000::/33\n0.0.0.1\n";
    let list = parse_with(ListOptions::default(), text.as_bytes()).unwrap();
    let pair = |net: &str, comment: &str| (net.to_owned(), comment.to_owned());
    assert_eq!(
        entries(&list),
        [
            pair("0.0.0.1/32", ""),
            pair("10.0.0.0/23", ""),
            pair("10.0.2.0/24", "a"),
            pair("10.0.3.0/24", "b"),
            pair("10.0.4.0/23", "a"),
            pair("2001:db8::/32", ""),
        ]
    );
    assert_eq!(list.report(), Report { lines: 10, read: 10, covered: 1, merged: 3, ..Report::default() });
    let everything = parse_with(ListOptions::default(), b"0.0.0.0/1\n128.0.0.0/1\n::/1\n8000::/1\n").unwrap();
    assert_eq!(everything.iter().map(|(net, _)| net.to_string()).collect::<Vec<_>>(), ["0.0.0.0/0", "::/0"]);
}

#[test]
fn no_list_is_too_many_entries_for_the_memory() {
    // 62 prefixes a line; so many lines are 10,000,042.
    let line = b"0.0.0.1-255.255.255.254\n".repeat(161_291);
    assert_eq!(errors(&line), ["line 161291: there are more than 10000000 entries"]);
    // And on the fast path.
    let mut parser = ListParser::new(ListOptions::default());
    let thousand = b"10.0.0.1\n".repeat(100_000);
    for _ in 0..100 {
        assert_eq!(parser.push(&thousand), ControlFlow::Continue(()));
    }
    assert_eq!(parser.push(&thousand), ControlFlow::Break(()));
    assert_eq!(
        parser.finish().unwrap_err().to_string(),
        "line 10000001: there are more than 10000000 entries\nreading stopped here"
    );
}

fn any_net() -> impl Strategy<Value = IpNet> {
    // Few distinct bits, so that prefixes meet.
    prop_oneof![
        (0_u32..64, 24_u8..=32).prop_map(|(low, len)| IpNet::new(IpAddr::V4((0x0a00_0000 | low).into()), len).unwrap()),
        (0_u128..64, 120_u8..=128)
            .prop_map(|(low, len)| IpNet::new(IpAddr::V6((0x2001_0db8 << 96 | low).into()), len).unwrap()),
        (any::<IpAddr>(), 0_u8..=128)
            .prop_map(|(addr, len)| { IpNet::new(addr, if addr.is_ipv4() { len % 33 } else { len }).unwrap() }),
    ]
    .prop_map(|net| net.trunc())
}

proptest! {
    #[test]
    fn any_cut_reads_the_same(text in "([0-9./:a-f]{0,20}(| #x|;y|\r|\u{e4})\n?){0,12}", cuts in prop::collection::vec(1_usize..9, 0..40)) {
        let whole = parse_with(plain(), text.as_bytes());
        let mut parser = ListParser::new(plain());
        let mut rest = text.as_bytes();
        for cut in cuts.into_iter().chain(std::iter::repeat(5)) {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            let _ = parser.push(piece);
            rest = after;
        }
        match (whole, parser.finish()) {
            (Ok(whole), Ok(pieces)) => {
                prop_assert_eq!(entries(&whole), entries(&pieces));
                prop_assert_eq!(whole.report(), pieces.report());
            }
            (Err(whole), Err(pieces)) => prop_assert_eq!(whole, pieces),
            (whole, pieces) => prop_assert!(false, "{:?} but {:?}", whole, pieces),
        }
    }

    /// The fast path reads what the careful one reads, and nothing else.
    #[test]
    fn the_fast_path_agrees(line in "[0-9]{1,3}(\\.[0-9]{1,3}){2,4}(/[0-9]{0,3})?[ \r]?") {
        let text = format!("{line}\n");
        let careful = Line::read(line.as_bytes(), false);
        match line::plain_v4(text.as_bytes()) {
            Some((addr, len, used)) => {
                prop_assert_eq!(used, text.len());
                let expected = Ipv4Net::new(addr.into(), len).unwrap();
                let Ok((Line::Net { net, .. }, false)) = careful else { panic!("{line:?}: {careful:?}") };
                prop_assert_eq!(net, IpNet::V4(expected));
            }
            None => prop_assert!(careful.is_err() || line.ends_with(' '), "{:?}", line),
        }
    }

    #[test]
    fn aggregation_covers_the_same_addresses(given in prop::collection::vec((any_net(), 0_u8..3), 0..60)) {
        let text = given.iter().fold(String::new(), |text, (net, comment)| match comment {
            0 => text + &format!("{net}\n"),
            comment => text + &format!("{net} # {comment}\n"),
        });
        let list = parse_with(ListOptions::default(), text.as_bytes()).unwrap();
        let report = list.report();
        prop_assert_eq!(report.read, given.len() as u64);
        prop_assert_eq!(report.read - report.duplicates - report.covered - report.merged, list.len() as u64);
        let out = list.iter().collect::<Vec<_>>();
        // Disjoint, and in order.
        for pair in out.windows(2) {
            prop_assert!(!pair[0].0.contains(&pair[1].0) && pair[0].0 < pair[1].0, "{:?}", pair);
        }
        // Every entry is there, and nothing that no entry has: the edges of all prefixes show it.
        for (net, _) in &given {
            let net = Subject::fold(*net);
            prop_assert!(out.iter().any(|(wide, _)| wide.contains(&net)), "{} is missing", net);
        }
        for edge in out.iter().flat_map(|(net, _)| [net.network(), net.broadcast()]) {
            prop_assert!(given.iter().any(|(net, _)| Subject::fold(*net).contains(&edge)), "{} is too much", edge);
        }
        // What comes out goes in again as it is.
        let again = out.iter().fold(String::new(), |text, (net, comment)| text + &format!("{net} # {}\n", comment.unwrap_or("")));
        prop_assert_eq!(entries(&parse_with(ListOptions::default(), again.as_bytes()).unwrap()), entries(&list));
    }
}

/// The folding of a rule's subject, which a list has to do in the same way.
struct Subject;

impl Subject {
    fn fold(net: IpNet) -> IpNet {
        match crate::firewall::Subject::covering(net) {
            crate::firewall::Subject::Net(net) => net,
            crate::firewall::Subject::Country(_) => unreachable!("a prefix is no country"),
        }
    }
}
