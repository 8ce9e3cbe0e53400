//! The serving certificate: made by the node itself at its first start and kept.
//!
//! The API server does not verify it, as upstream's does not unless told to, since no authority that it
//! knows has signed it; what it gives is encryption. Clients are verified in the other direction.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;

const YEARS: i32 = 10;

pub(crate) struct ServingCertificate {
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

/// Loads the certificate from `folder`; makes it when there is none, when it is about to end or when the
/// node's names have changed. `names` are host names and IP addresses.
pub(crate) fn load_or_make(folder: &Path, names: &[String]) -> io::Result<ServingCertificate> {
    let (certificate_path, key_path) = (folder.join("kubelet.crt"), folder.join("kubelet.key"));
    let kept = CertificateDer::from_pem_file(&certificate_path)
        .ok()
        .zip(PrivateKeyDer::from_pem_file(&key_path).ok());
    if let Some((certificate, key)) = kept
        && is_usable(&certificate, names)
    {
        return Ok(ServingCertificate { certificate, key });
    }
    let (certificate, key) = make(names).map_err(io::Error::other)?;
    // The key first: a crash in between leaves a pair that does not match, which is_usable cannot see, but
    // an old certificate whose names have changed is made again.
    let kept = fs::create_dir_all(folder)
        .and_then(|()| write(&key_path, &key.serialize_pem(), 0o600))
        .and_then(|()| write(&certificate_path, &certificate.pem(), 0o644));
    if let Err(error) = kept {
        // Nobody depends on its being the same one; a node with a full disk depends on its agent.
        tracing::warn!(%error, folder = %folder.display(), "the serving certificate is not kept");
    }
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?;
    Ok(ServingCertificate {
        certificate: certificate.der().clone(),
        key,
    })
}

fn make(names: &[String]) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    let year = i32::from(
        jiff::Timestamp::now()
            .to_zoned(jiff::tz::TimeZone::UTC)
            .year(),
    );
    // From the year before: a node's clock may be behind its clients'.
    params.not_before = date_time_ymd(year - 1, 1, 1);
    params.not_after = date_time_ymd(year + YEARS, 1, 1);
    let name = names.first().map_or("node", String::as_str);
    params
        .distinguished_name
        .push(DnType::CommonName, format!("{name}@windlass"));
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?, key))
}

/// In time for a month, and for these names.
fn is_usable(certificate: &CertificateDer<'_>, names: &[String]) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let month = std::time::Duration::from_secs(30 * 86_400);
    let left = parsed.validity().time_to_expiration();
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else {
        return false;
    };
    let held: Vec<String> = alternatives
        .value
        .general_names
        .iter()
        .filter_map(name_text)
        .collect();
    left.is_some_and(|left| left.unsigned_abs() > month)
        && names.iter().all(|name| held.contains(name))
}

fn name_text(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(std::net::IpAddr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).map(std::net::IpAddr::from);
            v4.or(v6).ok().map(|address| address.to_string())
        }
        _ => None,
    }
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_certificate_is_kept_until_the_names_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        let both = names(&["node-1", "192.0.2.1", "fd00::1"]);
        let first = load_or_make(folder.path(), &both).expect("make");
        let again = load_or_make(folder.path(), &both).expect("load");
        assert_eq!(first.certificate, again.certificate);
        assert_eq!(first.key.secret_der(), again.key.secret_der());
        let mode = fs::metadata(folder.path().join("kubelet.key"))
            .expect("key")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let other = load_or_make(folder.path(), &names(&["node-1", "192.0.2.2"])).expect("make");
        assert_ne!(other.certificate, first.certificate);
        fs::write(folder.path().join("kubelet.crt"), "broken").expect("write");
        assert!(load_or_make(folder.path(), &both).is_ok());
    }

    #[test]
    fn a_certificate_that_cannot_be_kept_serves_all_the_same() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("kubelet.new")).expect("in the way of every write");
        load_or_make(folder.path(), &["node-1".to_owned()]).expect("a certificate");
        assert!(!folder.path().join("kubelet.crt").exists());
    }
}
