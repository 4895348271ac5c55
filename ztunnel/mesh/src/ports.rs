//! The proxy's own ports in a pod (Istio contract 1.1). They belong to the mesh: an application is never
//! dialled on one of them, so that no connection can loop through the proxy.

/// Connections the pod makes.
pub const OUTBOUND: u16 = 15001;
/// Connections to the pod from outside the mesh.
pub const INBOUND_PLAINTEXT: u16 = 15006;
/// HBONE.
pub const HBONE: u16 = 15008;
/// DNS.
pub const DNS: u16 = 15053;

/// Whether the port is the proxy's.
pub fn is_proxy_port(port: u16) -> bool {
    matches!(port, OUTBOUND | INBOUND_PLAINTEXT | HBONE | DNS)
}
