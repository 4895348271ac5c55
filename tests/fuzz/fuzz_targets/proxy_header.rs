//! `fuzz::targets::proxy_header` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::proxy_header::run(input));
