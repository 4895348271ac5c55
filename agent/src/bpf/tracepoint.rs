//! The kernel's tracepoint at which a cgroup is made, as an event to attach a program to.
//!
//! Its number and the places of its fields are read from a tracefs of our own, never mounted anywhere: few containers have one. A
//! program is attached to an event of perf_event_open(2) since Linux 5.15 by a link, which can be pinned.

use std::ffi::CStr;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// Where a tracefs describes the event.
const FORMAT: &CStr = c"events/cgroup/cgroup_mkdir/format";

/// The fields the program reads, and where it expects them (`ebpf/src/kubelet.rs`).
const FIELDS: [&str; 3] = [
    "field:int root;\toffset:8;\tsize:4;",
    "field:u64 id;\toffset:16;\tsize:8;",
    "field:__data_loc char[] path;\toffset:24;\tsize:4;",
];

const PERF_TYPE_TRACEPOINT: u32 = 2;
const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// The event is not to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TracepointError {
    /// A tracefs cannot be made or read: no such file system in this kernel, or it is locked down.
    #[error("reading the kernel's events: {0}")]
    Tracefs(#[source] io::Error),
    /// The event's description has no number.
    #[error("the event cgroup_mkdir has no number")]
    NoNumber,
    /// The record differs from what the program was built for.
    #[error("the event cgroup_mkdir has no `{0}`")]
    OtherField(&'static str),
    /// The kernel gives no such event.
    #[error("perf_event_open: {0}")]
    Open(#[source] io::Error),
}

/// `struct perf_event_attr` in its first version (64 bytes), which every kernel takes (linux/perf_event.h).
#[repr(C)]
#[derive(Default)]
struct EventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    rest: [u64; 5],
}

/// `PERF_ATTR_SIZE_VER0`.
const ATTRIBUTES_SIZE: u32 = 64;

const _: () = assert!(size_of::<EventAttributes>() == ATTRIBUTES_SIZE as usize);

/// Opens the event. A program attached to it sees every cgroup that is made, by whomever and on whichever CPU.
pub(crate) fn cgroup_made() -> Result<OwnedFd, TracepointError> {
    let number = number(&description().map_err(TracepointError::Tracefs)?)?;
    let attributes = EventAttributes {
        kind: PERF_TYPE_TRACEPOINT,
        size: ATTRIBUTES_SIZE,
        config: number,
        ..EventAttributes::default()
    };
    // Any process on CPU 0: what counts perf's own samples. Programs are run wherever the event happens.
    let (process, cpu, group): (libc::pid_t, libc::c_int, libc::c_int) = (-1, 0, -1);
    // SAFETY: the attributes are a structure of the stated size, which the kernel only reads.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            process,
            cpu,
            group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    let fd = libc::c_int::try_from(result).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(|| TracepointError::Open(io::Error::last_os_error()))?;
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn description() -> io::Result<String> {
    let context = rustix::mount::fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let tracefs =
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    let file = rustix::fs::openat(&tracefs, FORMAT, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

/// The event's number, if its record is the one the program reads.
fn number(description: &str) -> Result<u64, TracepointError> {
    if let Some(missing) = FIELDS.into_iter().find(|field| !description.contains(field)) {
        return Err(TracepointError::OtherField(missing));
    }
    let number = description.lines().find_map(|line| line.strip_prefix("ID: "));
    number.and_then(|number| number.trim().parse().ok()).ok_or(TracepointError::NoNumber)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 5.15 and 6.18 have it.
    const DESCRIPTION: &str = "name: cgroup_mkdir\nID: 544\nformat:\n\
        \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\n\
        \tfield:int root;\toffset:8;\tsize:4;\tsigned:1;\n\
        \tfield:int level;\toffset:12;\tsize:4;\tsigned:1;\n\
        \tfield:u64 id;\toffset:16;\tsize:8;\tsigned:0;\n\
        \tfield:__data_loc char[] path;\toffset:24;\tsize:4;\tsigned:0;\n\n\
        print fmt: \"root=%d id=%llu level=%d path=%s\"\n";

    #[test]
    fn the_number_is_read_if_the_record_is_the_one_that_is_known() {
        assert_eq!(number(DESCRIPTION).unwrap(), 544);
    }

    #[test]
    fn another_record_is_refused_and_the_field_named() {
        let other = DESCRIPTION.replace("field:u64 id;\toffset:16;", "field:u64 id;\toffset:24;");
        let error = number(&other).unwrap_err();
        assert!(matches!(error, TracepointError::OtherField(field) if field.contains("u64 id")), "{error}");
    }

    #[test]
    fn a_description_without_a_number_is_refused() {
        let error = number(&DESCRIPTION.replace("ID: 544", "")).unwrap_err();
        assert!(matches!(error, TracepointError::NoNumber), "{error}");
    }
}
