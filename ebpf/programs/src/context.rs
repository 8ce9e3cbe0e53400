//! A packet at a hook, whichever hook that is: tc hands a socket buffer, XDP the bare frame. What
//! both can do is asked for here, so that parsing and translation exist once.

use core::{arch::asm, ffi::c_void};

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_RECOMPUTE_CSUM, bpf_adj_room_mode::BPF_ADJ_ROOM_NET},
    helpers::{bpf_skb_adjust_room, bpf_xdp_adjust_head},
    programs::{TcContext, XdpContext},
};

pub trait PacketContext {
    /// Whether so much follows the parser that the verifier should not walk it once for every way through that
    /// (see `parse::forget`).
    const LONG: bool;
    /// Octets of the frame.
    fn length(&self) -> u32;
    /// The interface that it came in by, or leaves by.
    fn interface(&self) -> u32;
    /// The Ethernet type behind all tags that the hook has taken off; 0: there is none.
    fn ethertype(&self) -> u16;
    fn read<T: Copy>(&self, at: usize) -> Option<T>;
    fn write<T: Copy>(&self, at: usize, value: &T) -> bool;
    /// The same of an octet that no checksum of a header makes up for.
    fn write_unsummed(&self, at: usize, value: &u8) -> bool;
    /// Changes the checksum of an IPv4 header at `at` by a difference of `bpf_csum_diff`.
    fn mend_header(&self, at: usize, difference: u64) -> bool;
    /// Changes a transport checksum from what it is with `from` to what it is with `to`; flags and
    /// the size in them are those of `bpf_l4_csum_replace`.
    fn mend_transport(&self, at: usize, from: u64, to: u64, flags: u64) -> bool;
    /// Makes room behind the IP header of a packet that has no options.
    fn insert(&self, is_v4: bool, room: u32) -> bool;
    /// For helpers that take either kind of context.
    fn kernel(&self) -> *mut c_void;
}

impl PacketContext for TcContext {
    const LONG: bool = true;

    #[inline(always)]
    fn length(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: the context pointer is the kernel's, valid for the run of the program.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: as above.
        u16::from_be(unsafe { (*self.skb.skb).protocol } as u16)
    }

    /// By `bpf_skb_load_bytes`: it also reads what is not in the linear part, and no offset needs a
    /// proof of its own for the verifier.
    #[inline(always)]
    fn read<T: Copy>(&self, at: usize) -> Option<T> {
        self.load(at).ok()
    }

    #[inline(always)]
    fn write<T: Copy>(&self, at: usize, value: &T) -> bool {
        self.store(at, value, 0).is_ok()
    }

    /// A NIC's sum over the whole packet, if there is one, has to change with it.
    #[inline(always)]
    fn write_unsummed(&self, at: usize, value: &u8) -> bool {
        self.store(at, value, u64::from(BPF_F_RECOMPUTE_CSUM))
            .is_ok()
    }

    #[inline(always)]
    fn mend_header(&self, at: usize, difference: u64) -> bool {
        self.l3_csum_replace(at, 0, difference, 0).is_ok()
    }

    #[inline(always)]
    fn mend_transport(&self, at: usize, from: u64, to: u64, flags: u64) -> bool {
        self.l4_csum_replace(at, from, to, flags).is_ok()
    }

    #[inline(always)]
    fn insert(&self, _: bool, room: u32) -> bool {
        // SAFETY: the kernel's context.
        unsafe { bpf_skb_adjust_room(self.skb.skb, room as i32, BPF_ADJ_ROOM_NET, 0) == 0 }
    }

    #[inline(always)]
    fn kernel(&self) -> *mut c_void {
        self.skb.skb.cast()
    }
}

/// The verifier wants to know that an offset is small; nothing of ours lies further behind.
const REACH: usize = 255;

/// Where `length` octets at `at` are, if they are within the packet.
#[inline(always)]
fn place(ctx: &XdpContext, mut at: usize, length: usize) -> Option<usize> {
    if at > REACH {
        return None;
    }
    // Says the same once more of the register that is added: the compiler compares one copy and adds another, from
    // the stack, of which a verifier before 6.3 knows nothing then.
    // SAFETY: an instruction on one register.
    unsafe { asm!("{0} &= {1}", inout(reg) at, const REACH, options(nomem, nostack)) };
    let mut place = ctx.data() + at;
    // What is compared must be what is used: the compiler would rather add the two once more for that, and the
    // verifier knows nothing of the second sum.
    // SAFETY: an instruction that changes nothing.
    unsafe { asm!("{0} = {0}", inout(reg) place, options(nomem, nostack)) };
    (place + length <= ctx.data_end()).then_some(place)
}

impl PacketContext for XdpContext {
    const LONG: bool = false;

    #[inline(always)]
    fn length(&self) -> u32 {
        (self.data_end() - self.data()) as u32
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        self.ingress_ifindex() as u32
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        self.read::<u16>(12).map_or(0, u16::from_be)
    }

    #[inline(always)]
    fn read<T: Copy>(&self, at: usize) -> Option<T> {
        let place = place(self, at, size_of::<T>())?;
        // SAFETY: within the packet, as just compared. Drivers align a frame so that whole words of
        // its headers can be read, or the machine reads them wherever they are: the verifier knows.
        Some(unsafe { *(place as *const T) })
    }

    #[inline(always)]
    fn write<T: Copy>(&self, at: usize, value: &T) -> bool {
        let Some(place) = place(self, at, size_of::<T>()) else {
            return false;
        };
        // SAFETY: as in `read`.
        unsafe { *(place as *mut T) = *value };
        true
    }

    #[inline(always)]
    fn write_unsummed(&self, at: usize, value: &u8) -> bool {
        self.write(at, value)
    }

    #[inline(always)]
    fn mend_header(&self, at: usize, difference: u64) -> bool {
        self.mend_transport(at, 0, difference, 0)
    }

    #[inline(always)]
    fn mend_transport(&self, at: usize, from: u64, to: u64, flags: u64) -> bool {
        let Some(sum) = self.read::<u16>(at) else {
            return false;
        };
        let zero_is_none = flags & u64::from(BPF_F_MARK_MANGLED_0) != 0;
        if zero_is_none && sum == 0 {
            return true;
        }
        // RFC 1624: in one's complement, what is taken away is added inverted.
        let mut total = u64::from(!sum) + u64::from(!(from as u32)) + u64::from(to as u32);
        total = (total & 0xffff) + (total >> 16);
        total = (total & 0xffff) + (total >> 16);
        total = (total & 0xffff) + (total >> 16);
        let mut sum = !(total as u16);
        if zero_is_none && sum == 0 {
            sum = 0xffff;
        }
        self.write(at, &sum)
    }

    #[inline(always)]
    fn insert(&self, is_v4: bool, room: u32) -> bool {
        if is_v4 {
            move_head::<17>(self, room)
        } else {
            move_head::<27>(self, room)
        }
    }

    #[inline(always)]
    fn kernel(&self) -> *mut c_void {
        self.as_ptr()
    }
}

/// The frame begins `room` octets earlier, and so do its Ethernet and IP headers, `N` pairs of octets.
#[inline(always)]
fn move_head<const N: usize>(ctx: &XdpContext, room: u32) -> bool {
    // SAFETY: the kernel's context.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(room as i32)) } != 0 {
        return false;
    }
    match ctx.read::<[u16; N]>(room as usize) {
        Some(head) => ctx.write(0, &head),
        None => false,
    }
}
