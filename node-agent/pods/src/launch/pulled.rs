//! Who may run an image that is on the node already (KEP-2535).
//!
//! One that was pulled with a secret is for pods with that secret: any other has to show the registry what it has, even
//! though there is nothing to download. What came onto the node in another way, or without credentials, is everybody's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Secret;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use windlass_cri::v1::AuthConfig;

use super::image::repository;

/// What an image was pulled with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Credential {
    uid: String,
    namespace: String,
    name: String,
    credential_hash: String,
}

impl Credential {
    /// What a secret has for the image.
    pub(crate) fn of(secret: &Secret, auth: &AuthConfig) -> Self {
        let metadata = &secret.metadata;
        let parts = [&auth.username, &auth.password, &auth.identity_token];
        let mut hash = Sha256::new();
        for part in parts {
            hash.update(part.len().to_le_bytes());
            hash.update(part);
        }
        let hash = hash.finalize();
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            credential_hash: hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }

    /// It is the same secret, whose content may have been changed, or another one with the same content.
    fn stands_for(&self, other: &Self) -> bool {
        let secret = |it: &Self| (it.uid.clone(), it.namespace.clone(), it.name.clone());
        self.credential_hash == other.credential_hash || secret(self) == secret(other)
    }
}

/// Who may run an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Access {
    /// Every pod of the node.
    Everybody,
    /// Pods with one of these.
    With(BTreeSet<Credential>),
}

impl Access {
    /// Whether a pod with these may.
    pub(crate) fn allows(&self, own: &[Credential]) -> bool {
        match self {
            Self::Everybody => true,
            Self::With(known) => known
                .iter()
                .any(|known| own.iter().any(|own| own.stands_for(known))),
        }
    }
}

/// Of one image, by the repositories from which it was pulled; those without secrets are open to everybody.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record(BTreeMap<String, BTreeSet<Credential>>);

/// A pull that is under way.
#[derive(Debug)]
pub(crate) struct Pulling {
    name: String,
    file: PathBuf,
    /// What an earlier one that was cut off has left behind is nobody's, even if this one fails.
    after_another: bool,
}

/// What the agent has pulled, written down: a restarted one must know it.
#[derive(Debug)]
pub(crate) struct PulledImages {
    pulled: PathBuf,
    pulling: PathBuf,
    turn: Mutex<()>,
}

impl PulledImages {
    /// `root` is the kubelet's folder.
    pub(crate) fn new(root: &Path) -> Self {
        let folder = root.join("image_manager");
        Self {
            pulled: folder.join("pulled"),
            pulling: folder.join("pulling"),
            turn: Mutex::default(),
        }
    }

    /// Who may run the image with this id under this name.
    pub(crate) fn access(&self, name: &str, id: &str) -> io::Result<Access> {
        let _turn = self.turn.lock();
        let Some(record) = self.record(id)? else {
            // Whose a pull was that was cut off, nobody knows.
            return Ok(match self.pulling.join(file_name(name)).exists() {
                true => Access::With(BTreeSet::new()),
                false => Access::Everybody,
            });
        };
        Ok(match record.0.get(&repository(name)) {
            Some(secrets) if secrets.is_empty() => Access::Everybody,
            Some(secrets) => Access::With(secrets.clone()),
            None => Access::With(BTreeSet::new()),
        })
    }

    /// A pull begins.
    pub(crate) fn begin(&self, name: &str) -> io::Result<Pulling> {
        fs::create_dir_all(&self.pulling)?;
        let file = self.pulling.join(file_name(name));
        let after_another = file.exists();
        fs::write(&file, name)?;
        Ok(Pulling {
            name: name.to_owned(),
            file,
            after_another,
        })
    }

    /// A pull came to its end: of the image with this id, with this or without credentials; or of nothing.
    pub(crate) fn end(
        &self,
        pulling: Pulling,
        got: Option<(&str, Option<Credential>)>,
    ) -> io::Result<()> {
        let name = &pulling.name;
        if got.is_none() && pulling.after_another {
            return Ok(());
        }
        let _turn = self.turn.lock();
        if let Some((id, by)) = got {
            let mut record = self.record(id)?.unwrap_or_default();
            let known = record.0.get_mut(&repository(name));
            match (known, by) {
                // Open it stays.
                (Some(secrets), Some(_)) if secrets.is_empty() => {}
                (Some(secrets), Some(by)) => {
                    secrets.insert(by);
                }
                (_, by) => {
                    let secrets = by.into_iter().collect();
                    record.0.insert(repository(name), secrets);
                }
            }
            fs::create_dir_all(&self.pulled)?;
            let new = self.pulled.join(".new");
            fs::write(&new, serde_json::to_vec(&record)?)?;
            fs::rename(new, self.pulled.join(file_name(id)))?;
        }
        absent_is_done(fs::remove_file(pulling.file))
    }

    /// The images of which something is known. To be asked before the runtime is asked for all that it has: what is pulled
    /// in between must not count as gone.
    pub(crate) fn known(&self) -> io::Result<BTreeSet<String>> {
        let _turn = self.turn.lock();
        let entries = match fs::read_dir(&self.pulled) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
            other => other?,
        };
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        entries.map(|entry| entry.map(name)).collect()
    }

    /// Forgets those of `known` that are not among the images that are there.
    pub(crate) fn forget<'a>(
        &self,
        mut known: BTreeSet<String>,
        there: impl Iterator<Item = &'a str>,
    ) -> io::Result<()> {
        let _turn = self.turn.lock();
        for id in there {
            known.remove(&file_name(id));
        }
        known
            .iter()
            .try_for_each(|gone| absent_is_done(fs::remove_file(self.pulled.join(gone))))
    }

    fn record(&self, id: &str) -> io::Result<Option<Record>> {
        match fs::read(self.pulled.join(file_name(id))) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            other => Ok(Some(serde_json::from_slice(&other?)?)),
        }
    }
}

fn absent_is_done(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Names that fall together here are only asked for once too often.
fn file_name(name: &str) -> String {
    const LONGEST: usize = 200;
    let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let name: String = name.chars().map(fits).collect();
    name[name.len().saturating_sub(LONGEST)..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "sha256:1";

    fn secret(name: &str) -> Credential {
        Credential {
            uid: format!("uid-of-{name}"),
            namespace: "shop".into(),
            name: name.into(),
            credential_hash: format!("hash-of-{name}"),
        }
    }

    #[test]
    fn a_secret_is_known_by_its_name_and_by_what_it_holds() {
        let of = |name: &str, password: &str| {
            let secret =
                serde_json::json!({"metadata": {"name": name, "namespace": "shop", "uid": name}});
            let auth = AuthConfig {
                username: "u".into(),
                password: password.into(),
                ..AuthConfig::default()
            };
            Credential::of(&serde_json::from_value(secret).unwrap(), &auth)
        };
        let access = Access::With([of("a", "old")].into());
        assert!(access.allows(&[of("a", "new")]));
        assert!(access.allows(&[of("b", "new"), of("b", "old")]));
        assert!(!access.allows(&[of("b", "new")]));
        assert!(!access.allows(&[]));
        let text = serde_json::to_string(&of("a", "old")).unwrap();
        assert!(!text.contains("old"), "{text}");
    }

    #[test]
    fn an_image_is_for_those_who_could_pull_it() {
        let root = tempfile::tempdir().unwrap();
        let images = || PulledImages::new(root.path());
        let pull = |name: &str, by: Option<&str>| {
            let pulling = images().begin(name).unwrap();
            images().end(pulling, Some((ID, by.map(secret)))).unwrap();
        };
        let access = |name: &str| images().access(name, ID).unwrap();
        let with = |names: &[&str]| Access::With(names.iter().map(|name| secret(name)).collect());

        assert_eq!(
            access("reg/a:1"),
            Access::Everybody,
            "nobody pulled it here"
        );
        pull("reg/a:1", Some("one"));
        assert_eq!(access("reg/a:2"), with(&["one"]), "tags do not matter");
        pull("reg/a:1", Some("two"));
        assert_eq!(access("reg/a:1"), with(&["one", "two"]));
        assert_eq!(
            access("reg/b:1"),
            with(&[]),
            "another repository has its own rights"
        );
        pull("reg/a:1", None);
        assert_eq!(access("reg/a:1"), Access::Everybody);
        pull("reg/a:1", Some("three"));
        assert_eq!(access("reg/a:1"), Access::Everybody);

        let known = images().known().unwrap();
        images().forget(known, ["sha256:2"].into_iter()).unwrap();
        assert_eq!(
            access("reg/b:1"),
            Access::Everybody,
            "what is gone is forgotten"
        );
    }

    #[test]
    fn nobody_runs_what_a_pull_left_behind_that_was_cut_off() {
        let root = tempfile::tempdir().unwrap();
        let images = PulledImages::new(root.path());
        let access = || images.access("reg/a:1", ID).unwrap();
        let failed = images.begin("reg/a:1").unwrap();
        images.end(failed, None).unwrap();
        assert_eq!(access(), Access::Everybody, "it brought nothing");

        images.begin("reg/a:1").unwrap();
        assert_eq!(access(), Access::With(BTreeSet::new()));
        let stranger = images.begin("reg/a:1").unwrap();
        images.end(stranger, None).unwrap();
        assert_eq!(
            access(),
            Access::With(BTreeSet::new()),
            "whoever fails gains nothing"
        );
        let owner = images.begin("reg/a:1").unwrap();
        images.end(owner, Some((ID, None))).unwrap();
        assert_eq!(access(), Access::Everybody);
    }
}
