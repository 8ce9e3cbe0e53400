//! cgroup/sendmsg4 and sendmsg6 (kernel 4.18): datagrams of unconnected UDP sockets.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::socket::{self, Family};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    socket::sendmsg(ctx.sock_addr, Family::V4)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    socket::sendmsg(ctx.sock_addr, Family::V6)
}
