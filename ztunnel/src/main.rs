//! The node proxy.
mod admin;
mod config;
mod identity;
mod mesh_state;
mod pods;
mod proxy;
mod telemetry;
mod xds;
mod zds;
fn main() {}
