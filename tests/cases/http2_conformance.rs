//! RFC 9113 and RFC 7541, case by case; the list is in `http::h2::conformance`, its result in `docs/conformance.md`.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use mc_proxy_tests::http::{
    Edge, Origin,
    h2::{
        Raw,
        conformance::{Case, Is, LIMITS, cases, table},
        frame::settings,
    },
    ok,
};

/// A backend that answers, but not on `/hold`.
fn origin() -> Result<Origin> {
    Origin::new(|conn| {
        while let Some(request) = conn.request()? {
            let path = request.line.split(' ').nth(1).unwrap_or_default();
            match path {
                "/hold" => return conn.rest().map(drop),
                "/cookies" => ensure!(request.field("cookie") == Some("a=b; c=d"), "{request:?}"),
                "/own" => ensure!(request.field("x-own") == Some("y"), "{request:?}"),
                _ => {}
            }
            conn.send(ok("hello"))?;
        }
        Ok(())
    })
}

fn play(edge: &Edge, case: &Case) -> Result<()> {
    let mut raw = if case.is_bare { Raw::bare(edge) } else { Raw::new(edge) }?;
    raw.limit(Duration::from_secs(5))?;
    let is = Is::of((case.play)(&mut raw)?);
    match case.deviation {
        None => ensure!(case.allowed.contains(&is), "{is:?} is none of {:?}", case.allowed),
        Some((known, _)) => {
            ensure!(!case.allowed.contains(&is), "{is:?} is what it should be: no deviation any more");
            ensure!(is == known, "{is:?}, and neither {known:?} nor any of {:?}", case.allowed);
        }
    }
    match is {
        Is::Connection(_) => {
            raw.end().context("the connection goes on behind GOAWAY")?;
        }
        // RFC 9113 §5.4.2; a client that has said GOAWAY opens no more.
        Is::Stream(_) | Is::Answer(_) if !case.what.starts_with("GOAWAY") => {
            raw.send(settings(&[(4, 65_535)]))?;
            ensure!(raw.ask(101, "/").context("the connection has to go on")? == 200);
        }
        Is::Stream(_) | Is::Answer(_) | Is::Acknowledged | Is::Closed => {}
    }
    Ok(())
}

fn conforms(is_wanted: fn(&str) -> bool) -> Result<()> {
    let origin = origin()?;
    let edge = Edge::to(origin.addr(), LIMITS)?;
    let mut failed = Vec::new();
    for case in cases().iter().filter(|case| is_wanted(case.section)) {
        if let Err(error) = play(&edge, case) {
            failed.push(format!("{}, {}: {error:#}", case.section, case.what));
        }
    }
    ensure!(failed.is_empty(), "{} cases:\n{}", failed.len(), failed.join("\n"));
    edge.serves()
}

#[test]
fn preface_and_frames() -> Result<()> {
    conforms(|section| ["9113 §3", "9113 §4"].iter().any(|first| section.starts_with(first)))
}

#[test]
fn streams() -> Result<()> {
    conforms(|section| section.starts_with("9113 §5"))
}

#[test]
fn types_of_frames_and_error_codes() -> Result<()> {
    conforms(|section| ["9113 §6", "9113 §7", "8441 §3"].iter().any(|first| section.starts_with(first)))
}

#[test]
fn requests() -> Result<()> {
    conforms(|section| ["9113 §8", "9113 §9", "9113 §10", "8441 §4"].iter().any(|first| section.starts_with(first)))
}

#[test]
fn field_blocks() -> Result<()> {
    conforms(|section| section.starts_with("7541"))
}

/// With `MC_PROXY_WRITE_DOCS=1` the document is written anew, between its two marks.
#[test]
fn the_document_has_every_case() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let text = fs::read_to_string(&path).context("docs/conformance.md")?;
    let (begin, end) = ("<!-- cases -->\n\n", "\n<!-- end of cases -->");
    let (before, rest) = text.split_once(begin).context("no mark where the tables begin")?;
    let (tables, after) = rest.split_once(end).context("no mark where the tables end")?;
    if tables == table() {
        return Ok(());
    }
    if std::env::var_os("MC_PROXY_WRITE_DOCS").is_some() {
        return Ok(fs::write(&path, format!("{before}{begin}{}{end}{after}", table()))?);
    }
    let missing = table().lines().find(|line| !tables.contains(*line)).unwrap_or("(one too many)").to_owned();
    bail!("docs/conformance.md is not what is tested, see MC_PROXY_WRITE_DOCS; for one: {missing}")
}
