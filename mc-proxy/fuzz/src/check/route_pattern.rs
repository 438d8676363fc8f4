//! Patterns and server names round-trip through their canonical text.

use crate::{
    route::Pattern,
    tls::{ServerName, ServerNameError},
};

/// # Panics
/// When a name or a pattern that parses is not canonical.
pub fn check(bytes: &[u8]) {
    let name = ServerName::parse(bytes);
    if let Ok(name) = &name {
        let text = name.as_str();
        assert!((1..=253).contains(&text.len()), "length");
        assert!(text.bytes().all(|b| !b.is_ascii_uppercase() && b != 0 && b != b'*' && b != b':'), "{text:?}");
        assert!(!text.starts_with('.') && !text.ends_with('.') && !text.contains(".."), "{text:?}");
        assert_eq!(text.parse::<ServerName>().as_ref(), Ok(name));
        assert_eq!(ServerName::parse(&bytes.to_ascii_uppercase()).as_ref(), Ok(name), "case");
        assert!(text.parse::<std::net::IpAddr>().is_err(), "{text:?}");
        assert_eq!(format!("{text}.").parse::<ServerName>().as_ref(), Ok(name), "the root's dot");
        assert_eq!(format!("{text}..").parse::<ServerName>(), Err(ServerNameError::NotDns), "two dots");
    }

    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let pattern = text.parse::<Pattern>();
    match (&pattern, &name) {
        (Ok(Pattern::Exact(exact)), Ok(name)) => assert_eq!(exact, name),
        (Ok(Pattern::Wildcard(suffix)), Err(_)) => {
            assert_eq!(ServerName::parse(&bytes[2..]).as_ref(), Ok(suffix), "the suffix is a name by itself");
        }
        (Err(_), Err(_)) => {}
        (pattern, name) => panic!("{pattern:?} but {name:?}"),
    }
    if let Ok(pattern) = pattern {
        assert_eq!(pattern.to_string().parse::<Pattern>(), Ok(pattern));
    }
}
