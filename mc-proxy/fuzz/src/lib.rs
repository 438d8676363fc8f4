//! What the fuzz targets check, over the daemon's own sources taken in by path: the modules under test are pure, and
//! SQLite, gRPC and eBPF would only make the sanitizer's build slow. `cargo test` replays the corpora through the same
//! checks (`mc-proxy/tests/hello`, `mc-proxy/tests/proxy_header`).
//!
//! ```text
//! cargo +nightly fuzz run client_hello -- -max_len=6000 -max_total_time=180
//! cargo +nightly fuzz run route_pattern -- -max_len=300 -max_total_time=60
//! cargo +nightly fuzz run list -- -max_len=2000 -max_total_time=120
//! cargo +nightly fuzz run proxy_header -- -max_len=600 -max_total_time=120
//! ```

pub mod check;
pub mod firewall;
#[path = "../../src/proxy_header/mod.rs"]
pub mod proxy_header;
pub mod proxy_header_check;
pub mod route;
#[path = "../../src/tls/mod.rs"]
pub mod tls;
