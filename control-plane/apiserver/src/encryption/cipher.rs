//! One provider: how a value is enciphered, in upstream's formats (`k8s:enc:aesgcm:v1:<key>:…`).

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    AES_128, AES_256, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey,
    UnboundCipherKey,
};
use aws_lc_rs::iv::FixedLength;

const IV: usize = 16;
const NONCE: usize = 12;

/// A provider with its keys, the first of which enciphers.
pub(super) enum Provider {
    Identity,
    AesCbc(Vec<Key>),
    AesGcm(Vec<Key>),
}

pub(super) struct Key {
    name: String,
    secret: Vec<u8>,
}

/// A cipher's failure; it says nothing that would help a forger.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct CipherError(&'static str);

impl Key {
    /// # Errors
    /// When the secret has no length that the cipher knows.
    pub(super) fn new(name: &str, secret: Vec<u8>) -> Result<Self, CipherError> {
        if matches!(secret.len(), 16 | 32) {
            Ok(Self {
                name: name.to_owned(),
                secret,
            })
        } else {
            Err(CipherError("a key must have 16 or 32 bytes"))
        }
    }

    fn gcm(&self) -> Result<LessSafeKey, CipherError> {
        let algorithm = if self.secret.len() == 16 {
            &AES_128_GCM
        } else {
            &AES_256_GCM
        };
        let key = UnboundKey::new(algorithm, &self.secret);
        Ok(LessSafeKey::new(
            key.map_err(|_| CipherError("the key cannot be used"))?,
        ))
    }

    fn cbc(&self) -> Result<UnboundCipherKey, CipherError> {
        let algorithm = if self.secret.len() == 16 {
            &AES_128
        } else {
            &AES_256
        };
        UnboundCipherKey::new(algorithm, &self.secret)
            .map_err(|_| CipherError("the key cannot be used"))
    }
}

impl Provider {
    fn prefix(&self) -> &'static str {
        match self {
            Self::Identity => "",
            Self::AesCbc(_) => "k8s:enc:aescbc:v1:",
            Self::AesGcm(_) => "k8s:enc:aesgcm:v1:",
        }
    }

    fn keys(&self) -> &[Key] {
        match self {
            Self::Identity => &[],
            Self::AesCbc(keys) | Self::AesGcm(keys) => keys,
        }
    }

    /// Enciphers a value. Where it will lie (`path`) goes into the proof, so that nobody can move it.
    pub(super) fn seal(&self, path: &str, plain: &[u8]) -> Result<Vec<u8>, CipherError> {
        let failed = |_| CipherError("enciphering failed");
        let Some(key) = self.keys().first() else {
            return Ok(plain.to_vec());
        };
        let mut out = format!("{}{}:", self.prefix(), key.name).into_bytes();
        if let Self::AesGcm(_) = self {
            let nonce: [u8; NONCE] = rand::random();
            let mut buffer = plain.to_vec();
            let aad = Aad::from(path.as_bytes());
            let sealed = key.gcm()?;
            sealed
                .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut buffer)
                .map_err(failed)?;
            out.extend_from_slice(&nonce);
            out.extend_from_slice(&buffer);
            return Ok(out);
        }
        let mut buffer = plain.to_vec();
        let cipher = PaddedBlockEncryptingKey::cbc_pkcs7(key.cbc()?).map_err(failed)?;
        let context = cipher.encrypt(&mut buffer).map_err(failed)?;
        let iv: &[u8] = (&context).try_into().map_err(failed)?;
        out.extend_from_slice(iv);
        out.extend_from_slice(&buffer);
        Ok(out)
    }

    /// Deciphers what this provider has enciphered, `None` for what it has not; and whether its first key did it.
    pub(super) fn open(
        &self,
        path: &str,
        stored: &[u8],
    ) -> Option<Result<(Vec<u8>, bool), CipherError>> {
        if let Self::Identity = self {
            // What another provider wrote is not plain.
            return (!stored.starts_with(b"k8s:enc:")).then(|| Ok((stored.to_vec(), true)));
        }
        let rest = stored.strip_prefix(self.prefix().as_bytes())?;
        let end = rest.iter().position(|byte| *byte == b':')?;
        let (name, sealed) = (&rest[..end], &rest[end + 1..]);
        let index = self
            .keys()
            .iter()
            .position(|key| key.name.as_bytes() == name);
        let Some(index) = index else {
            return Some(Err(CipherError(
                "it was enciphered with a key that is not configured",
            )));
        };
        let opened = self.open_with(&self.keys()[index], path, sealed);
        Some(opened.map(|plain| (plain, index == 0)))
    }

    fn open_with(&self, key: &Key, path: &str, sealed: &[u8]) -> Result<Vec<u8>, CipherError> {
        let broken = || CipherError("it cannot be deciphered: damaged, moved, or another key");
        if let Self::AesGcm(_) = self {
            let (nonce, sealed) = sealed.split_at_checked(NONCE).ok_or_else(broken)?;
            let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| broken())?;
            let mut buffer = sealed.to_vec();
            let plain = key.gcm()?;
            let plain = plain
                .open_in_place(nonce, Aad::from(path.as_bytes()), &mut buffer)
                .map_err(|_| broken())?;
            return Ok(plain.to_vec());
        }
        let (iv, sealed) = sealed.split_at_checked(IV).ok_or_else(broken)?;
        let iv: [u8; IV] = iv.try_into().map_err(|_| broken())?;
        let cipher = PaddedBlockDecryptingKey::cbc_pkcs7(key.cbc()?).map_err(|_| broken())?;
        let mut buffer = sealed.to_vec();
        let context = DecryptionContext::Iv128(FixedLength::from(iv));
        let plain = cipher.decrypt(&mut buffer, context).map_err(|_| broken())?;
        Ok(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, byte: u8) -> Key {
        Key::new(name, vec![byte; 32]).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_again_and_nowhere_else() {
        for provider in [
            Provider::AesCbc(vec![key("a", 1)]),
            Provider::AesGcm(vec![key("a", 1)]),
        ] {
            let sealed = provider.seal("/registry/secrets/x/y", b"secret").unwrap();
            assert!(sealed.starts_with(provider.prefix().as_bytes()));
            assert!(!sealed.windows(6).any(|w| w == b"secret"));
            let (plain, first) = provider
                .open("/registry/secrets/x/y", &sealed)
                .unwrap()
                .unwrap();
            assert_eq!((plain.as_slice(), first), (&b"secret"[..], true));
            let mut broken = sealed.clone();
            *broken.last_mut().unwrap() ^= 1;
            let opened = provider.open("/registry/secrets/x/y", &broken).unwrap();
            assert!(opened.map_or(true, |(plain, _)| plain != b"secret"));
        }
        let gcm = Provider::AesGcm(vec![key("a", 1)]);
        let sealed = gcm.seal("/registry/secrets/x/y", b"secret").unwrap();
        assert!(gcm.open("/registry/secrets/x/z", &sealed).unwrap().is_err());
    }

    #[test]
    fn an_older_key_still_opens_and_says_that_it_is_older() {
        let old = Provider::AesGcm(vec![key("a", 1)]);
        let sealed = old.seal("k", b"v").unwrap();
        let rotated = Provider::AesGcm(vec![key("b", 2), key("a", 1)]);
        assert_eq!(
            rotated.open("k", &sealed).unwrap().unwrap(),
            (b"v".to_vec(), false)
        );
        let without = Provider::AesGcm(vec![key("b", 2)]);
        assert!(without.open("k", &sealed).unwrap().is_err());
        assert!(Provider::Identity.open("k", &sealed).is_none());
        assert!(Key::new("short", vec![1; 24]).is_err());
    }
}
