//! A node for tests: a real containerd of its own, and an API in memory.

pub(crate) mod api;
pub(crate) mod containerd;
pub(crate) mod image;
