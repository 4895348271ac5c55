//! The one form addresses have in map keys: 16 bytes, IPv4 as IPv4-mapped.

/// An IPv6 address, or an IPv4 address as `::ffff:a.b.c.d`, in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "user", derive(Debug))]
pub struct Address(pub [u8; 16]);

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 1);

impl Address {
    /// The IPv4-mapped form of `octets`.
    #[inline(always)]
    pub const fn v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// The IPv4 octets, which are meaningful only for an address made by [`Address::v4`].
    #[inline(always)]
    pub const fn mapped_octets(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.0;
        [a, b, c, d]
    }

    /// The address as the kernel's socket structures hold it: four words in network byte order.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        [
            u32::from_ne_bytes([a, b, c, d]),
            u32::from_ne_bytes([e, f, g, h]),
            u32::from_ne_bytes([i, j, k, l]),
            u32::from_ne_bytes([m, n, o, p]),
        ]
    }

    /// The reverse of [`Address::words`].
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        let [a, b, c, d] = words[0].to_ne_bytes();
        let [e, f, g, h] = words[1].to_ne_bytes();
        let [i, j, k, l] = words[2].to_ne_bytes();
        let [m, n, o, p] = words[3].to_ne_bytes();
        Self([a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p])
    }

    /// Whether this is 127.0.0.0/8 or `::1`, which never arrive from another machine.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [a, b, c, d] = self.words();
        if a != 0 || b != 0 {
            return false;
        }
        (c == 0xffff_u32.to_be() && self.0[12] == 127) || (c == 0 && d == 1_u32.to_be())
    }
}

#[cfg(feature = "user")]
impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        match address {
            core::net::IpAddr::V4(v4) => Self::v4(v4.octets()),
            core::net::IpAddr::V6(v6) => Self(v6.octets()),
        }
    }
}

#[cfg(feature = "user")]
impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        core::net::Ipv6Addr::from(address.0).to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn words_and_octets_are_two_views_of_the_same_address() {
        let address = Address([0xfd, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
        assert!(Address::from_words(address.words()) == address);
        assert_eq!(Address::v4([10, 77, 0, 2]).mapped_octets(), [10, 77, 0, 2]);
    }

    #[test]
    fn only_127_slash_8_and_one_are_loopback() {
        let mut one = [0; 16];
        one[15] = 1;
        assert!(Address(one).is_loopback());
        assert!(Address::v4([127, 0, 0, 1]).is_loopback());
        assert!(Address::v4([127, 255, 0, 9]).is_loopback());
        assert!(!Address::v4([10, 0, 0, 1]).is_loopback());
        assert!(!Address([0; 16]).is_loopback());
        assert!(!Address([0xfd; 16]).is_loopback());
    }
}
