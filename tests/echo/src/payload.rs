//! The bytes of a connection: made from its number, so that both ends can tell a wrong one, with a marker in between
//! that a wire capture can look for.

/// A marker stands at every multiple of it, so that no packet of that size is without one.
const MARKER_INTERVAL: usize = 1024;

/// Pseudo-random numbers (splitmix64, Steele et al. 2014): equal seeds give equal sequences.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Between `least` and `most`, every order of magnitude alike: small ones are where the edge cases are.
    pub(crate) fn magnitude(&mut self, least: u32, most: u32) -> u32 {
        let fraction = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        let (low, high) = (f64::from(least).ln(), f64::from(most).ln());
        let value = (low + fraction * (high - low)).exp().round();
        // In range by construction; a float-to-int cast saturates.
        #[expect(clippy::cast_possible_truncation, reason = "clamped into the range of u32")]
        let value = value.clamp(f64::from(least), f64::from(most)) as u32;
        value
    }
}

/// `length` bytes.
pub(crate) fn make(seed: u64, length: usize, marker: &[u8]) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(length);
    for chunk in bytes.chunks_mut(MARKER_INTERVAL) {
        if let Some(place) = chunk.get_mut(..marker.len()) {
            place.copy_from_slice(marker);
        }
    }
    bytes
}

/// A checksum that tells any change of a few bytes (FNV-1a, 64 bits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checksum(u64);

impl Checksum {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let mut sum = Self::new();
        sum.add(bytes);
        sum
    }
}

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_seeds_give_equal_bytes_with_a_marker_in_every_kibibyte() {
        let bytes = make(7, 2050, b"MARK");
        assert_eq!(bytes, make(7, 2050, b"MARK"));
        assert_ne!(bytes, make(8, 2050, b"MARK"));
        assert_eq!(bytes.len(), 2050);
        assert_eq!((&bytes[..4], &bytes[1024..1028]), (&b"MARK"[..], &b"MARK"[..]));
        assert_ne!(&bytes[4..8], b"MARK");
    }

    #[test]
    fn a_changed_byte_changes_the_checksum() {
        assert_ne!(Checksum::of(b"abc"), Checksum::of(b"abd"));
        assert_eq!(Checksum::of(b"").to_string(), "cbf29ce484222325");
    }

    #[test]
    fn magnitudes_stay_in_range_and_reach_both_ends() {
        let mut random = Random::new(1);
        let sizes: Vec<u32> = (0..20_000).map(|_| random.magnitude(1, 1 << 20)).collect();
        assert!(sizes.iter().all(|size| (1..=1 << 20).contains(size)));
        assert!(sizes.contains(&1));
        assert!(sizes.iter().any(|size| *size > 900_000));
    }
}
