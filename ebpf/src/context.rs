//! Reading fields of a program's context.
//!
//! The verifier admits reads of a context at constant offsets only. The compiler merges the reads of two
//! branches into one at an offset chosen before, even volatile ones; so both forms of an address are read, and then one is chosen.

use ebpf_common::Address;

/// Reads an address that has a field for each family.
///
/// # Safety
/// Both point to fields of the context that the kernel gave; the one of the other family may hold anything.
#[inline(always)]
pub unsafe fn address(is_v4: bool, v4: *const u32, v6: *const [u32; 4]) -> Address {
    // SAFETY: the caller's.
    let (v4, v6) = unsafe { (Address::from_v4(v4.read_volatile()), words(v6)) };
    if is_v4 { v4 } else { v6 }
}

/// Reads an IPv6 address.
///
/// # Safety
/// `field` points to a field of the context that the kernel gave.
#[inline(always)]
pub unsafe fn words(field: *const [u32; 4]) -> Address {
    let word = field.cast::<u32>();
    // SAFETY: the caller's; the offsets are within the field.
    unsafe {
        Address::from_words([
            word.read_volatile(),
            word.add(1).read_volatile(),
            word.add(2).read_volatile(),
            word.add(3).read_volatile(),
        ])
    }
}
