//! Every call on firewall rules.

use mc_proxy_proto::v1::replace_firewall_group_request::Part;
use tokio_stream::wrappers::ReceiverStream;

use super::*;
use crate::{admin::watch, control::Plane};

fn rule(kind: v1::FirewallRuleType, value: &str) -> v1::FirewallRule {
    v1::FirewallRule { r#type: kind.into(), value: value.into(), ..v1::FirewallRule::default() }
}

fn ip(value: &str) -> v1::FirewallRule {
    rule(v1::FirewallRuleType::Ip, value)
}

fn add(rule: v1::FirewallRule) -> v1::AddFirewallRuleRequest {
    v1::AddFirewallRuleRequest { rule: Some(rule), ttl: None, options: None }
}

fn header(group: &str, entries: u64) -> Part {
    Part::Header(v1::ReplaceFirewallGroupHeader { group: group.into(), entries, ..Default::default() })
}

fn v4(entries: &[[u8; 5]]) -> Part {
    Part::Chunk(v1::ReplaceFirewallGroupChunk { v4: entries.concat(), ..Default::default() })
}

async fn replace(
    served: &Served,
    parts: impl IntoIterator<Item = Part>,
) -> Result<v1::FirewallChangeSummary, tonic::Status> {
    let messages = parts.into_iter().map(|part| v1::ReplaceFirewallGroupRequest { part: Some(part) });
    let messages = tokio_stream::iter(messages.collect::<Vec<_>>());
    let answer = served.client().await.replace_firewall_group(messages).await?;
    Ok(answer.into_inner().summary.unwrap())
}

async fn list(served: &Served, request: v1::ListFirewallRulesRequest) -> Vec<v1::FirewallRule> {
    let mut pages = served.client().await.list_firewall_rules(request).await.unwrap().into_inner();
    let mut rules = Vec::new();
    while let Some(page) = pages.message().await.unwrap() {
        assert!((1..=watch::PAGE).contains(&page.rules.len()));
        rules.extend(page.rules);
    }
    rules
}

async fn values(served: &Served, group: &str) -> Vec<String> {
    let request = v1::ListFirewallRulesRequest { group: group.into(), ..Default::default() };
    list(served, request).await.into_iter().map(|rule| rule.value).collect()
}

#[tokio::test]
async fn firewall_rules() {
    use v1::FirewallRuleType::{Cidr, Country, Ip};
    let served = Served::start();
    let mut client = served.client().await;
    for (kind, value) in [(Ip, "203.0.113.50"), (Cidr, "198.51.100.0/24"), (Country, "ru"), (Ip, "::ffff:203.0.113.50")]
    {
        client.add_firewall_rule(add(rule(kind, value))).await.unwrap();
    }
    let allow = v1::FirewallRule { action: v1::FirewallAction::Allow.into(), ..rule(Ip, "203.0.113.51") };
    client.add_firewall_rule(add(allow)).await.unwrap();

    let rules = client.get_firewall_rules(v1::GetFirewallRulesRequest {}).await.unwrap().into_inner().rules;
    let texts = rules.iter().map(|r| (r.r#type().as_str_name(), r.value.as_str(), r.action().as_str_name()));
    let (block, allow) = ("FIREWALL_ACTION_BLOCK", "FIREWALL_ACTION_ALLOW");
    assert_eq!(
        texts.collect::<BTreeSet<_>>(),
        BTreeSet::from([
            ("FIREWALL_RULE_TYPE_CIDR", "198.51.100.0/24", block),
            ("FIREWALL_RULE_TYPE_IP", "203.0.113.50", block),
            ("FIREWALL_RULE_TYPE_COUNTRY", "RU", block),
            ("FIREWALL_RULE_TYPE_IP", "203.0.113.51", allow),
        ])
    );

    let remove = || v1::RemoveFirewallRuleRequest { rule: Some(rule(Ip, "203.0.113.50")), options: None };
    client.remove_firewall_rule(remove()).await.unwrap();
    assert_eq!(client.remove_firewall_rule(remove()).await.unwrap_err().code(), Code::NotFound);
    let bad = client.add_firewall_rule(add(rule(Cidr, "198.51.100.7/24"))).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().starts_with("rule.value: ") && bad.message().contains("\"198.51.100.0/24\""), "{bad}");
}

#[tokio::test]
async fn a_rule_with_all_there_is_to_say() {
    let served = Served::start();
    let mut client = served.client().await;
    let full = v1::FirewallRule {
        action: v1::FirewallAction::Count.into(),
        group: "bots/x".into(),
        scope: "listener:443".into(),
        comment: "on trial".into(),
        ..ip("203.0.113.50")
    };
    let ttl = Some(prost_types::Duration { seconds: 3600, nanos: 0 });
    let added = client.add_firewall_rule(v1::AddFirewallRuleRequest { ttl, ..add(full.clone()) }).await.unwrap();
    assert_eq!(added.into_inner().summary.unwrap(), v1::FirewallChangeSummary { added: 1, ..Default::default() });
    let rules = client.get_firewall_rules(v1::GetFirewallRulesRequest {}).await.unwrap().into_inner().rules;
    let [listed] = rules.as_slice() else { panic!("{rules:?}") };
    let left = std::time::SystemTime::try_from(listed.expires_at.unwrap())
        .unwrap()
        .duration_since(std::time::SystemTime::now());
    assert!((3590..=3600).contains(&left.unwrap().as_secs()));
    let epoch = Some(prost_types::Timestamp::default());
    assert_eq!(*listed, v1::FirewallRule { expires_at: listed.expires_at, created_at: epoch, ..full.clone() });
    // Again, and for good.
    let again = client.add_firewall_rule(add(full)).await.unwrap().into_inner().summary.unwrap();
    assert_eq!((again.added, again.replaced), (0, 1));
}

#[tokio::test]
async fn batches_are_all_or_nothing() {
    let served = Served::start();
    let mut client = served.client().await;
    let rules = || vec![ip("10.0.0.1"), ip("10.0.0.2")];
    let request = |rules| v1::AddFirewallRulesRequest { rules, ..Default::default() };
    let added = client.add_firewall_rules(request(rules())).await.unwrap().into_inner().summary.unwrap();
    assert_eq!((added.added, added.confirm_id), (2, 0));
    let bad = client.add_firewall_rules(request(vec![ip("10.0.0.3"), ip("x")])).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    assert!(bad.message().starts_with("rules[1].value: "), "{bad}");
    let remove = |rules| v1::RemoveFirewallRulesRequest { rules, options: None };
    let gone = client.remove_firewall_rules(remove(vec![ip("10.0.0.1"), ip("10.0.0.9")])).await.unwrap_err();
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "rule: there is no rule block 10.0.0.9"));
    assert_eq!(values(&served, "default").await, ["10.0.0.1", "10.0.0.2"]);
    let removed = client.remove_firewall_rules(remove(rules())).await.unwrap().into_inner().summary.unwrap();
    assert_eq!(removed.removed, 2);
}

#[tokio::test]
async fn options_go_through_and_a_change_can_be_confirmed_or_taken_back() {
    let served = Served::start();
    let mut client = served.client().await;
    let options = v1::FirewallChangeOptions {
        confirm: Some(prost_types::Duration { seconds: 60, nanos: 0 }),
        callers: vec!["10.0.0.1".into()],
        ..Default::default()
    };
    let request = |options| v1::AddFirewallRuleRequest { options: Some(options), ..add(ip("10.0.0.1")) };
    let refused = client.add_firewall_rule(request(options.clone())).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let options = v1::FirewallChangeOptions { force: true, ..options };
    let dry = v1::FirewallChangeOptions { dry_run: true, ..options.clone() };
    let summary = client.add_firewall_rule(request(dry)).await.unwrap().into_inner().summary.unwrap();
    assert!(summary.dry_run && summary.added == 1 && summary.confirm_by.is_none());
    assert!(values(&served, "").await.is_empty());

    let summary = client.add_firewall_rule(request(options.clone())).await.unwrap().into_inner().summary.unwrap();
    assert_eq!((summary.confirm_id, summary.confirm_by.unwrap().seconds), (PENDING, 60));
    let asked = served.last_options();
    assert_eq!((asked.confirm, asked.force), (Some(Duration::from_secs(60)), true));
    assert_eq!(asked.callers, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.firewall.unwrap().pending.unwrap().id, PENDING);

    let other = client.confirm_firewall(v1::ConfirmFirewallRequest { id: 9 }).await.unwrap_err();
    assert_eq!(other.code(), Code::NotFound);
    client.revert_firewall(v1::RevertFirewallRequest { id: 0 }).await.unwrap();
    assert!(values(&served, "").await.is_empty());
    client.add_firewall_rule(request(options)).await.unwrap();
    client.confirm_firewall(v1::ConfirmFirewallRequest { id: PENDING }).await.unwrap();
    assert_eq!(client.revert_firewall(v1::RevertFirewallRequest { id: 0 }).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(values(&served, "").await, ["10.0.0.1"]);
}

#[tokio::test]
async fn a_group_becomes_equal_to_a_list() {
    let served = Served::start();
    served.client().await.add_firewall_rule(add(ip("10.9.9.9"))).await.unwrap();
    let comments = vec![v1::FirewallEntryComment { index: 1, text: "SBL1".into() }];
    let first = v1::ReplaceFirewallGroupChunk {
        v4: vec![10, 0, 0, 0, 8, 192, 0, 2, 1, 32],
        v6: [&[0x20, 1, 0xd, 0xb8], [0; 12].as_slice(), &[32]].concat(),
        comments: comments.clone(),
    };
    let second = v1::ReplaceFirewallGroupChunk {
        v4: vec![10, 0, 0, 1, 32],
        comments: vec![v1::FirewallEntryComment { index: 0, text: "late".into() }],
        ..Default::default()
    };
    let summary = replace(&served, [header("drop", 4), Part::Chunk(first), Part::Chunk(second)]).await.unwrap();
    assert_eq!((summary.added, summary.removed), (4, 0));
    let rules = list(&served, v1::ListFirewallRulesRequest { group: "drop".into(), ..Default::default() }).await;
    let told = rules.iter().map(|rule| (rule.value.as_str(), rule.comment.as_str())).collect::<Vec<_>>();
    assert_eq!(told, [("10.0.0.0/8", ""), ("10.0.0.1", "late"), ("192.0.2.1", "SBL1"), ("2001:db8::/32", "")]);

    let summary = replace(&served, [header("drop", 1), v4(&[[10, 0, 0, 0, 8]])]).await.unwrap();
    assert_eq!((summary.added, summary.removed, summary.unchanged), (0, 3, 1));
    let groups = served.client().await.list_firewall_groups(v1::ListFirewallGroupsRequest {}).await.unwrap();
    let groups = groups.into_inner().groups;
    assert_eq!(groups.iter().map(|g| (g.name.as_str(), g.rules)).collect::<Vec<_>>(), [("default", 1), ("drop", 1)]);
    assert_eq!((groups[0].dropped_packets, groups[0].shadow_bytes), (5, 60));
    replace(&served, [header("drop", 0)]).await.unwrap();
    assert_eq!(values(&served, "").await, ["10.9.9.9"]);
}

#[tokio::test]
async fn a_list_that_is_not_whole_or_not_good_changes_nothing() {
    let served = Served::start();
    replace(&served, [header("drop", 1), v4(&[[10, 0, 0, 0, 8]])]).await.unwrap();
    let good = [192, 0, 2, 1, 32];
    let chunk = |chunk: v1::ReplaceFirewallGroupChunk| Part::Chunk(chunk);
    let with_comments = |comments: &[(u32, &str)]| {
        let comments = comments.iter().map(|&(index, text)| v1::FirewallEntryComment { index, text: text.into() });
        chunk(v1::ReplaceFirewallGroupChunk {
            v4: [good, [192, 0, 2, 2, 32]].concat(),
            comments: comments.collect(),
            ..Default::default()
        })
    };
    let mapped = [[0; 10].as_slice(), &[0xff, 0xff, 10, 0, 0, 1, 128]].concat();
    let ending = v1::ReplaceFirewallGroupHeader {
        group: "drop".into(),
        expires_at: Some((std::time::SystemTime::now() + Duration::from_secs(9)).into()),
        ttl: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        ..Default::default()
    };
    let cases: Vec<(Vec<Part>, &str)> = vec![
        (vec![], "header: is required"),
        (vec![v4(&[good])], "header: is required"),
        (vec![header("drop", 1), header("drop", 1)], "header: is the first message only"),
        (vec![header("", 0)], "header.group: is required"),
        (vec![header("auto/rate", 0)], "header.group: \"auto/rate\" is for the daemon"),
        (vec![Part::Header(ending)], "header.ttl: is instead of header.expires_at"),
        (vec![header("drop", 2_000_001)], "header.entries: is more than 2000000"),
        (vec![header("drop", 2), v4(&[good])], "header.entries: is 2, but 1 came; nothing has changed"),
        (vec![header("drop", 1), v4(&[good, good])], "chunk: has more than the 1 entries"),
        (
            vec![header("drop", 1), v4(&[[10, 0, 0, 1, 8]])],
            "chunk.v4[0]: \"10.0.0.1/8\" is not in canonical form, which is \"10.0.0.0/8\"",
        ),
        (vec![header("drop", 1), v4(&[[10, 0, 0, 1, 33]])], "chunk.v4[0]: has a prefix length that is too long"),
        (
            vec![
                header("drop", 1),
                chunk(v1::ReplaceFirewallGroupChunk { v4: vec![1, 2, 3, 4], ..Default::default() }),
            ],
            "chunk.v4: is not a multiple of 5",
        ),
        (
            vec![header("drop", 1), chunk(v1::ReplaceFirewallGroupChunk { v6: vec![0; 16], ..Default::default() })],
            "chunk.v6: is not a multiple of 17",
        ),
        (
            vec![header("drop", 1), chunk(v1::ReplaceFirewallGroupChunk { v6: mapped, ..Default::default() })],
            "chunk.v6[0]: \"::ffff:10.0.0.1/128\" is not in canonical form, which is \"10.0.0.1\"",
        ),
        (vec![header("drop", 2), with_comments(&[(2, "a")])], "chunk.comments[0].index: is not that of an entry"),
        (
            vec![header("drop", 2), with_comments(&[(1, "a"), (1, "b")])],
            "chunk.comments[1].index: is not above the one",
        ),
        (vec![header("drop", 2), with_comments(&[(0, "")])], "chunk.comments[0].text: is required"),
        (
            vec![header("drop", 2), with_comments(&[(0, "a"), (1, "\n")])],
            "chunk.comments[1].text: a comment has no control",
        ),
    ];
    for (parts, expected) in cases {
        let error = replace(&served, parts).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{expected}: {error}");
        assert!(error.message().starts_with(expected), "{expected}: {error}");
    }
    let nothing = tokio_stream::once(v1::ReplaceFirewallGroupRequest { part: None });
    let error = served.client().await.replace_firewall_group(nothing).await.unwrap_err();
    assert_eq!(error.message(), "part: is required: a header or a chunk");
    assert_eq!(values(&served, "drop").await, ["10.0.0.0/8"]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_list_is_given_up_and_makes_place() {
    let served = Served::start();
    let (send, messages) = mpsc::channel(4);
    let mut client = served.client().await;
    let call = tokio::spawn(async move { client.replace_firewall_group(ReceiverStream::new(messages)).await });
    send.send(v1::ReplaceFirewallGroupRequest { part: Some(header("slow", 1)) }).await.unwrap();
    let began = tokio::time::Instant::now();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::DeadlineExceeded, "no message for 30 s; nothing has changed"));
    assert!((30..=32).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    drop(send);
    replace(&served, [header("next", 1), v4(&[[10, 0, 0, 0, 8]])]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_list_that_trickles_in_is_given_up() {
    let served = Served::start();
    let (send, messages) = mpsc::channel(4);
    let mut client = served.client().await;
    let call = tokio::spawn(async move { client.replace_firewall_group(ReceiverStream::new(messages)).await });
    let began = tokio::time::Instant::now();
    let message = |part| v1::ReplaceFirewallGroupRequest { part: Some(part) };
    send.send(message(header("slow", 1000))).await.unwrap();
    while send.send(message(v4(&[[10, 0, 0, 0, 8]]))).await.is_ok() && !call.is_finished() {
        tokio::time::sleep(Duration::from_secs(20)).await;
    }
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!((300..=330).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert!(values(&served, "slow").await.is_empty());
}

#[tokio::test]
async fn rules_are_listed_in_pages_and_filtered() {
    let served = Served::start();
    let many = (0..2500_u32).map(|n| [10, 0, (n >> 8) as u8, n as u8, 32]).collect::<Vec<_>>();
    replace(&served, [header("many", 2500), v4(&many)]).await.unwrap();
    let allow =
        v1::FirewallRule { action: v1::FirewallAction::Allow.into(), ..rule(v1::FirewallRuleType::Cidr, "10.0.0.0/8") };
    served.client().await.add_firewall_rule(add(allow)).await.unwrap();
    assert_eq!(list(&served, v1::ListFirewallRulesRequest::default()).await.len(), 2501);
    assert_eq!(values(&served, "many").await.len(), 2500);
    let covers = v1::ListFirewallRulesRequest { covers: "::ffff:10.0.0.7".into(), ..Default::default() };
    let found = list(&served, covers).await.into_iter().map(|rule| rule.value).collect::<Vec<_>>();
    assert_eq!(found, ["10.0.0.0/8", "10.0.0.7"]);
    let allowed = v1::ListFirewallRulesRequest { action: v1::FirewallAction::Allow.into(), ..Default::default() };
    assert_eq!(list(&served, allowed).await.len(), 1);
    for (request, field) in [
        (v1::ListFirewallRulesRequest { covers: "x".into(), ..Default::default() }, "covers: "),
        (v1::ListFirewallRulesRequest { group: "X".into(), ..Default::default() }, "group: "),
        (v1::ListFirewallRulesRequest { action: 8, ..Default::default() }, "action: "),
    ] {
        let error = served.client().await.list_firewall_rules(request).await.unwrap_err();
        assert!(error.code() == Code::InvalidArgument && error.message().starts_with(field), "{error}");
    }
}

#[tokio::test]
async fn explanations() {
    let served = Served::start();
    let mut client = served.client().await;
    client.add_firewall_rule(add(v1::FirewallRule { comment: "why".into(), ..ip("10.0.0.1") })).await.unwrap();
    let request = v1::ExplainFirewallRequest { source: "::ffff:10.0.0.1".into(), ..Default::default() };
    let told = client.explain_firewall(request).await.unwrap().into_inner();
    assert_eq!((told.verdict.as_str(), told.country.as_str(), told.user.as_str()), ("drop", "RU", "refused"));
    let decisive = told.decisive.unwrap();
    assert_eq!((decisive.value.as_str(), decisive.comment.as_str()), ("10.0.0.1", "why"));
    let [considered] = told.considered.as_slice() else { panic!("{:?}", told.considered) };
    assert_eq!((considered.tier.as_str(), considered.holds, considered.why.as_str()), ("block", true, "in scope"));
    assert_eq!(told.kernel.unwrap().not_attached, "there is no interface");
    let request = v1::ExplainFirewallRequest {
        source: "10.0.0.2".into(),
        listener_addr: ":443".into(),
        server_name: "a.b".into(),
        ..v1::ExplainFirewallRequest::default()
    };
    let told = client.explain_firewall(request).await.unwrap().into_inner();
    assert_eq!((told.verdict.as_str(), told.decisive, told.route.as_str()), ("pass", None, "a.b"));
    let kernel = told.kernel.unwrap();
    assert!(kernel.ran && kernel.drop && kernel.reason == "blocked_ip");
    for (source, expected) in [("", "source: is required"), ("x", "source: invalid IP")] {
        let request = v1::ExplainFirewallRequest { source: source.into(), ..Default::default() };
        let error = client.explain_firewall(request).await.unwrap_err();
        assert!(error.message().starts_with(expected), "{error}");
    }
}

fn event(source: &str) -> DropEvent {
    DropEvent {
        at: std::time::SystemTime::UNIX_EPOCH,
        interface: "eth0".into(),
        reason: "blocked_ip",
        group: crate::firewall::Group::DEFAULT,
        source: source.parse().unwrap(),
        port: 443,
        bytes: 60,
        plane: Plane::Kernel,
        sampled: 100,
    }
}

#[tokio::test]
async fn drops_are_watched_and_what_is_missed_is_told() {
    let served = Served::start();
    let mut client = served.client().await;
    let request = v1::WatchDropsRequest { source: "10.0.0.0/8".into(), ..Default::default() };
    let mut watched = client.watch_drops(request).await.unwrap().into_inner();
    for source in ["11.0.0.1", "10.0.0.1"] {
        served.drops.send(event(source)).unwrap();
    }
    let answer = watched.message().await.unwrap().unwrap();
    let [told] = answer.events.as_slice() else { panic!("{answer:?}") };
    assert_eq!((told.source.as_str(), told.plane.as_str(), told.sampled, told.port), ("10.0.0.1", "kernel", 100, 443));
    assert_eq!(answer.missed, 0);

    // More than the buffer holds, at once: nothing reads meanwhile.
    for _ in 0..10_000 {
        served.drops.send(event("10.0.0.2")).unwrap();
    }
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < 10_000 {
        let answer = watched.message().await.unwrap().unwrap();
        seen += answer.events.len() as u64;
        missed += answer.missed;
    }
    assert_eq!((seen + missed, missed > 0), (10_000, true), "{seen} and {missed}");

    // Watchers are few, and their places are given back.
    let mut others = Vec::new();
    for _ in 1..watch::WATCHERS {
        others.push(served.client().await.watch_drops(v1::WatchDropsRequest::default()).await.unwrap());
    }
    let refused = client.watch_drops(v1::WatchDropsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    drop(watched);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
    while client.watch_drops(v1::WatchDropsRequest::default()).await.is_err() {
        assert!(tokio::time::Instant::now() < deadline, "the place is not given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // A stop ends them.
    let mut last = others.pop().unwrap().into_inner();
    served.shutdown.cancel();
    assert!(last.message().await.is_ok_and(|answer| answer.is_none()));
}
