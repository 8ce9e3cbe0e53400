//! Authentication: who sends a request.
//!
//! Tried in upstream's order: the client certificate of the connection, then the bearer token. A credential
//! that is presented but not valid makes the request fail (401); no credential at all makes it anonymous,
//! and what an anonymous user may do is the authorizer's business.

pub mod account_keys;
pub mod bootstrap_tokens;
pub mod certificate;
pub mod impersonation;
pub(crate) mod legacy_tokens;
pub(crate) mod legacy_tracking;
pub mod oidc;
pub mod service_account;
pub mod static_tokens;

use std::collections::BTreeMap;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls_pki_types::CertificateDer;
use windlass_machinery::status::ApiError;

pub use account_keys::AccountKeys;
pub use bootstrap_tokens::BootstrapTokens;
pub use certificate::{CertificateAuthenticator, CertificateError};
pub use oidc::{Oidc, OidcConfig};
pub use service_account::{BoundObjects, Lifetimes, ServiceAccountTokens};
pub use static_tokens::StaticTokens;

/// An authenticated identity (`authentication.k8s.io` UserInfo).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub(crate) const GROUP_AUTHENTICATED: &str = "system:authenticated";
pub(crate) const GROUP_UNAUTHENTICATED: &str = "system:unauthenticated";
pub(crate) const GROUP_MASTERS: &str = "system:masters";
pub(crate) const GROUP_NODES: &str = "system:nodes";
pub(crate) const GROUP_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

impl UserInfo {
    pub fn new(name: &str, groups: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..Self::default()
        }
    }

    pub fn anonymous() -> Self {
        Self::new("system:anonymous", &[GROUP_UNAUTHENTICATED])
    }

    /// The identity of a ServiceAccount, without what its token was bound to.
    pub fn service_account(namespace: &str, name: &str, uid: &str) -> Self {
        Self {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            uid: uid.to_owned(),
            groups: vec![
                GROUP_SERVICE_ACCOUNTS.to_owned(),
                format!("{GROUP_SERVICE_ACCOUNTS}:{namespace}"),
            ],
            extra: BTreeMap::new(),
        }
    }

    pub(crate) fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// Every identity but the anonymous one belongs to `system:authenticated`.
    fn authenticated(mut self) -> Self {
        if !self.in_group(GROUP_AUTHENTICATED) && !self.in_group(GROUP_UNAUTHENTICATED) {
            self.groups.push(GROUP_AUTHENTICATED.to_owned());
        }
        self
    }
}

/// Turns a request's credentials into a [`UserInfo`].
pub struct Authenticator {
    certificates: CertificateAuthenticator,
    tokens: ServiceAccountTokens,
    others: OtherTokens,
}

/// Tokens besides those of ServiceAccounts.
#[derive(Default)]
pub struct OtherTokens {
    pub fixed: StaticTokens,
    pub bootstrap: Option<BootstrapTokens>,
    pub oidc: Option<std::sync::Arc<Oidc>>,
}

impl Authenticator {
    pub fn new(certificates: CertificateAuthenticator, tokens: ServiceAccountTokens) -> Self {
        Self {
            certificates,
            tokens,
            others: OtherTokens::default(),
        }
    }

    /// Accepts these tokens as well.
    #[must_use]
    pub fn with(mut self, others: OtherTokens) -> Self {
        self.others = others;
        self
    }

    /// Believes client certificates that lead to `roots`, and no others, from now on.
    ///
    /// # Errors
    /// When `roots` holds no usable certificate.
    pub fn trust(&self, roots: rustls::RootCertStore) -> Result<(), CertificateError> {
        self.certificates.trust(roots)
    }

    /// What a TLS listener needs to ask clients for certificates without judging them.
    pub(crate) fn tls_verifier(
        &self,
    ) -> std::sync::Arc<dyn rustls::server::danger::ClientCertVerifier> {
        self.certificates.tls_verifier()
    }

    /// The issuer and verifier of ServiceAccount tokens.
    pub(crate) fn service_account_tokens(&self) -> &ServiceAccountTokens {
        &self.tokens
    }

    /// The identity behind a request, or `None` where it carries no credential.
    ///
    /// `now` is in seconds of the Unix epoch.
    ///
    /// # Errors
    /// 401 when a credential is presented and is not valid.
    pub fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: Option<&[CertificateDer<'static>]>,
        now: i64,
    ) -> Result<Option<UserInfo>, ApiError> {
        if let Some(chain) = peer.filter(|chain| !chain.is_empty()) {
            return match self.certificates.authenticate(chain, now) {
                Ok(user) => Ok(Some(user.authenticated())),
                Err(error) => {
                    tracing::warn!(%error, "client certificate refused");
                    Err(ApiError::unauthorized())
                }
            };
        }
        let Some(token) = bearer_token(headers) else {
            return Ok(None);
        };
        let (user, _) = self.authenticate_token(token, &[], now)?;
        Ok(Some(user))
    }

    /// Verifies a bearer token; with no `audiences` the API server's own are meant. Answers also for which of them it is.
    ///
    /// # Errors
    /// 401 when no verifier accepts it.
    pub(crate) fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
        now: i64,
    ) -> Result<(UserInfo, Vec<String>), ApiError> {
        let own = self.tokens.audiences();
        let audiences = if audiences.is_empty() { own } else { audiences };
        // These are for the API server; whoever asks for another audience does not mean them.
        let for_server: Vec<String> = own
            .iter()
            .filter(|known| audiences.contains(known))
            .cloned()
            .collect();
        if !for_server.is_empty()
            && let Some(user) = self.other(token, now)?
        {
            return Ok((user.authenticated(), for_server));
        }
        match self.tokens.verify(token, audiences, now) {
            Ok((user, audiences)) => Ok((user.authenticated(), audiences)),
            Err(error) => {
                tracing::debug!(%error, "bearer token refused");
                Err(ApiError::unauthorized())
            }
        }
    }
}

impl Authenticator {
    fn other(&self, token: &str, now: i64) -> Result<Option<UserInfo>, ApiError> {
        if let Some(user) = self.others.fixed.find(token) {
            return Ok(Some(user));
        }
        let bootstrap = self.others.bootstrap.as_ref();
        if let Some(user) = bootstrap.and_then(|tokens| tokens.find(token, now)) {
            return Ok(Some(user));
        }
        match &self.others.oidc {
            Some(oidc) if oidc.issued(token) => match oidc.verify(token, now) {
                Ok(user) => Ok(Some(user)),
                Err(why) => {
                    tracing::debug!(why, "OIDC token refused");
                    Err(ApiError::unauthorized())
                }
            },
            _ => Ok(None),
        }
    }
}

/// The token of `Authorization: Bearer …`; clients that cannot set headers on a WebSocket put it into a
/// `base64url.bearer.authorization.k8s.io.` subprotocol, which the upgrade handler adds as that header.
fn bearer_token(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .trim()
        .split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}
