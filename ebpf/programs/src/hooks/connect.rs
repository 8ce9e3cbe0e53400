//! cgroup/connect4 and connect6 (kernel 4.17): TCP and connected UDP of local clients.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::socket::{self, Family};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    socket::connect(ctx.sock_addr, Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    socket::connect(ctx.sock_addr, Family::V6)
}
