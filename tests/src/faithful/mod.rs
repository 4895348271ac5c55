//! What an application cannot tell from a connection without the mesh: errors, ends, back-pressure, kinds of sockets. Each holds
//! whichever way packets are taken, and on every way a connection can go.

mod buffers;
mod errors;
mod own_ports;
mod sockets;
mod ways;

use crate::{Case, World};

pub use buffers::BUFFERS;
pub use own_ports::OCCUPIED;

/// What depends on how packets are taken.
pub const FAITHFUL: &[Case<World>] = &[
    ("a_closed_port_resets_the_connection_at_once_wherever_it_is", errors::closed_ports),
    ("a_reset_stays_a_reset_from_either_end", errors::resets),
    ("a_half_closed_connection_goes_on_the_other_way_for_as_long_as_it_likes", errors::half_closed),
    ("sockets_of_every_kind_reach_their_destination_under_their_own_names", sockets::kinds),
    ("a_server_bound_to_its_address_is_reached_and_one_bound_to_a_device_is_not", sockets::bound_servers),
    ("an_urgent_byte_arrives_in_its_place_among_the_others", sockets::urgent),
    ("an_idle_connections_keepalives_are_answered_and_it_stays_open", sockets::keepalive),
    ("the_meshs_own_ports_reset_every_caller_and_count_it", own_ports::refused),
    ("an_application_cannot_take_a_port_of_the_mesh_from_an_enrolled_pod", own_ports::held),
];

/// What does not, and takes its time.
pub const UNREACHABLE: &[Case<World>] =
    &[("hosts_that_are_dead_or_die_are_noticed_within_the_stated_times", errors::dead_hosts)];
