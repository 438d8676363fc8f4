#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    mc_proxy_fuzz::proxy_header_check::check(bytes);
});
