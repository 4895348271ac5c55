//! The targets, one a file: each has `run`, which takes an input, and `seeds`.

pub mod address;
pub mod authority;
pub mod authorization;
pub mod dns;
pub mod hbone_server;
pub mod headers;
pub mod packet;
pub mod proxy_header;
pub mod xds;
pub mod zds;
