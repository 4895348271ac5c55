//! What holds the process's memory: the stacks that asked jemalloc for what is not given back yet, of one in each half MiB asked for.
//!
//! jemalloc must be told at its start that it may be asked, since what it keeps for that is not for every proxy: see [`TURN_ON`].

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tikv_jemalloc_ctl::raw;

use super::{Description, Kind, Stack, finish};

/// What turns profiles of memory on, in the environment of the process's start; jemalloc reads it itself.
pub(crate) const TURN_ON: &str = "_RJEM_MALLOC_CONF=prof:true,prof_active:false";

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeapError {
    /// The process was not started for it.
    #[error("heap profiling is not enabled; start the process with {TURN_ON} in its environment")]
    Disabled,
    /// Nobody asked for samples.
    #[error("heap profiling not active; activate with /debug/pprof/heap/profiling?activate=true")]
    Inactive,
    /// jemalloc refused.
    #[error("{name} of jemalloc: {error}")]
    Allocator { name: &'static str, error: tikv_jemalloc_ctl::Error },
    /// A file in memory, for what jemalloc writes, could not be had.
    #[error("a file in memory: {0}")]
    File(#[from] io::Error),
    /// It is not what this reads.
    #[error("the line {0:?} of jemalloc's profile makes no sense")]
    Line(String),
}

/// Whether what is asked for is sampled now.
pub(crate) fn is_active() -> Result<bool, HeapError> {
    enabled()?;
    // SAFETY: a `bool` (jemalloc(3), "prof.active").
    unsafe { raw::read(b"prof.active\0") }.map_err(allocator("prof.active"))
}

/// Begins to sample what is asked for, or ends that and forgets the samples.
pub(crate) fn activate(active: bool) -> Result<(), HeapError> {
    enabled()?;
    // SAFETY: a `bool` (jemalloc(3), "prof.active").
    unsafe { raw::write(b"prof.active\0", active) }.map_err(allocator("prof.active"))?;
    if !active {
        // SAFETY: both are a `size_t` (jemalloc(3), "prof.lg_sample" and "prof.reset").
        unsafe { raw::read(b"prof.lg_sample\0").and_then(|rate: usize| raw::write(b"prof.reset\0", rate)) }
            .map_err(allocator("prof.reset"))?;
    }
    Ok(())
}

/// What is held of what was asked for since sampling began, in pprof's format.
pub(crate) fn heap() -> Result<Vec<u8>, HeapError> {
    if !is_active()? {
        return Err(HeapError::Inactive);
    }
    let (period, stacks) = parsed(&dumped()?)?;
    const SPACE: Kind = Kind("space", "bytes");
    let description = Description {
        kinds: &[Kind("inuse_objects", "count"), Kind("inuse_space", "bytes")],
        period: (SPACE, period),
        length: Duration::ZERO,
        comment: String::new(),
    };
    Ok(finish(&description, &stacks))
}

fn enabled() -> Result<(), HeapError> {
    // SAFETY: a `bool` (jemalloc(3), "opt.prof").
    match unsafe { raw::read(b"opt.prof\0") }.map_err(allocator("opt.prof"))? {
        true => Ok(()),
        false => Err(HeapError::Disabled),
    }
}

fn allocator(name: &'static str) -> impl FnOnce(tikv_jemalloc_ctl::Error) -> HeapError {
    move |error| HeapError::Allocator { name, error }
}

/// jemalloc's own text.
fn dumped() -> Result<String, HeapError> {
    let mut file = File::from(memfd_create(c"heap", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
    let path = format!("/proc/self/fd/{}\0", file.as_raw_fd());
    // SAFETY: a pointer to a string that ends with a zero byte (jemalloc(3), "prof.dump"), which lives as long as it is read.
    unsafe { raw::write(b"prof.dump\0", path.as_ptr()) }.map_err(allocator("prof.dump"))?;
    let mut text = String::new();
    file.rewind()?;
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// The bytes between two samples, and the stacks, of `heap_v2/PERIOD`, then for each stack a line `@ 0xADDRESS ...` and after it
/// `t*: OBJECTS: BYTES [...]`, up to the list of mappings.
fn parsed(text: &str) -> Result<(u64, Vec<Stack>), HeapError> {
    let wrong = |line: &str| HeapError::Line(line.to_owned());
    let mut lines = text.lines().take_while(|line| *line != "MAPPED_LIBRARIES:");
    let first = lines.next().unwrap_or_default();
    let period = first.strip_prefix("heap_v2/").and_then(|period| period.parse().ok());
    let period: u64 = period.filter(|period| *period > 0).ok_or_else(|| wrong(first))?;
    let mut stacks = Vec::new();
    let mut addresses = None;
    for line in lines.map(str::trim) {
        if let Some(stack) = line.strip_prefix("@ ") {
            addresses =
                Some(stack.split(' ').map(returned_to).collect::<Option<_>>().ok_or_else(|| wrong(line))?);
        } else if let Some(counts) = line.strip_prefix("t*: ")
            && let Some(addresses) = addresses.take()
        {
            let values = unsampled(counts, period).ok_or_else(|| wrong(line))?;
            stacks.push(Stack { addresses, values });
        }
    }
    Ok((period, stacks))
}

/// An address within the call, of where it returns to.
fn returned_to(text: &str) -> Option<usize> {
    usize::from_str_radix(text.strip_prefix("0x")?, 16).ok()?.checked_sub(1)
}

/// How many objects and bytes those stand for that were sampled. An object of s bytes is sampled with the probability 1 - exp(-s/period).
#[expect(clippy::cast_precision_loss, reason = "it is an estimate")]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "of a number that is no less than the one it is made of"
)]
fn unsampled(counts: &str, period: u64) -> Option<Vec<u64>> {
    let (objects, rest) = counts.split_once(": ")?;
    let bytes = rest.split(' ').next()?;
    let (objects, bytes): (u64, u64) = (objects.parse().ok()?, bytes.parse().ok()?);
    if objects == 0 {
        return Some(vec![0, 0]);
    }
    let size = bytes as f64 / objects as f64;
    let scale = 1.0 / (1.0 - (-size / period as f64).exp());
    Some([objects, bytes].map(|number| (number as f64 * scale).round() as u64).to_vec())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use prost::Message as _;

    use super::super::pprof::Profile;
    use super::*;

    #[inline(never)]
    fn hold(bytes: usize) -> Vec<u8> {
        std::hint::black_box(vec![1; bytes])
    }

    /// Whether there are profiles is said when a process starts, so that this test starts itself once more.
    #[test]
    fn what_is_held_is_found_under_the_function_that_asked_for_it() {
        const NAME: &str = "profile::heap::tests::what_is_held_is_found_under_the_function_that_asked_for_it";
        let (name, value) = TURN_ON.split_once('=').unwrap();
        if std::env::var(name).as_deref() == Ok(value) {
            return in_a_process_that_was_started_for_it();
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env(name, value)
            .output()
            .unwrap();
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && told.contains("1 passed"), "{told}");
    }

    fn in_a_process_that_was_started_for_it() {
        assert!(matches!(heap(), Err(HeapError::Inactive)));
        activate(true).unwrap();
        let held = hold(64 << 20);
        let of_hold = || {
            let profile = Profile::decode(&*heap().unwrap()).unwrap();
            let named = profile.named().into_iter();
            let of_hold = named.filter(|(names, _)| names.iter().any(|name| name.ends_with("hold")));
            of_hold.map(|(_, values)| values[1]).sum::<i64>()
        };
        let expected = 64 << 20;
        assert!((expected..expected + (1 << 20)).contains(&of_hold()), "{}", of_hold());
        drop(held);
        assert_eq!(of_hold(), 0);
        activate(false).unwrap();
        assert!(matches!(heap(), Err(HeapError::Inactive)));
    }

    #[test]
    fn jemallocs_text_becomes_stacks_with_what_they_hold() {
        let text = "heap_v2/524288\n  t*: 3: 4194688 [0: 0]\n  t0: 3: 4194688 [0: 0]\n\\
            @ 0x1001 0x2002\n  t*: 1: 4194304 [0: 0]\n  t0: 1: 4194304 [0: 0]\n\\
            @ 0x3003\n  t*: 2: 384 [0: 0]\n  t0: 2: 384 [0: 0]\n\\
            MAPPED_LIBRARIES:\n55d0c0a00000-55d0c0b00000 r-xp 00012000 fe:01 4242 /usr/bin/ztunnel\n";
        let (period, stacks) = parsed(text).unwrap();
        assert_eq!(period, 524_288);
        let large = Stack { addresses: vec![0x1000, 0x2001], values: vec![1, 4_195_712] };
        let small = Stack { addresses: vec![0x3002], values: vec![5462, 1_048_768] };
        assert_eq!(stacks, [large, small]);
    }

    #[test]
    fn what_is_no_profile_is_named() {
        for (text, line) in [
            ("", ""),
            ("heap_v2/0\n", "heap_v2/0"),
            ("heap_v2/1\n@ here\n", "@ here"),
            ("heap_v2/1\n@ 0x1\n t*: many: 1 [0: 0]\n", "t*: many: 1 [0: 0]"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(matches!(&error, HeapError::Line(found) if found == line), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_process_that_was_not_started_for_it_says_how_to() {
        for error in [heap().unwrap_err(), activate(true).unwrap_err()] {
            assert!(error.to_string().contains("_RJEM_MALLOC_CONF=prof:true"), "{error}");
        }
    }
}
