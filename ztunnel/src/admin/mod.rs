//! admin
mod dump;
