//! Encryption at rest: chosen resources are stored enciphered, as an `EncryptionConfiguration` says.
//!
//! It lies between the caches and the store, so everything above sees plain bytes. The first provider of a resource
//! enciphers, all of them decipher: a key is rotated by putting the new one first and writing every object again,
//! which the registry does for objects that are [stale](windlass_store::Store::is_stale) although they are
//! unchanged.

mod cipher;
mod config;
mod store;

pub use self::config::ConfigError;
pub use self::store::EncryptedStore;
