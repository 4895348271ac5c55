//! Profiles of this process for `go tool pprof`: where its processors' time goes (`cpu`) and what holds its memory (`heap`).
//!
//! The crates for it are not for a proxy of a few MiB: pprof 0.15 keeps 220 MiB once it has been used, and jemalloc_pprof 0.9 lifts
//! prost's limit of recursion for all messages of the process, those of strangers included. What samples here has 100 KiB that are
//! not touched before, and gives back what the names of functions take.

mod cpu;
mod heap;
mod mappings;
mod pprof;
mod ring;

pub(crate) use cpu::{CpuError, Frequency, cpu};
pub(crate) use heap::{HeapError, activate, heap, is_active};

use self::mappings::Mapping;
use self::pprof::{Description, Frame, Kind, Stack, encode};

/// Encodes `stacks` with the names of their functions, as far as the program tells them: one that is stripped does not, and its
/// profile is read beside one that is not.
fn finish(description: &Description<'_>, stacks: &[Stack]) -> Vec<u8> {
    let profile = encode(description, stacks, &Mapping::all(), frames_at);
    backtrace::clear_symbol_cache();
    profile
}

/// The functions around `address`, those inlined into others first.
fn frames_at(address: usize) -> Vec<Frame> {
    let mut frames = Vec::new();
    backtrace::resolve(address as *mut std::ffi::c_void, |symbol| {
        if let Some(name) = symbol.name() {
            frames.push(Frame {
                function: format!("{name:#}"),
                file: symbol.filename().map(|file| file.display().to_string()).unwrap_or_default(),
                line: symbol.lineno().unwrap_or_default(),
            });
        }
    });
    frames
}
