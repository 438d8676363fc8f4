//! The list reader against itself (whole, in pieces, and what it has read written out again) and against the parsers of
//! the standard library.

use std::net::IpAddr;

use crate::firewall::list::{COMMENT_MAX, ERRORS_MAX, List, ListErrors, ListOptions, ListParser};

/// # Panics
/// When the reader disagrees with itself, or reads something else than the standard library.
pub fn check(bytes: &[u8]) {
    let plain = ListOptions { aggregate: false, ..ListOptions::default() };
    let whole = read(plain, bytes.chunks(bytes.len().max(1)));
    for size in [1, 7] {
        match (&whole, read(plain, bytes.chunks(size))) {
            (Ok(whole), Ok(pieces)) => assert_eq!(text(whole), text(&pieces), "in pieces of {size}"),
            (Err(whole), Err(pieces)) => assert_eq!(*whole, pieces, "in pieces of {size}"),
            (whole, pieces) => panic!("{whole:?} but {pieces:?}"),
        }
    }
    let list = match &whole {
        Ok(list) => list,
        Err(errors) => {
            assert!((1..=ERRORS_MAX).contains(&errors.errors.len()));
            assert!(!errors.to_string().contains(['\0', '\r', '\u{1b}']), "{errors}");
            return;
        }
    };
    let nets = list.iter().collect::<Vec<_>>();
    assert!(nets.windows(2).all(|pair| pair[0].0 < pair[1].0), "sorted and distinct");
    for (net, comment) in &nets {
        assert_eq!(net.trunc(), *net, "host bits");
        let comment = comment.unwrap_or_default();
        assert!(comment.len() <= COMMENT_MAX && !comment.contains(char::is_control), "{comment:?}");
    }
    for line in bytes.split(|byte| *byte == b'\n') {
        if let Ok(Ok(addr)) = str::from_utf8(line).map(str::parse::<IpAddr>) {
            assert!(nets.iter().any(|(net, _)| net.contains(&addr.to_canonical())), "{addr} is missing");
        }
    }

    // Written out and read again, it is the same list.
    let again = read(plain, text(list).as_bytes().chunks(4096)).expect("what was written can be read");
    assert_eq!(text(&again), text(list));

    let aggregated = read(ListOptions::default(), bytes.chunks(bytes.len().max(1))).expect("the lines are the same");
    assert!(aggregated.len() <= list.len());
    let wide = aggregated.iter().collect::<Vec<_>>();
    assert!(wide.windows(2).all(|pair| !pair[0].0.contains(&pair[1].0)), "disjoint");
    for (net, _) in &nets {
        assert!(wide.iter().any(|(other, _)| other.contains(net)), "{net} is missing");
    }
}

fn read<'b>(options: ListOptions, pieces: impl Iterator<Item = &'b [u8]>) -> Result<List, ListErrors> {
    let mut parser = ListParser::new(options);
    for piece in pieces {
        if parser.push(piece).is_break() {
            break;
        }
    }
    parser.finish()
}

fn text(list: &List) -> String {
    list.iter().fold(String::new(), |text, (net, comment)| match comment {
        Some(comment) => text + &format!("{net} # {comment}\n"),
        None => text + &format!("{net}\n"),
    })
}
