//! The few `bpf(2)` calls on links that aya does not offer for all kinds alike: create, update, pin, open, describe.
//!
//! Structures and numbers are those of the kernel's `include/uapi/linux/bpf.h`, which never change.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

const BPF_CGROUP_SOCK_OPS: u32 = 3;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_INET6_CONNECT: u32 = 11;
const BPF_SK_LOOKUP: u32 = 36;
const BPF_PERF_EVENT: u32 = 41;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;

/// Before all programs that are attached already.
const BPF_F_BEFORE: u32 = 1 << 3;

const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_NETNS: u32 = 5;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// A failed call, with its name.
#[derive(Debug, thiserror::Error)]
#[error("bpf({call}): {source}")]
pub(crate) struct BpfCallError {
    call: &'static str,
    source: io::Error,
}

impl BpfCallError {
    /// Whether the pinned object does not exist.
    pub(crate) fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// Where in the kernel a link holds its program.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook<'a> {
    /// `connect` of IPv4 sockets in a cgroup and below.
    Connect4(BorrowedFd<'a>),
    /// `connect` of IPv6 sockets in a cgroup and below.
    Connect6(BorrowedFd<'a>),
    /// Events of TCP sockets in a cgroup and below.
    SockOps(BorrowedFd<'a>),
    /// An event of perf_event_open(2).
    Event(BorrowedFd<'a>),
    /// The choice of a socket in a network namespace.
    SkLookup(BorrowedFd<'a>),
    /// Packets that a device receives. The index is one of the calling thread's namespace.
    TcxIngress(u32),
    /// Packets that a device sends. The index is one of the calling thread's namespace.
    TcxEgress(u32),
}

impl Hook<'_> {
    /// Target, attach type and flags of `BPF_LINK_CREATE`.
    fn arguments(self) -> (u32, u32, u32) {
        let fd = |fd: BorrowedFd<'_>| fd.as_raw_fd().cast_unsigned();
        match self {
            Self::Connect4(cgroup) => (fd(cgroup), BPF_CGROUP_INET4_CONNECT, 0),
            Self::Connect6(cgroup) => (fd(cgroup), BPF_CGROUP_INET6_CONNECT, 0),
            Self::SockOps(cgroup) => (fd(cgroup), BPF_CGROUP_SOCK_OPS, 0),
            Self::Event(event) => (fd(event), BPF_PERF_EVENT, 0),
            Self::SkLookup(netns) => (fd(netns), BPF_SK_LOOKUP, 0),
            Self::TcxIngress(index) => (index, BPF_TCX_INGRESS, BPF_F_BEFORE),
            Self::TcxEgress(index) => (index, BPF_TCX_EGRESS, BPF_F_BEFORE),
        }
    }
}

/// What a link says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    /// The kernel's id of it.
    pub(crate) id: u32,
    /// Id of the program it holds.
    pub(crate) program: u32,
    /// Where it holds it.
    pub(crate) place: LinkPlace,
}

/// Where a link is attached; what it was attached to may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkPlace {
    /// On the cgroup with this id.
    Cgroup(u64),
    /// On the network namespace with this inode; 0 when it is gone.
    Netns(u32),
    /// On the device with this index in some namespace; 0 when it is gone.
    Device(u32),
    /// On something else: not a link of ours.
    Other,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    reserved: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// What one hook of a device holds at most (`BPF_MPROG_MAX` of the kernel's bpf_mprog.h).
const MPROG_MAX: usize = 64;

#[repr(C)]
#[derive(Default)]
struct ProgramQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    reserved: u32,
    program_attach_flags: u64,
    links: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    target: u64,
    attach_type: u64,
    rest: [u64; 4],
}

/// One `bpf(2)` call.
fn bpf<T>(call: &'static str, command: libc::c_int, attributes: &mut T) -> Result<libc::c_int, BpfCallError> {
    // SAFETY: the attributes are a C structure of the stated size, valid for the call; the kernel writes at most that much. Pointers
    // within are to buffers the callers below keep alive.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(BpfCallError { call, source: io::Error::last_os_error() });
    }
    libc::c_int::try_from(result)
        .map_err(|_| BpfCallError { call, source: io::ErrorKind::InvalidData.into() })
}

fn owned(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Attaches a program; it stays as long as the returned link is held by a descriptor or a pin.
pub(crate) fn link_create(program: BorrowedFd<'_>, hook: Hook<'_>) -> Result<OwnedFd, BpfCallError> {
    let (target, attach_type, flags) = hook.arguments();
    let mut attributes = LinkCreate {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        target,
        attach_type,
        flags,
        ..LinkCreate::default()
    };
    bpf("BPF_LINK_CREATE", BPF_LINK_CREATE, &mut attributes).map(owned)
}

/// Puts another program in the place of the link's, without a moment of none.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<(), BpfCallError> {
    let mut attributes = LinkUpdate {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        ..LinkUpdate::default()
    };
    bpf("BPF_LINK_UPDATE", BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Takes the program away at once. Closing or unpinning the last reference would, too, but at some later time.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> Result<(), BpfCallError> {
    // The structure is one descriptor.
    let mut attributes = link.as_raw_fd().cast_unsigned();
    bpf("BPF_LINK_DETACH", BPF_LINK_DETACH, &mut attributes).map(drop)
}

/// Gives an object a name in a bpffs, by which it outlives this process.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> Result<(), BpfCallError> {
    let path = c_path("BPF_OBJ_PIN", path)?;
    let mut attributes =
        Object { path: path.as_ptr() as u64, fd: object.as_raw_fd().cast_unsigned(), ..Object::default() };
    bpf("BPF_OBJ_PIN", BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Opens a pinned object.
pub(crate) fn open_pinned(path: &Path) -> Result<OwnedFd, BpfCallError> {
    let path = c_path("BPF_OBJ_GET", path)?;
    let mut attributes = Object { path: path.as_ptr() as u64, ..Object::default() };
    bpf("BPF_OBJ_GET", BPF_OBJ_GET, &mut attributes).map(owned)
}

/// Asks a link what and where it is.
pub(crate) fn link_info(link: BorrowedFd<'_>) -> Result<LinkInfo, BpfCallError> {
    let mut raw = RawLinkInfo::default();
    let mut attributes = InfoByFd {
        fd: link.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<RawLinkInfo>()).unwrap_or(0),
        info: std::ptr::from_mut(&mut raw) as u64,
    };
    bpf("BPF_OBJ_GET_INFO_BY_FD", BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    let low = u32::try_from(raw.target & u64::from(u32::MAX)).unwrap_or(0);
    let place = match raw.kind {
        BPF_LINK_TYPE_CGROUP => LinkPlace::Cgroup(raw.target),
        BPF_LINK_TYPE_NETNS => LinkPlace::Netns(low),
        BPF_LINK_TYPE_TCX => LinkPlace::Device(low),
        _ => LinkPlace::Other,
    };
    Ok(LinkInfo { id: raw.id, program: raw.program, place })
}

/// Whether a descriptor is of a link; the kernel's answers about maps and programs have the same beginning.
pub(crate) fn is_link(object: BorrowedFd<'_>) -> bool {
    let name = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()));
    // Spelled either way over the kernel's versions.
    name.is_ok_and(|name| {
        ["anon_inode:bpf_link", "anon_inode:bpf-link"].map(Path::new).contains(&name.as_path())
    })
}

/// Ids of the links on a device's hook, of which more than 64 are not possible (`BPF_MPROG_MAX`). For TCX only (Linux 6.6).
pub(crate) fn links_on(hook: Hook<'_>) -> Result<Vec<u32>, BpfCallError> {
    let (target, attach_type, _) = hook.arguments();
    let (mut programs, mut links) = ([0_u32; MPROG_MAX], [0_u32; MPROG_MAX]);
    let mut attributes = ProgramQuery {
        target,
        attach_type,
        programs: programs.as_mut_ptr() as u64,
        count: u32::try_from(MPROG_MAX).unwrap_or(0),
        links: links.as_mut_ptr() as u64,
        ..ProgramQuery::default()
    };
    match bpf("BPF_PROG_QUERY", BPF_PROG_QUERY, &mut attributes) {
        Ok(_) => {}
        // Nothing was ever attached to the device.
        Err(error) if error.is_not_found() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let count = usize::try_from(attributes.count).unwrap_or(0).min(MPROG_MAX);
    Ok(links.into_iter().take(count).collect())
}

fn c_path(call: &'static str, path: &Path) -> Result<CString, BpfCallError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|error| BpfCallError { call, source: error.into() })
}
