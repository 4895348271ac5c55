//! Limits of the process.

use std::io;

/// Raises the soft limit of file descriptors to the hard one. The limit that is then in force.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    todo!()
}
