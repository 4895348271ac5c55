//! The kernel programs of Culvert.
//!
//! | program | where | what |
//! |---|---|---|
//! | `tc_egress*` | egress of every device of a pod but `lo` | turns the applications' TCP to `lo`, and (`*_dns`) their DNS queries |
//! | `tc_lo`, `tc_lo_dns` | ingress of a pod's `lo` | hands what was turned there to the outbound listener, or to those for DNS |
//! | `sk_lookup_inbound` | a pod's network namespace | hands new connections from outside to the inbound listener |
//! | `tc_ingress_guard` | ingress of every device of a pod but `lo`, beside `sk_lookup_inbound` | drops what comes in the pod's own name, refuses ends that are taken |
//! | `tc_ingress` | ingress of every device of a pod but `lo` | the same, where `sk_lookup` cannot be had |
//! | `sk_lookup_reopen` | a pod's network namespace | beside `tc_ingress`, if that was chosen and `sk_lookup` can be had |
//! | `probe_connect4/6`, `probe_sockops` | the root of the cgroups | recognise kubelet's probes |
//! | `kubelet_cgroup_made` | the tracepoint `cgroup:cgroup_mkdir` | knows kubelet's cgroup when it is made |
//!
//! Invariants:
//! - **A mark routes, it never exempts**: pods can set marks. Exempt is a socket by its cgroup or by its cookie, both of which the
//!   kernel gives and no pod can choose.
//! - **Whatever is or may be TCP and cannot be handed to a listener is dropped and counted**: every miss fails closed.
//! - The programs keep no state per connection of the mesh. `PRE_MESH`, `OUTSIDE` and `PROBES` name the few
//!   connections that stay outside of it, `REOPENED` those that one program hands to the next.
//! - They need Linux 5.15; `sk_lookup_inbound` needs 5.17 (it reads the interface the packet came in by) and is loaded only there.
//!
//! Licence: dual MIT / GPL-2.0, as the kernel offers some helpers to GPL-compatible programs only.

#![no_std]
#![no_main]

mod context;
mod count;
mod egress;
mod inbound;
mod kubelet;
mod loopback;
mod maps;
mod probe;
mod reset;
mod skb;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Unreachable: the verifier admits no program from which this could be called and not return.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
