//! The PROXY header reader and writer: cases, properties, and the corpus of the fuzz target.

#[path = "../../fuzz/src/proxy_header_check.rs"]
pub mod check;

mod cases;
mod crates;
mod properties;
mod tlvs;
mod wire;

// The check is shared with the fuzz package and names this module from its root.
use mc_proxy::proxy_header;

use check::check;

#[test]
fn fuzz_corpus() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/proxy_header");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("a folder of the repository") {
        check(&std::fs::read(entry.expect("an entry").path()).expect("a file of the repository"));
        count += 1;
    }
    assert!(count > 50, "{count} inputs");
}
