//! The path of a cgroup as `KUBELET_PATH` holds it.

/// Bytes of a path, its end included.
const CAPACITY: usize = 256;

/// Words that a path takes: the programs compare it word by word.
const WORDS: usize = CAPACITY / 8;

/// The path of a cgroup within the tree of version 2, from its root (`/system.slice/kubelet.service`), followed by zeros. All zeros:
/// no path, which no cgroup has.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(any(feature = "user", test), derive(Debug))]
pub struct CgroupPath([u64; WORDS]);

const _: () = assert!(size_of::<CgroupPath>() == CAPACITY && align_of::<CgroupPath>() == 8);

impl CgroupPath {
    /// No path.
    pub const NONE: Self = Self([0; WORDS]);

    /// The words, for the programs.
    #[inline(always)]
    pub const fn words(&self) -> &[u64; WORDS] {
        &self.0
    }

    /// Room for a path that the kernel writes.
    #[inline(always)]
    pub const fn as_mut_bytes(&mut self) -> &mut [u8; CAPACITY] {
        // SAFETY: an array of words is one of bytes of the same size and a smaller alignment, and any bytes are words.
        unsafe { &mut *core::ptr::from_mut(self).cast() }
    }

    /// The path; none for one that is too long (more than 254 bytes: the kernel cuts what it writes at 255, which must not become
    /// another's path) or that does not begin with a slash.
    #[cfg(any(feature = "user", test))]
    pub fn new(path: &str) -> Option<Self> {
        let bytes = path.as_bytes();
        if !path.starts_with('/') || bytes.len() > CAPACITY - 2 {
            return None;
        }
        let mut this = Self::NONE;
        this.as_mut_bytes()[..bytes.len()].copy_from_slice(bytes);
        Some(this)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::String;

    use super::*;

    #[test]
    fn a_path_is_its_bytes_and_zeros() {
        let mut path = CgroupPath::new("/kubelet").unwrap();
        let bytes = path.as_mut_bytes();
        assert_eq!(&bytes[..9], b"/kubelet\0");
        assert!(bytes[9..].iter().all(|byte| *byte == 0));
        assert_ne!(path, CgroupPath::new("/kubelet2").unwrap());
    }

    #[test]
    fn what_the_kernel_would_cut_is_no_path() {
        let path = |length: usize| String::from("/") + &"a".repeat(length - 1);
        assert!(CgroupPath::new(&path(254)).is_some());
        assert_eq!(CgroupPath::new(&path(255)), None);
        assert_eq!(CgroupPath::new("kubelet"), None);
        assert_eq!(CgroupPath::new(""), None);
    }
}
