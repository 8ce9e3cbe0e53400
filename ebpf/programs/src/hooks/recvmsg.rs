//! cgroup/recvmsg4 and recvmsg6 (kernel 5.2): a datagram shows the address that was dialled.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::socket::{self, Family};

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    socket::recvmsg(ctx.sock_addr, Family::V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    socket::recvmsg(ctx.sock_addr, Family::V6)
}
