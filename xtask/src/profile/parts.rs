//! The parts of a proxy's work, and which of them a sample was taken in.
//!
//! The kernel's functions are told by the whole chain of calls: what a program in the kernel calls counts as the program's, what arrives
//! at a receiver while the sender still sends as the receiving side's. In user space only the innermost function is certain, since
//! programs are built without frame pointers; it is told by the crate its name begins with. What a compiler has inlined is its caller's.

use serde::{Serialize, Serializer};

/// A function that was being executed, or that waited for the one before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Frame<'a> {
    pub(super) kernel: bool,
    pub(super) symbol: &'a str,
    /// The file or the part of the kernel it is in.
    pub(super) object: &'a str,
}

/// A part, in the order of tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// Sending, down to the device, without the three below.
    Send,
    /// The receiving side's share of it: TCP input, run by the sender.
    SendArrival,
    /// Waking the thread that reads, from there.
    SendWake,
    Receive,
    /// Asking for events, and waking threads of one's own.
    Wait,
    /// From one thread to another. Interrupts are off meanwhile, and a sampling timer's wait for the end of it.
    Switch,
    /// Making and ending connections, and their options.
    Open,
    /// Programs of eBPF with what they call, wherever they run.
    Bpf,
    Fault,
    OtherKernel,
    Tls,
    Http2,
    Memory,
    Runtime,
    Own,
    OtherUser,
}

impl Part {
    pub(super) const ALL: [Self; 16] = [
        Self::Send,
        Self::SendArrival,
        Self::SendWake,
        Self::Receive,
        Self::Wait,
        Self::Switch,
        Self::Open,
        Self::Bpf,
        Self::Fault,
        Self::OtherKernel,
        Self::Tls,
        Self::Http2,
        Self::Memory,
        Self::Runtime,
        Self::Own,
        Self::OtherUser,
    ];

    /// As tables and files have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Send => "kernel: sending",
            Self::SendArrival => "kernel: the receiving side, in the sender's softirq",
            Self::SendWake => "kernel: waking the reader, from there",
            Self::Receive => "kernel: receiving",
            Self::Wait => "kernel: epoll, and waking own threads",
            Self::Switch => "kernel: switching threads",
            Self::Open => "kernel: making and ending connections",
            Self::Bpf => "kernel: eBPF programs and what they call",
            Self::Fault => "kernel: page faults",
            Self::OtherKernel => "kernel: system call entry, interrupts, others",
            Self::Tls => "user: TLS records and cryptography",
            Self::Http2 => "user: HTTP/2",
            Self::Memory => "user: copying and allocation",
            Self::Runtime => "user: runtime and system call stubs",
            Self::Own => "user: the proxy's own code",
            Self::OtherUser => "user: others",
        }
    }

    pub(super) fn in_kernel(self) -> bool {
        self <= Self::OtherKernel
    }
}

impl Serialize for Part {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// What `perf script` calls a function it has no name of.
const UNKNOWN: &str = "[unknown]";

type Names = &'static [&'static str];

/// Functions of the kernel, by what their names begin with.
const BPF: Names = &["bpf_prog_", "bpf_trampoline_", "bpf_dispatcher_"];
const FAULT: Names = &["asm_exc_page_fault", "exc_page_fault", "do_user_addr_fault", "handle_mm_fault"];
const SEND: Names = &[
    "tcp_sendmsg",
    "sock_write_iter",
    "sock_sendmsg",
    "__sock_sendmsg",
    "__sys_send",
    "___sys_sendmsg",
    "__x64_sys_send",
    "__do_sys_send",
    "tcp_splice_eof",
];
const SOFTIRQ: Names = &["__do_softirq", "handle_softirqs", "do_softirq", "net_rx_action", "process_backlog"];
const WAKE: Names = &["sock_def_readable", "ep_poll_callback", "try_to_wake_up", "__wake_up"];
const RECEIVE: Names = &[
    "tcp_recvmsg",
    "sock_recvmsg",
    "sock_read_iter",
    "__sys_recv",
    "___sys_recvmsg",
    "__x64_sys_recv",
    "__do_sys_recv",
    "tcp_splice_read",
];
const WAIT: Names = &[
    "do_epoll_",
    "ep_",
    "__x64_sys_epoll_",
    "do_futex",
    "__x64_sys_futex",
    "eventfd_",
    "do_sys_poll",
    "do_poll",
    "do_nanosleep",
];
const SWITCH: Names = &["schedule", "__schedule", "ret_from_fork", "__x64_sys_sched_yield"];
const OPEN: Names = &[
    "__sys_connect",
    "__sys_accept",
    "__sys_socket",
    "__sys_bind",
    "__sys_listen",
    "__sys_shutdown",
    "__sys_setsockopt",
    "__sys_getsockopt",
    "__sys_getsockname",
    "__sys_getpeername",
    "do_accept",
    "do_sock_setsockopt",
    "do_sock_getsockopt",
    "__x64_sys_close",
    "__x64_sys_setns",
    "__fput",
    "task_work_run",
    "tcp_close",
];

/// Crates; and functions that are in no crate: their names, or with `_` at the end what their names begin with.
const TLS: Names = &[
    "rustls",
    "tokio_rustls",
    "webpki",
    "x509_parser",
    "aws_lc_",
    "aes_",
    "aesni_",
    "_aesni_",
    "vaes_",
    "gcm_",
    "ghash_",
    "chacha20_",
    "ChaCha20_",
    "EVP_",
    "CRYPTO_",
    "SSL_",
    // Of other proxies.
    "boring",
    "ring",
];
const HTTP2: Names = &["h2", "http", "http_body", "hyper", "hyper_util"];
const MEMORY: Names = &[
    "bytes",
    "memcpy",
    "memmove",
    "memset",
    "memcmp",
    "bcmp",
    "__memcpy_",
    "__memmove_",
    "__memset_",
    "__memcmp_",
    "__memcpy",
    "__memmove",
    "malloc",
    "calloc",
    "realloc",
    "free",
    "cfree",
    "posix_memalign",
    "aligned_alloc",
    "__libc_malloc",
    "__libc_calloc",
    "__libc_realloc",
    "__libc_free",
    "_int_",
    "_mid_memalign",
    "unlink_chunk",
    "sysmalloc",
    "tcache_",
    "je_",
    "_rjem_",
    "tikv_jemallocator",
    "mi_",
    "_mi_",
    "__rust_",
    "__rdl_",
    "__rg_",
    "__rustc",
];
const RUNTIME: Names = &[
    "tokio",
    "tokio_util",
    "tokio_stream",
    "mio",
    "futures",
    "futures_core",
    "futures_util",
    "futures_channel",
    "parking_lot",
    "parking_lot_core",
    "socket2",
    "rustix",
    "nix",
    "pthread_",
    "__pthread_",
    "__lll_",
    "__vdso_",
    "clock_gettime",
    "__clock_gettime",
    "syscall",
    "__syscall_",
    "epoll_",
    "__send",
    "__libc_send",
    "__recv",
    "__libc_recv",
    "__read",
    "__libc_read",
    "__write",
    "__libc_write",
    "send",
    "recv",
    "read",
    "write",
    "readv",
    "writev",
    "sendmsg",
    "recvmsg",
    "recvfrom",
    "sendto",
];
const OWN: Names = &["ztunnel", "tunnel", "mesh", "daemon", "api", "echo", "haproxy"];

/// What a name outside of the kernel stands for.
const PARTS: [(Names, Part); 5] = [
    (TLS, Part::Tls),
    (HTTP2, Part::Http2),
    (MEMORY, Part::Memory),
    (RUNTIME, Part::Runtime),
    (OWN, Part::Own),
];

/// Where a sample was taken, told by its functions, the innermost first.
pub(super) fn part(frames: &[Frame<'_>]) -> Part {
    match frames.first() {
        None => Part::OtherUser,
        Some(frame) if frame.kernel => in_kernel(frames),
        Some(frame) => in_user(frame),
    }
}

fn in_kernel(frames: &[Frame<'_>]) -> Part {
    // Programs' own functions below the kernel's are not ours to read here.
    let frames = frames.iter().take_while(|frame| frame.kernel);
    let chain: Vec<&str> = frames.map(|frame| frame.symbol).collect();
    // How far from the innermost function the nearest of these is.
    let find = |names: Names| chain.iter().position(|symbol| begins(symbol, names));
    if find(BPF).is_some() {
        return Part::Bpf;
    }
    if find(FAULT).is_some() {
        return Part::Fault;
    }
    if let Some(send) = find(SEND) {
        let within = |names: Names| find(names).is_some_and(|place| place < send);
        return match (within(SOFTIRQ), within(WAKE)) {
            (true, true) => Part::SendWake,
            (true, false) => Part::SendArrival,
            (false, _) => Part::Send,
        };
    }
    let others = [(SWITCH, Part::Switch), (RECEIVE, Part::Receive), (OPEN, Part::Open), (WAIT, Part::Wait)];
    let other = others.into_iter().find(|(names, _)| find(names).is_some());
    other.map_or(Part::OtherKernel, |(_, part)| part)
}

fn in_user(frame: &Frame<'_>) -> Part {
    let file = frame.object.rsplit('/').next().unwrap_or_default();
    if ["libcrypto.", "libssl."].iter().any(|library| file.starts_with(library)) {
        return Part::Tls;
    }
    if let Some(part) = heads(frame.symbol).find_map(named) {
        return part;
    }
    // The language's own collections serve all others; alone they are memory that is moved and handed out.
    match file {
        _ if heads(frame.symbol).any(|head| head == "alloc") => Part::Memory,
        "[vdso]" => Part::Runtime,
        "haproxy" if frame.symbol != UNKNOWN => Part::Own,
        _ => Part::OtherUser,
    }
}

/// What a crate, or a function in none, is.
fn named(name: &str) -> Option<Part> {
    let is = |known: &str| name == known || (known.ends_with('_') && name.starts_with(known));
    let mut parts = PARTS.into_iter();
    parts.find(|(names, _)| names.iter().any(|known| is(known))).map(|(_, part)| part)
}

/// The names that paths in a symbol begin with, in their order: `core`, `h2` and `bytes` in
/// `core::ptr::drop_in_place<h2::codec::Codec<bytes::Bytes>>`. A symbol without paths is its own.
fn heads(symbol: &str) -> impl Iterator<Item = &str> {
    let inner = |c: char| c.is_alphanumeric() || c == '_';
    let plain = (!symbol.contains("::")).then_some(symbol);
    let paths = symbol.match_indices("::").filter_map(move |(end, _)| {
        let start = symbol[..end].rfind(|c| !inner(c)).map_or(0, |before| before + 1);
        let head = !symbol[..start].ends_with("::");
        (head && start < end).then(|| &symbol[start..end])
    });
    plain.into_iter().chain(paths)
}

fn begins(symbol: &str, names: Names) -> bool {
    names.iter().any(|name| symbol.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(chain: &str) -> Part {
        let frame = |symbol| Frame { kernel: true, symbol, object: "[kernel.kallsyms]" };
        part(&chain.split(' ').map(frame).collect::<Vec<_>>())
    }

    fn user(symbol: &str, object: &str) -> Part {
        part(&[Frame { kernel: false, symbol, object }])
    }

    #[test]
    fn a_sample_in_the_kernel_is_of_the_part_its_chain_of_calls_says() {
        for (chain, expected) in [
            ("skb_copy tcp_sendmsg_locked tcp_sendmsg __sys_sendto do_syscall_64", Part::Send),
            ("fdget __sys_sendto __x64_sys_sendto do_syscall_64", Part::Send),
            ("veth_xmit dev_hard_start_xmit ip_output tcp_write_xmit tcp_sendmsg", Part::Send),
            (
                "tcp_ack tcp_v4_rcv process_backlog net_rx_action handle_softirqs tcp_sendmsg",
                Part::SendArrival,
            ),
            (
                "ttwu_queue try_to_wake_up sock_def_readable tcp_v4_rcv handle_softirqs tcp_sendmsg",
                Part::SendWake,
            ),
            // What a sender wakes on its own way is no reader.
            ("try_to_wake_up release_sock tcp_sendmsg", Part::Send),
            ("copy_to_iter tcp_recvmsg_locked tcp_recvmsg sock_recvmsg __sys_recvfrom", Part::Receive),
            ("tcp_rcv handle_softirqs do_softirq __local_bh_enable_ip tcp_recvmsg", Part::Receive),
            ("pick_next_task __schedule schedule ep_poll do_epoll_wait", Part::Switch),
            ("finish_task_switch __schedule schedule exit_to_user_mode_loop", Part::Switch),
            ("__schedule schedule schedule_timeout sk_wait_data tcp_recvmsg", Part::Switch),
            ("sock_poll ep_send_events do_epoll_wait", Part::Wait),
            ("ep_poll_callback eventfd_write vfs_write ksys_write", Part::Wait),
            ("tcp_v4_connect inet_stream_connect __sys_connect", Part::Open),
            ("tcp_close inet_release __sock_release sock_close __fput task_work_run", Part::Open),
            ("bpf_sk_assign bpf_prog_6deef7357e7b4530_tc_lo tcx_run handle_softirqs tcp_sendmsg", Part::Bpf),
            ("clear_page handle_mm_fault do_user_addr_fault asm_exc_page_fault", Part::Fault),
            ("copy_from_iter exc_page_fault tcp_sendmsg", Part::Fault),
            ("syscall_return_via_sysret", Part::OtherKernel),
            ("tick_nohz handle_softirqs irq_exit_rcu sysvec_apic_timer_interrupt", Part::OtherKernel),
        ] {
            assert_eq!(kernel(chain), expected, "{chain}");
        }
    }

    #[test]
    fn a_sample_in_user_space_is_of_the_part_its_innermost_function_says() {
        let (ztunnel, libc) = ("/opt/ztunnel", "/usr/lib/x86_64-linux-gnu/libc.so.6");
        for (symbol, object, expected) in [
            ("<tokio_rustls::client::TlsStream<IO> as tokio::io::AsyncRead>::poll_read", ztunnel, Part::Tls),
            ("rustls::record_layer::RecordLayer::encrypt_outgoing", ztunnel, Part::Tls),
            ("aws_lc_0_32_0_aes_gcm_enc_update_vaes_avx2", ztunnel, Part::Tls),
            ("aws_lc_rs::aead::unbound_key::UnboundKey::seal", ztunnel, Part::Tls),
            ("_aesni_ctr32_ghash_6x", ztunnel, Part::Tls),
            ("[unknown]", "/usr/lib/x86_64-linux-gnu/libcrypto.so.3", Part::Tls),
            ("h2::proto::streams::prioritize::Prioritize::pop_frame", ztunnel, Part::Http2),
            ("core::ptr::drop_in_place<h2::codec::Codec<bytes::bytes::Bytes>>", ztunnel, Part::Http2),
            ("<core::pin::Pin<P> as h2::client::Call>::call", ztunnel, Part::Http2),
            ("http::header::map::HeaderMap<T>::try_insert2", ztunnel, Part::Http2),
            ("__memmove_avx_unaligned_erms", libc, Part::Memory),
            ("malloc", libc, Part::Memory),
            ("_int_free", libc, Part::Memory),
            ("_rjem_je_arena_tcache_fill_small", ztunnel, Part::Memory),
            ("je_malloc_default", ztunnel, Part::Memory),
            ("_rjem_sdallocx", ztunnel, Part::Memory),
            ("__rust_alloc", ztunnel, Part::Memory),
            ("bytes::bytes_mut::BytesMut::reserve_inner", ztunnel, Part::Memory),
            ("alloc::vec::Vec<T,A>::reserve", ztunnel, Part::Memory),
            ("<alloc::boxed::Box<h2::Reason> as core::any::Any>::type_id", ztunnel, Part::Http2),
            ("tokio::runtime::scheduler::current_thread::Context::enter", ztunnel, Part::Runtime),
            ("mio::poll::Poll::poll", ztunnel, Part::Runtime),
            ("epoll_wait", libc, Part::Runtime),
            ("__send", libc, Part::Runtime),
            ("__vdso_clock_gettime", "[vdso]", Part::Runtime),
            ("tunnel::copy::pump::Pump<R,W>::poll", ztunnel, Part::Own),
            ("<&mut ztunnel::proxy::outbound::Relay as core::future::Future>::poll", ztunnel, Part::Own),
            ("echo::load::relay::Copier::run", "/opt/echo", Part::Own),
            ("stream_process", "/usr/sbin/haproxy", Part::Own),
            ("free_stream", "/usr/sbin/haproxy", Part::Own),
            ("core::hash::BuildHasher::hash_one", ztunnel, Part::OtherUser),
            ("[unknown]", ztunnel, Part::OtherUser),
            ("[unknown]", "[unknown]", Part::OtherUser),
        ] {
            assert_eq!(user(symbol, object), expected, "{symbol} in {object}");
        }
        assert_eq!(part(&[]), Part::OtherUser);
    }

    #[test]
    fn what_called_into_the_kernel_does_not_count() {
        let call = Frame { kernel: true, symbol: "do_syscall_64", object: "[kernel.kallsyms]" };
        let caller = Frame { kernel: false, symbol: "bpf_prog_test", object: "a" };
        assert_eq!(part(&[call, caller]), Part::OtherKernel);
    }

    #[test]
    fn every_part_has_a_name_of_its_own_and_its_place() {
        assert!(Part::ALL.is_sorted());
        let mut names: Vec<&str> = Part::ALL.map(Part::name).into();
        assert!(Part::ALL.iter().all(|part| part.name().starts_with("kernel") == part.in_kernel()));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Part::ALL.len());
    }

    #[test]
    fn paths_in_a_name_are_found_with_their_crates() {
        let found: Vec<&str> =
            heads("core::ptr::drop_in_place<h2::codec::Codec<&mut bytes::Bytes>>").collect();
        assert_eq!(found, ["core", "h2", "bytes"]);
        assert_eq!(heads("plain").collect::<Vec<_>>(), ["plain"]);
    }
}
