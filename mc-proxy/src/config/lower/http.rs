//! `[http]`.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    super::{
        HttpLimits, TrustedProxies,
        file::{self, Given},
        size::Size,
    },
    Lower,
};

/// Below this no browser gets through, above it a head is a weapon.
const HEAD: RangeInclusive<u32> = 1_024..=1 << 20;

/// More the type of a target does not hold.
const TARGET: RangeInclusive<u32> = 1_024..=65_534;

/// What the counts are taken in; longer than this nobody expects them to reach.
const WINDOW_MAX: Duration = Duration::from_secs(3_600);

impl Lower<'_, '_> {
    pub(super) fn http(&mut self, http: file::Http) -> HttpLimits {
        let default = HttpLimits::default();
        let target_at = http.max_target_bytes.as_ref().map(|given| given.at.clone());
        let window_at = http.window.as_ref().map(|given| given.at.clone()).unwrap_or_default();
        let mut limits = HttpLimits {
            max_head_bytes: self.bytes(http.max_head_bytes, "http.max_head_bytes", HEAD, default.max_head_bytes),
            max_fields: self.within(http.max_fields, "http.max_fields", 1..=10_000, default.max_fields),
            max_target_bytes: self.bytes(
                http.max_target_bytes,
                "http.max_target_bytes",
                TARGET,
                default.max_target_bytes,
            ),
            header_timeout: self.deadline(http.header_timeout, "http.header_timeout", default.header_timeout),
            body_timeout: self.deadline(http.body_timeout, "http.body_timeout", default.body_timeout),
            min_body_rate: self.bytes(http.min_body_rate, "http.min_body_rate", 0..=u32::MAX, default.min_body_rate),
            keepalive_timeout: self.deadline(
                http.keepalive_timeout,
                "http.keepalive_timeout",
                default.keepalive_timeout,
            ),
            write_timeout: self.deadline(http.write_timeout, "http.write_timeout", default.write_timeout),
            response_timeout: self.deadline(http.response_timeout, "http.response_timeout", default.response_timeout),
            max_body_bytes: http.max_body_bytes.map_or(default.max_body_bytes, |given| given.value.0),
            max_requests: self.within(http.max_requests, "http.max_requests", 0..=u32::MAX, default.max_requests),
            max_concurrent_streams: self.within(
                http.max_concurrent_streams,
                "http.max_concurrent_streams",
                1..=10_000,
                default.max_concurrent_streams,
            ),
            max_resets: self.within(http.max_resets, "http.max_resets", 1..=1_000_000, default.max_resets),
            max_continuations: self.within(
                http.max_continuations,
                "http.max_continuations",
                0..=1_000,
                default.max_continuations,
            ),
            max_control_frames: self.within(
                http.max_control_frames,
                "http.max_control_frames",
                1..=1_000_000,
                default.max_control_frames,
            ),
            window: self.deadline(http.window, "http.window", default.window),
            pool_idle_timeout: self.deadline(
                http.pool_idle_timeout,
                "http.pool_idle_timeout",
                default.pool_idle_timeout,
            ),
            pool_max_idle: self.within(http.pool_max_idle, "http.pool_max_idle", 0..=10_000, default.pool_max_idle),
            max_backend_connections: self.within(
                http.max_backend_connections,
                "http.max_backend_connections",
                0..=u32::MAX,
                default.max_backend_connections,
            ),
        };
        match target_at {
            Some(at) if limits.max_target_bytes > limits.max_head_bytes => {
                let text = format!(
                    "http.max_target_bytes: {} is more than a whole head may have; write at most http.max_head_bytes, {}",
                    limits.max_target_bytes, limits.max_head_bytes
                );
                self.report.error(&at, text);
            }
            // Whoever wants shorter heads has said it of targets too.
            Some(_) | None => limits.max_target_bytes = limits.max_target_bytes.min(limits.max_head_bytes),
        }
        if limits.window > WINDOW_MAX {
            let text = format!("http.window must be at most 1h; write \"{}s\"", default.window.as_secs());
            self.report.error(&window_at, text);
        }
        limits
    }

    pub(super) fn trusted_proxies(&mut self, given: Option<&Given<Vec<Given<String>>>>) -> TrustedProxies {
        TrustedProxies::new(self.networks(given, "http.trusted_proxies"))
    }

    fn bytes(&mut self, given: Option<Given<Size>>, key: &str, range: RangeInclusive<u32>, default: u32) -> u32 {
        let given = given.map(|given| Given { value: i64::try_from(given.value.0).unwrap_or(i64::MAX), at: given.at });
        self.within(given, key, range, default)
    }
}
