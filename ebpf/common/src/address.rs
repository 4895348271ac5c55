//! The one form addresses have in map keys: 16 bytes, IPv4 as IPv4-mapped.

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d`: four words, each in network byte order, as the kernel's socket structures
/// hold them. Words, because the programs would otherwise be compiled to handle the bytes one by one.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(any(feature = "user", test), derive(Debug))]
pub struct Address([u32; 4]);

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);

/// The third word of IPv4-mapped addresses.
const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// The IPv4-mapped form of a word in network byte order.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// The address of four words in network byte order.
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The four words.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// The IPv4 word, which is meaningful only for IPv4-mapped addresses.
    #[inline(always)]
    pub const fn v4_word(&self) -> u32 {
        self.0[3]
    }

    /// The address of these 16 octets.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ])
    }

    /// The 16 octets.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let [a, b, c, d] = self.0[0].to_ne_bytes();
        let [e, f, g, h] = self.0[1].to_ne_bytes();
        let [i, j, k, l] = self.0[2].to_ne_bytes();
        let [m, n, o, p] = self.0[3].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// Whether this is 127.0.0.0/8 or `::1`, which never arrive from another machine.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.0;
        a == 0 && b == 0 && ((c == MAPPED && d.to_ne_bytes()[0] == 127) || (c == 0 && d == 1_u32.to_be()))
    }
}

#[cfg(feature = "user")]
impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::from_v4(u32::from_ne_bytes(v4.octets())),
            core::net::IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }
}

#[cfg(feature = "user")]
impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        core::net::Ipv6Addr::from(address.octets()).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    const fn v4(octets: [u8; 4]) -> Address {
        Address::from_v4(u32::from_ne_bytes(octets))
    }

    #[test]
    fn words_and_octets_are_two_views_of_the_same_address() {
        let octets = [0xfd, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14];
        let address = Address::from_octets(octets);
        assert_eq!(address.octets(), octets);
        assert_eq!(Address::from_words(address.words()), address);
        assert_eq!(v4([10, 77, 0, 2]).octets(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 77, 0, 2]);
    }

    #[test]
    fn only_127_slash_8_and_one_are_loopback() {
        let mut one = [0; 16];
        one[15] = 1;
        assert!(Address::from_octets(one).is_loopback());
        assert!(v4([127, 0, 0, 1]).is_loopback());
        assert!(v4([127, 255, 0, 9]).is_loopback());
        assert!(!v4([10, 0, 0, 1]).is_loopback());
        assert!(!Address::from_octets([0; 16]).is_loopback());
        assert!(!Address::from_octets([0xfd; 16]).is_loopback());
    }
}
