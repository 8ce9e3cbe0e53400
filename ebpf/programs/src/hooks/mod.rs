//! One file per hook. Each says where it is attached and what it decides; how it is done
//! lives in the shared files.

mod connect;
mod from_pod;
mod from_uplink;
mod getpeername;
mod recvmsg;
mod sendmsg;
mod sock_ops;
mod sock_release;
mod to_pod;
mod to_uplink;
mod xdp_uplink;
