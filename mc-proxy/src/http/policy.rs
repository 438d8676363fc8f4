//! The policies of a route, in order: the first that matches a request answers 403.
//!
//! They judge what is left of the fields that the client sent once those that end here are removed (hop-by-hop fields and what
//! `Connection` names, names with `_`, and what a client that is not trusted says of itself), and before anything is written:
//! else a required field could be shown to them and be gone behind them. A policy with `shadow` counts what it would refuse,
//! and refuses nothing.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ::http::{HeaderMap, HeaderName, HeaderValue, header};
use memchr::memmem::Finder;

use crate::desired::{L7Policy, L7PolicyKind};

/// Bytes of a field that are folded at a time.
const FOLDED: usize = 1_024;

/// Longer texts are looked for byte by byte; none that is in use is.
const NEEDLE_MAX: usize = FOLDED / 2;

/// The compiled policies of one route.
#[derive(Debug, Default)]
pub struct Policies(Box<[Policy]>);

/// What [`Policies::judge`] says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Pass,
    /// 403 (RFC 9110 §15.5.4), by the policy at this place, from 0.
    Refuse(usize),
}

#[derive(Debug)]
struct Policy {
    rule: L7Policy,
    test: Test,
    hits: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Test {
    /// For a text in lower case.
    UserAgent(Box<Finder<'static>>),
    /// None for what no field can be called: every request is without it.
    Required(Option<HeaderName>),
}

impl Policies {
    /// Compiles a route's policies. Counters of policies that `previous` had go on, `shadow` or not.
    pub fn compile(rules: &[L7Policy], previous: Option<&Self>) -> Self {
        let known = |rule: &L7Policy| {
            let mut known = previous.into_iter().flat_map(|policies| &policies.0);
            known.find(|policy| policy.rule.kind == rule.kind && policy.rule.value == rule.value)
        };
        let compiled = rules.iter().map(|rule| Policy {
            rule: rule.clone(),
            test: match rule.kind {
                L7PolicyKind::BlockUserAgent => {
                    let folded = rule.value.to_ascii_lowercase();
                    Test::UserAgent(Box::new(Finder::new(folded.as_bytes()).into_owned()))
                }
                L7PolicyKind::RequireHeader => Test::Required(rule.value.parse().ok()),
            },
            hits: known(rule).map(|policy| Arc::clone(&policy.hits)).unwrap_or_default(),
        });
        Self(compiled.collect())
    }

    /// Judges the fields of a request and counts. Behind a policy that refuses, none is looked at.
    pub fn judge(&self, headers: &HeaderMap) -> Verdict {
        for (place, policy) in self.0.iter().enumerate() {
            if policy.test.matches(headers) {
                policy.hits.fetch_add(1, Ordering::Relaxed);
                if !policy.rule.shadow {
                    return Verdict::Refuse(place);
                }
            }
        }
        Verdict::Pass
    }

    /// The policies in order, each with the number of requests that it has refused, or would have.
    pub fn hits(&self) -> impl Iterator<Item = (&L7Policy, u64)> {
        self.0.iter().map(|policy| (&policy.rule, policy.hits.load(Ordering::Relaxed)))
    }
}

impl Test {
    fn matches(&self, headers: &HeaderMap) -> bool {
        match self {
            // All of them: which one the backend reads is its own affair.
            Self::UserAgent(needle) => headers.get_all(header::USER_AGENT).iter().any(|value| contains(value, needle)),
            Self::Required(None) => true,
            Self::Required(Some(name)) => headers.get_all(name).iter().all(is_blank),
        }
    }
}

fn is_blank(value: &HeaderValue) -> bool {
    value.as_bytes().trim_ascii().is_empty()
}

/// Bytes are compared, ASCII without case, so that what is not UTF-8 hides nothing. Other letters have case only in a
/// character set, which fields do not tell (RFC 9110 §5.5).
fn contains(value: &HeaderValue, needle: &Finder<'_>) -> bool {
    let (mut rest, wanted) = (value.as_bytes(), needle.needle());
    if wanted.len() > NEEDLE_MAX {
        return rest.windows(wanted.len()).any(|window| window.eq_ignore_ascii_case(wanted));
    }
    let mut folded = [0; FOLDED];
    loop {
        let (chunk, after) = rest.split_at(rest.len().min(FOLDED));
        let folded = &mut folded[..chunk.len()];
        folded.copy_from_slice(chunk);
        folded.make_ascii_lowercase();
        if needle.find(folded).is_some() {
            return true;
        }
        if after.is_empty() {
            return false;
        }
        // A match may begin in this chunk and end in the next.
        rest = &rest[FOLDED + 1 - wanted.len().max(1)..];
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(kind: L7PolicyKind, value: &str, shadow: bool) -> L7Policy {
        L7Policy { kind, value: value.to_owned(), shadow }
    }

    fn agents(values: &[&[u8]]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::USER_AGENT, HeaderValue::from_bytes(value).unwrap());
        }
        headers
    }

    fn blocks(needle: &str, values: &[&[u8]]) -> bool {
        let policies = Policies::compile(&[policy(L7PolicyKind::BlockUserAgent, needle, false)], None);
        policies.judge(&agents(values)) == Verdict::Refuse(0)
    }

    #[test]
    fn user_agents() {
        assert!(blocks("BadBot", &[b"Mozilla (badBOT/1.0)"]));
        assert!(blocks("badbot", &[b"BADBOT"]));
        assert!(blocks("b", &[b"x", b"", b"xB"]), "the last of several");
        assert!(blocks("badbot", &[b"\xff\xfebadbot\x80"]), "behind bytes that are not UTF-8");
        assert!(blocks("bücher", &["BüCHER".as_bytes()]));
        assert!(!blocks("bücher", &["BÜCHER".as_bytes()]), "case beyond ASCII");
        assert!(!blocks("badbot", &[b"bad", b"bot"]));
        assert!(!blocks("badbot", &[b"bad bot", b""]));
        assert!(!blocks("badbot", &[]));
    }

    #[test]
    fn long_values_and_needles() {
        for at in [0, 1, 1_000, 1_018, 1_019, 1_020, 1_023, 1_024, 1_025, 2_040, 2_047, 5_000] {
            let value = [vec![b'x'; at], b"BadBot".to_vec(), vec![b'x'; 3_000]].concat();
            assert!(blocks("badbot", &[&value]), "{at}");
        }
        for len in [1, 511, 512, 513, 2_000] {
            let needle = "ab".repeat(len);
            let value = [&[b'A'; 1_500][..], needle.to_ascii_uppercase().as_bytes()].concat();
            assert!(blocks(&needle, &[&value]), "{len}");
            assert!(!blocks(&needle, &[&value[..value.len() - 1]]), "{len}");
        }
    }

    #[test]
    fn required_headers() {
        let policies = Policies::compile(&[policy(L7PolicyKind::RequireHeader, "X-Key", false)], None);
        let judge = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-key", HeaderValue::from_static(value));
            }
            policies.judge(&headers)
        };
        assert_eq!(judge(&["1"]), Verdict::Pass);
        assert_eq!(judge(&["", "1"]), Verdict::Pass);
        for values in [&[][..], &[""], &[" \t"], &["", " "]] {
            assert_eq!(judge(values), Verdict::Refuse(0), "{values:?}");
        }
        let nameless = Policies::compile(&[policy(L7PolicyKind::RequireHeader, "not a name", false)], None);
        assert_eq!(nameless.judge(&HeaderMap::new()), Verdict::Refuse(0));
    }

    #[test]
    fn the_first_refuses_and_shadows_count() {
        use L7PolicyKind::{BlockUserAgent, RequireHeader};
        let rules = [
            policy(BlockUserAgent, "curl", true),
            policy(RequireHeader, "x-key", false),
            policy(BlockUserAgent, "curl/8", false),
        ];
        let policies = Policies::compile(&rules, None);
        let mut headers = agents(&[b"curl/8"]);
        assert_eq!(policies.judge(&headers), Verdict::Refuse(1));
        headers.insert("x-key", HeaderValue::from_static("1"));
        assert_eq!(policies.judge(&headers), Verdict::Refuse(2));
        assert_eq!(policies.judge(&agents(&[b"x"])), Verdict::Refuse(1));
        assert_eq!(policies.hits().map(|(_, hits)| hits).collect::<Vec<_>>(), [2, 2, 1]);

        let mut changed = rules.to_vec();
        changed[0].shadow = false;
        changed.swap(0, 2);
        let next = Policies::compile(&changed, Some(&policies));
        assert_eq!(next.hits().map(|(_, hits)| hits).collect::<Vec<_>>(), [1, 2, 2]);
        assert_eq!(policies.judge(&agents(&[b"x"])), Verdict::Refuse(1), "of a request that began before");
        assert_eq!(next.hits().nth(1).map(|(_, hits)| hits), Some(3));
        assert_eq!(Policies::default().judge(&headers), Verdict::Pass);
    }

    proptest! {
        #[test]
        fn as_the_plain_search(value in "[abAB]{0,2000}", needle in "[abAB]{1,12}", pad in 0_usize..1_100) {
            let value = "c".repeat(pad) + &value;
            let expected = value.to_ascii_lowercase().contains(&needle.to_ascii_lowercase());
            prop_assert_eq!(blocks(&needle, &[value.as_bytes()]), expected);
        }
    }
}
