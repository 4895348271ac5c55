//! Recognising kubelet's probes, so that they reach applications past the mesh and nothing else does.
//!
//! `connect` by a process in kubelet's cgroup to a probe target marks the socket, by its cookie; when TCP has chosen the socket's port
//! and before the first packet leaves, its flow is recorded; the pod's programs let that flow through. The record goes when the socket
//! closes, before anybody else can have the port, so it exempts this connection only.
//!
//! The programs sit at the root of the cgroups, not on kubelet's own, because a cgroup program vanishes with its cgroup, and a
//! restart of kubelet's service makes a new one.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_addr,
    },
    helpers::{bpf_get_current_cgroup_id, bpf_get_socket_cookie},
    macros::{cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockOpsContext},
};
use ebpf_common::{Address, Counter, Flow, ProbeTarget};

use crate::{
    context,
    maps::{KUBELET_CGROUPS, OUTSIDE, PROBE_SOCKETS, PROBE_TARGETS, PROBES},
};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const IPPROTO_TCP: u32 = 6;
/// `TCP_CLOSE` of the kernel's tcp_states.h.
const TCP_CLOSE: u32 = 7;
/// The connection goes on; these programs refuse none.
const ALLOW: i32 = 1;

/// `connect` of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn probe_connect4(ctx: SockAddrContext) -> i32 {
    // SAFETY: a read of the context, which the verifier checks.
    let address = unsafe { Address::from_v4((*ctx.sock_addr).user_ip4) };
    connect(&ctx, ctx.sock_addr, address)
}

/// `connect` of an IPv6 socket, to IPv4-mapped addresses too.
#[cgroup_sock_addr(connect6)]
pub fn probe_connect6(ctx: SockAddrContext) -> i32 {
    // SAFETY: a read of the context, which the verifier checks.
    let address = unsafe { context::words(&raw const (*ctx.sock_addr).user_ip6) };
    connect(&ctx, ctx.sock_addr, address)
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, address: *mut bpf_sock_addr, destination: Address) -> i32 {
    // SAFETY: reads of the context, which the verifier checks.
    let (protocol, port) = unsafe { ((*address).protocol, (*address).user_port) };
    if protocol != IPPROTO_TCP {
        return ALLOW;
    }
    // SAFETY: no arguments; the caller of `connect` is the current task.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if KUBELET_CGROUPS.get_ptr(&cgroup).is_none() {
        return ALLOW;
    }
    let target = ProbeTarget::new(destination, u16::from_be(port as u16));
    if PROBE_TARGETS.get_ptr(&target).is_some() {
        // SAFETY: the context is the one the kernel gave.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        // Failing, the probe is treated as any other connection.
        let _ = PROBE_SOCKETS.insert(&cookie, &1, 0);
    }
    ALLOW
}

/// Follows the marked sockets from the choice of their port to their end.
#[sock_ops]
pub fn probe_sockops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => begin(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accept(&ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == TCP_CLOSE => end(&ctx),
        _ => {}
    }
    0
}

#[inline(always)]
fn begin(ctx: &SockOpsContext) {
    // SAFETY: the context is the one the kernel gave.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if PROBE_SOCKETS.get_ptr(&cookie).is_none() {
        return;
    }
    let _ = PROBE_SOCKETS.remove(&cookie);
    // Without notice of its end the record could outlive the connection; then rather no record.
    if ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_err() {
        return;
    }
    if let Some(flow) = flow(ctx) {
        let _ = PROBES.insert(&flow, &cookie, 0);
    }
}

/// The pod's end of a probe. Its socket is learnt when it answers, but an answer with a SYN cookie has no socket, so here is the second
/// chance, before the application can send.
#[inline(always)]
fn accept(ctx: &SockOpsContext) {
    let Some(Flow { pod, peer, pod_port, peer_port }) = flow(ctx) else { return };
    let probe = Flow { pod: peer, peer: pod, pod_port: peer_port, peer_port: pod_port };
    if PROBES.get_ptr(&probe).is_some() {
        // SAFETY: the context is the one the kernel gave.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        let _ = OUTSIDE.insert(&cookie, &(Counter::ExemptProbeReply as u32), 0);
    }
}

#[inline(always)]
fn end(ctx: &SockOpsContext) {
    let Some(flow) = flow(ctx) else { return };
    let Some(recorded) = PROBES.get_ptr(&flow) else { return };
    // SAFETY: the context is the one the kernel gave.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    // SAFETY: a valid pointer; if the entry was reused meanwhile, its cookie is another's and it stays.
    if unsafe { *recorded } == cookie {
        let _ = PROBES.remove(&flow);
    }
}

/// The socket's connection as the other end, a pod, sees it.
#[inline(always)]
fn flow(ctx: &SockOpsContext) -> Option<Flow> {
    let ops = ctx.ops;
    // SAFETY: reads of the context, which the verifier checks, each of a whole field.
    unsafe {
        let family = (*ops).family;
        if family != AF_INET && family != AF_INET6 {
            return None;
        }
        let is_v4 = family == AF_INET;
        Some(Flow {
            pod: context::address(is_v4, &raw const (*ops).remote_ip4, &raw const (*ops).remote_ip6),
            peer: context::address(is_v4, &raw const (*ops).local_ip4, &raw const (*ops).local_ip6),
            // The remote port is in network byte order in the upper half of its word, the local one in host byte order.
            pod_port: u32::from_be((*ops).remote_port) as u16,
            peer_port: (*ops).local_port as u16,
        })
    }
}
