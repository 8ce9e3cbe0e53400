//! sock_ops (kernel 4.13; changes of a connection's state since 4.16): TCP connections of local clients begin and end.

use aya_ebpf::{macros::sock_ops, programs::SockOpsContext};

use crate::socket_end;

#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    socket_end::follow(ctx.ops);
    1
}
