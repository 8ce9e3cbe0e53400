//! What interfaces leave to their devices.

pub use windlass_tests::ethtool::{like_hardware, set_merging};
