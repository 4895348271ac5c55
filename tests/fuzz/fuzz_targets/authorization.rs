//! `fuzz::targets::authorization` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| fuzz::targets::authorization::run(input));
