//! What Kubernetes' own proxy writes, as text for the tools that it calls.

pub mod iptables;
pub mod nftables;

use sha2::{Digest as _, Sha256};

/// The first characters of a SHA-256 in base 32 (RFC 4648), by which both modes name their chains.
fn hash(text: &str, characters: usize) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let digest = Sha256::digest(text.as_bytes());
    (0..characters)
        .map(|index| {
            let bit = index * 5;
            let wide = u16::from(digest[bit / 8]) << 8 | u16::from(digest[bit / 8 + 1]);
            ALPHABET[usize::from(wide >> (11 - bit % 8) & 31)] as char
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn chains_are_named_as_kube_proxy_names_them() {
        // The Service of the API server, whose chain every iptables-mode cluster has.
        assert_eq!(
            super::hash("default/kubernetes:httpstcp", 16),
            "NPX46M4PTMTKRN6Y"
        );
    }
}
