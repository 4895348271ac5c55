//! `fuzz::targets::hbone_server` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::hbone_server::run(input));
