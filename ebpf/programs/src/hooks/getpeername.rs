//! cgroup/getpeername4 and getpeername6 (kernel 5.8): the peer is the address that was dialled.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::socket::{self, Family};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    socket::getpeername(ctx.sock_addr, Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    socket::getpeername(ctx.sock_addr, Family::V6)
}
