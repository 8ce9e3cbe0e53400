//! One program for the tests of all stores: the suite is compiled once.

mod suite;

mod disk_full;
mod embedded;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "etcd")]
mod etcd_tls;
mod history;
mod linearizable;
mod permissions;
