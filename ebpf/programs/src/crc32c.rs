//! CRC32c of SCTP after a change of its ports, from the difference alone.
//!
//! The sum covers the whole packet, which no program should have to read. But it is linear:
//! changing the first four octets by `difference` changes it by what `difference` followed by
//! zeros would sum to, which is a multiplication by a power of x modulo the polynomial
//! (in the bit-reversed form that CRCs are computed in, where the highest bit is x^0).

const POLYNOMIAL: u32 = 0x82f6_3b78;
const ONE: u32 = 0x8000_0000;

/// x^(8 * 2^k): what 2^k octets that follow do to a sum.
static POWERS: [u32; 16] = powers();

const fn powers() -> [u32; 16] {
    let mut table = [0; 16];
    // x^8, bit 23 from the top down.
    let mut power = ONE >> 8;
    let mut k = 0;
    while k < 16 {
        table[k] = power;
        power = product(power, power);
        k += 1;
    }
    table
}

/// How the sum of a packet of `length` octets changes when its first four do. Both the
/// difference and the result are as little-endian words of the packet.
///
/// A global function to the kernel: verified once, by itself, and not again on every path
/// that leads to it (5.6).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn crc32c_change(difference: u32, length: u32) -> u32 {
    let mut power = ONE;
    let mut k = 0;
    while k < 16 {
        let follows = length >> k & 1;
        // Without a branch, of which 16 in a row would be many paths to the verifier.
        let mask = 0u32.wrapping_sub(follows);
        power = crc32c_multiply(power, (POWERS[k] & mask) | (ONE & !mask));
        k += 1;
    }
    crc32c_multiply(power, difference)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn crc32c_multiply(a: u32, b: u32) -> u32 {
    product(a, b)
}

#[inline(always)]
const fn product(a: u32, mut b: u32) -> u32 {
    let mut result = 0;
    let mut bit = 0;
    while bit < 32 {
        result ^= b & 0u32.wrapping_sub(a >> (31 - bit) & 1);
        b = (b >> 1) ^ (POLYNOMIAL & 0u32.wrapping_sub(b & 1));
        bit += 1;
    }
    result
}
