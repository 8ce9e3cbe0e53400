//! cgroup/sock_release (kernel 5.9): a connected UDP socket is closed.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};

use crate::socket_end;

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    socket_end::release(ctx.sock);
    1
}
