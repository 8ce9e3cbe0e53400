//! The namespaces that the tests' worlds are made of.

pub use windlass_tests::unnamed_netns::NetNs;
