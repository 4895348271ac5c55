//! What each process of the mesh shares: logging, the admin endpoint, metrics, readiness and drain.
//!
//! Nothing here knows what the process does. What it serves and reports is handed in.

#![forbid(unsafe_code)]

pub mod admin;
pub mod drain;
mod exposition;
pub mod limits;
pub mod log_filter;
pub mod logging;
pub mod metrics;
pub mod process;
pub mod readiness;
pub mod visitors;
