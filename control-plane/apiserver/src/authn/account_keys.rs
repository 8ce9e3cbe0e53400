//! The keys of ServiceAccount tokens: one signs, several are believed.
//!
//! Tokens outlive the key that signed them, so a rotation has three states: the new key is believed, it signs, the old
//! one is believed no longer. Several servers of a cluster reach each of them at different moments; a server that still
//! signs with the old key and one that already signs with the new one must believe each other.

use jsonwebtoken::jwk::{
    AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse, ThumbprintHash,
};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::service_account::TokenError;

/// The key that signs, and all that are believed, its own public half among them.
#[derive(Clone)]
pub struct AccountKeys {
    signing: Signing,
    believed: Vec<Believed>,
}

#[derive(Clone)]
struct Signing {
    id: String,
    algorithm: Algorithm,
    key: EncodingKey,
}

#[derive(Clone)]
struct Believed {
    algorithm: Algorithm,
    key: DecodingKey,
    /// Names the key (`kid`).
    jwk: Jwk,
}

impl Believed {
    fn new(mut jwk: Jwk, algorithm: Algorithm) -> Result<Self, TokenError> {
        let id = jwk
            .thumbprint(ThumbprintHash::SHA256)
            .map_err(TokenError::Key)?;
        jwk.common.key_id = Some(id);
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        Ok(Self {
            algorithm,
            key: DecodingKey::from_jwk(&jwk).map_err(TokenError::Key)?,
            jwk,
        })
    }

    fn id(&self) -> &str {
        self.jwk.common.key_id.as_deref().unwrap_or_default()
    }
}

impl AccountKeys {
    /// `signing_pem` is a private key (PKCS#8, or an RSA key in PKCS#1); `believed_pem` holds further keys, public or private.
    ///
    /// # Errors
    /// When there is no such key in `signing_pem`, or one of the others cannot be read.
    pub fn read(signing_pem: &str, believed_pem: &str) -> Result<Self, TokenError> {
        let block = blocks(signing_pem)
            .find(|block| block.is_private())
            .ok_or(TokenError::NoKey)?;
        let (signing, own) = block.private()?;
        let mut believed = vec![own];
        for block in blocks(believed_pem) {
            let key = if block.is_private() {
                block.private()?.1
            } else {
                block.public()?
            };
            believe(&mut believed, key);
        }
        Ok(Self { signing, believed })
    }

    /// The first step from `self` to `next`: signs as before, and believes the keys of both.
    #[must_use]
    pub(super) fn towards(&self, next: &Self) -> Self {
        let mut both = next.clone();
        both.signing = self.signing.clone();
        for key in &self.believed {
            believe(&mut both.believed, key.clone());
        }
        both
    }

    pub(super) fn sign<C: Serialize>(&self, claims: &C) -> Result<String, TokenError> {
        let mut header = Header::new(self.signing.algorithm);
        header.kid = Some(self.signing.id.clone());
        jsonwebtoken::encode(&header, claims, &self.signing.key).map_err(TokenError::Sign)
    }

    /// The claims of a token that one of the keys has signed; `validate` says what else must hold.
    pub(super) fn verify<C: DeserializeOwned>(
        &self,
        token: &str,
        validate: impl Fn(&mut Validation),
    ) -> Result<C, TokenError> {
        let id = jsonwebtoken::decode_header(token)?.kid;
        // Others name keys otherwise: the named one is the likeliest, not the only one.
        let is_named = |key: &&Believed| Some(key.id()) == id.as_deref();
        let named = self.believed.iter().filter(is_named);
        let others = self.believed.iter().filter(|key| !is_named(key));
        let mut refused = None;
        for key in named.chain(others) {
            let mut validation = Validation::new(key.algorithm);
            validate(&mut validation);
            match jsonwebtoken::decode::<C>(token, &key.key, &validation) {
                Ok(decoded) => return Ok(decoded.claims),
                Err(error) => {
                    refused.get_or_insert(error);
                }
            }
        }
        Err(refused.map_or(TokenError::NoKey, TokenError::Verify))
    }

    /// What others verify tokens by.
    pub(super) fn public(&self) -> JwkSet {
        JwkSet {
            keys: self.believed.iter().map(|key| key.jwk.clone()).collect(),
        }
    }

    /// The names of the algorithms of [`public`](Self::public).
    pub(super) fn algorithms(&self) -> Vec<&'static str> {
        let mut names: Vec<_> = self
            .believed
            .iter()
            .map(|key| match key.algorithm {
                Algorithm::ES384 => "ES384",
                Algorithm::RS256 => "RS256",
                _ => "ES256",
            })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// Each key once.
fn believe(believed: &mut Vec<Believed>, key: Believed) {
    if believed.iter().all(|known| known.id() != key.id()) {
        believed.push(key);
    }
}

/// One `-----BEGIN …-----` of a file.
struct Block<'a> {
    label: &'a str,
    pem: &'a str,
}

fn blocks(pem: &str) -> impl Iterator<Item = Block<'_>> {
    const BEGIN: &str = "-----BEGIN ";
    pem.match_indices(BEGIN).filter_map(|(start, _)| {
        let rest = &pem[start..];
        let label = rest[BEGIN.len()..].split("-----").next()?;
        let end = format!("-----END {label}-----");
        let end = rest.find(&end)? + end.len();
        Some(Block {
            label,
            pem: &rest[..end],
        })
    })
}

impl Block<'_> {
    fn is_private(&self) -> bool {
        self.label.ends_with("PRIVATE KEY")
    }

    fn private(&self) -> Result<(Signing, Believed), TokenError> {
        let pem = self.pem.as_bytes();
        let mut refused = TokenError::NoKey;
        for algorithm in [Algorithm::ES256, Algorithm::ES384, Algorithm::RS256] {
            match signing_key(pem, algorithm) {
                Ok((key, jwk)) => {
                    let believed = Believed::new(jwk, algorithm)?;
                    let id = believed.id().to_owned();
                    return Ok((Signing { id, algorithm, key }, believed));
                }
                Err(error) => refused = TokenError::Key(error),
            }
        }
        Err(refused)
    }

    fn public(&self) -> Result<Believed, TokenError> {
        let pem = self.pem.as_bytes();
        let key = DecodingKey::from_ec_pem(pem).or_else(|_| DecodingKey::from_rsa_pem(pem));
        let jwk = Jwk::from_decoding_key(&key.map_err(TokenError::Key)?, None);
        let mut jwk = jwk.map_err(TokenError::Key)?;
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => {
                Algorithm::ES384
            }
            _ => Algorithm::ES256,
        };
        jwk.common.key_algorithm = Some(algorithm.into());
        Believed::new(jwk, algorithm)
    }
}

fn signing_key(
    pem: &[u8],
    algorithm: Algorithm,
) -> jsonwebtoken::errors::Result<(EncodingKey, Jwk)> {
    let key = match algorithm {
        Algorithm::RS256 => EncodingKey::from_rsa_pem(pem)?,
        _ => EncodingKey::from_ec_pem(pem)?,
    };
    let jwk = Jwk::from_encoding_key(&key, algorithm)?;
    Ok((key, jwk))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pem(algorithm: &'static rcgen::SignatureAlgorithm) -> (String, String) {
        let pair = rcgen::KeyPair::generate_for(algorithm).unwrap();
        (pair.serialize_pem(), pair.public_key_pem())
    }

    fn claims() -> Value {
        json!({"iss": "here", "exp": 4_000_000_000_i64})
    }

    fn verify(keys: &AccountKeys, token: &str) -> Result<Value, TokenError> {
        keys.verify(token, |validation| {
            validation.set_issuer(&["here"]);
            validation.validate_aud = false;
        })
    }

    #[test]
    fn keys_of_every_form_sign_and_verify() {
        let forms = [
            (&rcgen::PKCS_ECDSA_P256_SHA256, Algorithm::ES256),
            (&rcgen::PKCS_ECDSA_P384_SHA384, Algorithm::ES384),
            (&rcgen::PKCS_RSA_SHA256, Algorithm::RS256),
        ];
        for (form, algorithm) in forms {
            let (private, public) = pem(form);
            let (other, _) = pem(&rcgen::PKCS_ECDSA_P256_SHA256);
            let signer = AccountKeys::read(&private, "").unwrap();
            let token = signer.sign(&claims()).unwrap();
            let header = jsonwebtoken::decode_header(&token).unwrap();
            assert_eq!(header.alg, algorithm);
            let id = header.kid.unwrap();
            for keys in [
                &signer,
                &AccountKeys::read(&other, &public).unwrap(),
                &AccountKeys::read(&other, &private).unwrap(),
            ] {
                assert_eq!(verify(keys, &token).unwrap(), claims(), "{algorithm:?}");
                assert!(keys.public().find(&id).is_some(), "{algorithm:?}");
            }
            let stranger = AccountKeys::read(&other, "").unwrap();
            assert!(verify(&stranger, &token).is_err(), "{algorithm:?}");
        }
    }

    #[test]
    fn a_new_key_is_believed_before_it_signs_and_an_old_one_until_it_is_retired() {
        let (old, old_public) = pem(&rcgen::PKCS_ECDSA_P256_SHA256);
        let (new, new_public) = pem(&rcgen::PKCS_ECDSA_P256_SHA256);
        let before = AccountKeys::read(&old, &old_public).unwrap();
        let after = AccountKeys::read(&new, &format!("{new_public}{old_public}")).unwrap();
        let between = before.towards(&after);
        let retired = AccountKeys::read(&new, &new_public).unwrap();
        let early = between.sign(&claims()).unwrap();
        let late = after.sign(&claims()).unwrap();
        assert!(verify(&before, &early).is_ok(), "it signs as before");
        assert!(verify(&before, &late).is_err());
        for keys in [&between, &after] {
            assert!(verify(keys, &early).is_ok() && verify(keys, &late).is_ok());
            assert_eq!(keys.public().keys.len(), 2);
        }
        assert!(verify(&retired, &late).is_ok());
        assert!(verify(&retired, &early).is_err());
    }

    #[test]
    fn what_holds_no_key_is_refused() {
        let (private, public) = pem(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert!(matches!(
            AccountKeys::read(&public, ""),
            Err(TokenError::NoKey)
        ));
        let broken = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
        assert!(AccountKeys::read(&private, broken).is_err());
    }
}
