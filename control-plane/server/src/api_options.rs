//! Flags of the API server's own features: who else is let in, what is accounted for, what is enciphered. They bear
//! the names that kube-apiserver gives them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use windlass_api::resource::Resource;
use windlass_apiserver::Caches;
use windlass_apiserver::audit::AuditLog;
use windlass_apiserver::authn::{
    AccountKeys, BootstrapTokens, Lifetimes, Oidc, OidcConfig, OtherTokens, ServiceAccountTokens,
    StaticTokens,
};
use windlass_apiserver::encryption::EncryptedStore;
use windlass_machinery::time;
use windlass_store::Store;

use crate::credentials::Changes;
use crate::pki::Directory;

#[derive(clap::Args)]
#[group(id = "api-options")]
pub(crate) struct Options {
    /// The private key that signs ServiceAccount tokens (PEM); default: `pki/sa.key` in the data directory.
    #[arg(long)]
    service_account_signing_key_file: Option<PathBuf>,
    /// Keys of ServiceAccount tokens that are believed besides (PEM, several in one file if need be, the flag several times if need
    /// be); default: `pki/sa.pub`.
    #[arg(long)]
    service_account_key_file: Vec<PathBuf>,
    /// Who issues ServiceAccount tokens; further ones are believed. Default: the `kubernetes` Service's URL.
    #[arg(long)]
    service_account_issuer: Vec<String>,
    /// Audiences that mean the API server; default: the issuers.
    #[arg(long, value_delimiter = ',')]
    api_audiences: Vec<String>,
    /// ServiceAccount tokens that are asked for longer live this long: a duration of at least an hour, such as `24h`.
    #[arg(long, value_parser = token_seconds)]
    service_account_max_token_expiration: Option<i64>,
    /// Let pods' tokens be good for a year, for programs that never read theirs again.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    service_account_extend_token_expiration: bool,
    /// Tokens that are always good: lines of token,user,uid,"group1,group2".
    #[arg(long)]
    token_auth_file: Option<PathBuf>,
    /// Accept the bootstrap tokens that Secrets in kube-system hold.
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    enable_bootstrap_token_auth: bool,
    /// Accept tokens of this OpenID Connect issuer.
    #[arg(long, requires = "oidc_client_id")]
    oidc_issuer_url: Option<String>,
    /// The audience of that issuer's tokens.
    #[arg(long)]
    oidc_client_id: Option<String>,
    /// The authorities that may sign the issuer's certificate; default: those that the machine trusts.
    #[arg(long)]
    oidc_ca_file: Option<PathBuf>,
    #[arg(long, default_value = "sub")]
    oidc_username_claim: String,
    /// What is put before user names; `-` for nothing. Default: the issuer and `#`, unless the claim is `email`.
    #[arg(long)]
    oidc_username_prefix: Option<String>,
    #[arg(long)]
    oidc_groups_claim: Option<String>,
    #[arg(long, default_value = "")]
    oidc_groups_prefix: String,
    /// Which requests are written to the audit log, and how much of them.
    #[arg(long, requires = "audit_log_path")]
    audit_policy_file: Option<PathBuf>,
    /// Where the audit log goes; `-` is standard output.
    #[arg(long, requires = "audit_policy_file")]
    audit_log_path: Option<String>,
    /// Which resources are stored enciphered.
    #[arg(long)]
    encryption_provider_config: Option<PathBuf>,
}

/// Whole seconds of a Go duration, within what kube-apiserver allows.
fn token_seconds(text: &str) -> Result<i64, String> {
    let seconds = time::parse_duration(text).map(|nanos| nanos / 1_000_000_000);
    seconds
        .filter(|seconds| (3600..=1 << 32).contains(seconds))
        .ok_or_else(|| format!("{text:?} is not a duration between 1h and 2^32 seconds"))
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// Takes over what the encryption configuration says whenever it changes.
async fn follow_encryption(store: EncryptedStore, mut file: Changes) {
    loop {
        let path = file.next().await;
        let reloaded = match read(&path) {
            Ok(config) => store.reload(&config).await.map_err(anyhow::Error::from),
            Err(error) => Err(error),
        };
        match reloaded {
            Ok(()) => tracing::info!(path = %path.display(), "encryption configuration read again"),
            Err(error) => tracing::error!(
                error = format!("{error:#}"),
                "the old encryption configuration stays in use"
            ),
        }
    }
}

impl Options {
    /// The store, behind encryption where that is configured.
    pub(crate) fn encrypted(
        &self,
        store: Arc<dyn Store>,
        resources: &[Arc<Resource>],
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Arc<dyn Store>> {
        let Some(path) = &self.encryption_provider_config else {
            return Ok(store);
        };
        let store = EncryptedStore::new(store, &read(path)?, resources)
            .with_context(|| path.display().to_string())?;
        let follow = follow_encryption(store.clone(), Changes::new(vec![path.clone()]));
        tokio::spawn(shutdown.clone().run_until_cancelled_owned(follow));
        Ok(Arc::new(store))
    }

    /// The keys of ServiceAccount tokens, as the files have them now.
    pub(crate) fn account_keys(&self, pki: &Directory) -> anyhow::Result<AccountKeys> {
        let signing = match &self.service_account_signing_key_file {
            Some(path) => read(path)?,
            None => pki.service_account_key()?,
        };
        let mut believed = String::new();
        for path in &self.service_account_key_file {
            believed.push_str(&read(path)?);
        }
        if self.service_account_key_file.is_empty() {
            believed = pki.service_account_public_keys()?;
        }
        AccountKeys::read(&signing, &believed).context("the keys of ServiceAccount tokens")
    }

    /// Who issues and verifies ServiceAccount tokens.
    pub(crate) fn account_tokens(
        &self,
        keys: AccountKeys,
        domain: &str,
        caches: &Arc<Caches>,
    ) -> ServiceAccountTokens {
        let default = [format!("https://kubernetes.default.svc.{domain}")];
        let issuers = match self.service_account_issuer.as_slice() {
            [] => &default,
            stated => stated,
        };
        ServiceAccountTokens::new(keys, &issuers[0], caches.clone())
            .accepting(&issuers[1..], &self.api_audiences)
            .living(Lifetimes {
                most_seconds: self.service_account_max_token_expiration,
                extend: self.service_account_extend_token_expiration,
            })
    }

    /// Files besides those in `pki` whose change means that other keys are in force.
    pub(crate) fn key_files(&self) -> impl Iterator<Item = PathBuf> {
        let signing = self.service_account_signing_key_file.clone();
        signing
            .into_iter()
            .chain(self.service_account_key_file.clone())
    }

    /// The tokens besides those of ServiceAccounts.
    pub(crate) fn tokens(
        &self,
        caches: &Arc<Caches>,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<OtherTokens> {
        let fixed = match &self.token_auth_file {
            Some(path) => {
                StaticTokens::parse(&read(path)?).with_context(|| path.display().to_string())?
            }
            None => StaticTokens::default(),
        };
        let bootstrap = self
            .enable_bootstrap_token_auth
            .then(|| BootstrapTokens::new(caches.clone()));
        let oidc = match (&self.oidc_issuer_url, &self.oidc_client_id) {
            (Some(issuer), Some(client_id)) => {
                anyhow::ensure!(issuer.starts_with("https://"), "{issuer:?} is no https URL");
                let oidc = Oidc::new(OidcConfig {
                    issuer: issuer.clone(),
                    client_id: client_id.clone(),
                    username_claim: self.oidc_username_claim.clone(),
                    username_prefix: self.oidc_username_prefix.clone(),
                    groups_claim: self.oidc_groups_claim.clone(),
                    groups_prefix: self.oidc_groups_prefix.clone(),
                    ca_pem: match &self.oidc_ca_file {
                        Some(file) => read(file)?.into_bytes(),
                        None => Vec::new(),
                    },
                });
                let keys = oidc.clone().keep_keys();
                tokio::spawn(shutdown.clone().run_until_cancelled_owned(keys));
                Some(oidc)
            }
            _ => None,
        };
        Ok(OtherTokens {
            fixed,
            bootstrap,
            oidc,
        })
    }

    /// Where requests are accounted for.
    pub(crate) fn audit(&self) -> anyhow::Result<Option<AuditLog>> {
        let (Some(policy), Some(path)) = (&self.audit_policy_file, &self.audit_log_path) else {
            return Ok(None);
        };
        let log = AuditLog::open(&read(policy)?, path);
        Ok(Some(log.with_context(|| policy.display().to_string())?))
    }
}
