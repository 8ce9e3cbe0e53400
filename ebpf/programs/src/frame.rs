//! A frame that takes the place of a packet: the answer to it, built from nothing.

use aya_ebpf::{
    helpers::{bpf_csum_diff, bpf_skb_change_tail, bpf_skb_store_bytes},
    programs::TcContext,
};

use crate::{
    parse::{ETH_LEN, load_into},
    scratch::{FRAME, scratch},
};

const ETH: usize = ETH_LEN as usize;

#[inline(always)]
pub fn swap_ethernet(ctx: &TcContext, out: &mut [u8; FRAME]) -> bool {
    let mut header = [0u8; ETH];
    if !load_into(ctx, 0, &mut header) {
        return false;
    }
    let mut i = 0;
    while i < 6 {
        out[i] = header[6 + i];
        out[6 + i] = header[i];
        i += 1;
    }
    out[12] = header[12];
    out[13] = header[13];
    true
}

#[inline(always)]
pub fn sum(out: &[u8; FRAME], at: usize, length: u32, seed: u32) -> u32 {
    // SAFETY: callers pass constant ranges inside `out`, a multiple of four long.
    unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            out.as_ptr().add(at).cast_mut().cast(),
            length,
            seed,
        ) as u32
    }
}

/// The Internet checksum, ready to be stored.
#[inline(always)]
pub fn checksum(out: &[u8; FRAME], at: usize, length: u32, seed: u32) -> u16 {
    let mut folded = sum(out, at, length, seed);
    folded = (folded & 0xffff) + (folded >> 16);
    folded = (folded & 0xffff) + (folded >> 16);
    !(folded as u16)
}

/// `value` in network byte order already.
#[inline(always)]
pub fn put16(out: &mut [u8; FRAME], at: usize, value: u16) {
    let bytes = value.to_ne_bytes();
    out[at] = bytes[0];
    out[at + 1] = bytes[1];
}

#[inline(always)]
pub fn put32(out: &mut [u8; FRAME], at: usize, value: u32) {
    let bytes = value.to_ne_bytes();
    out[at] = bytes[0];
    out[at + 1] = bytes[1];
    out[at + 2] = bytes[2];
    out[at + 3] = bytes[3];
}

/// The frame to be built, all zero.
#[inline(always)]
pub fn blank() -> Option<&'static mut [u8; FRAME]> {
    let frame = &mut scratch()?.frame;
    *frame = [0; FRAME];
    Some(frame)
}

/// The packet becomes the first `length` octets of `out`, no longer and no shorter.
#[inline(always)]
pub fn replace(ctx: &TcContext, out: &[u8; FRAME], length: usize) -> u32 {
    // SAFETY: the kernel's context; `length` is a constant within the frame.
    unsafe {
        if bpf_skb_change_tail(ctx.skb.skb, length as u32, 0) != 0 {
            return 0;
        }
        u32::from(bpf_skb_store_bytes(ctx.skb.skb, 0, out.as_ptr().cast(), length as u32, 0) == 0)
    }
}
