//! Fuzz targets: everything that somebody else has a say in, taken apart again and again with bytes that nobody meant.
//!
//! A target is a function of bytes that panics where the code under it breaks a promise: mostly that what it takes it writes back
//! alike, that what it does not take it says so, and that it comes to an end. There are two drivers of them:
//!
//! - `cargo xtask fuzz` builds each with libFuzzer, which looks for inputs that reach new code, and lets it run for minutes. The layout
//!   is cargo-fuzz's, but neither cargo-fuzz nor a nightly compiler is needed: the coverage comes from LLVM's pass, which a stable
//!   compiler runs on request (`-Cpasses=sancov-module`), and libFuzzer from the crate `libfuzzer-sys`, for which there has to be a C++
//!   compiler. No address sanitizer, which does take a nightly: what is fuzzed here has no `unsafe` of its own. Overflows and debug
//!   assertions are checked.
//! - The crate's own test, and so `cargo xtask test`, gives each target its seeds and a fixed number of mutations of them
//!   ([`mutation`]), built with what the other tests are built with. That takes seconds, finds what is near, and keeps the targets from
//!   rotting.
//!
//! Seeds are made by the code that makes honest messages, so that there are no files of bytes to go stale. What a target has found is kept
//! as a unit test beside the code that was mended.
#![forbid(unsafe_code)]

pub mod frames;
pub mod mutation;
pub mod target;
pub mod targets;

pub use target::{TARGETS, Target};
