//! The store on an etcd that talks to those alone whom its authority has signed for.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use windlass_loopback::{EtcdServer, is_etcd_installed};
use windlass_store::{Etcd, EtcdOptions, EtcdTls, Store};

use crate::suite::put;

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("a key");
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).expect("a certificate");
    (certificate.pem(), Issuer::new(parameters, key))
}

/// A certificate for who is at this address and its key.
fn signed(issuer: &Issuer<'static, KeyPair>, address: Ipv4Addr) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let parameters = CertificateParams::new([address.to_string()]).expect("an address");
    let certificate = parameters.signed_by(&key, issuer).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).expect("write");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_keeps_strangers_out_and_lets_its_own_in() {
    if !is_etcd_installed() {
        return;
    }
    // Whoever comes first in this program.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (ca, issuer) = authority();
    let address = windlass_loopback::address();
    let (certificate, key) = signed(&issuer, address);
    let files = [
        ("--trusted-ca-file", file(folder.path(), "ca.crt", &ca)),
        (
            "--cert-file",
            file(folder.path(), "server.crt", &certificate),
        ),
        ("--key-file", file(folder.path(), "server.key", &key)),
    ];
    let mut flags = vec![OsStr::new("--client-cert-auth")];
    flags.extend(
        files
            .iter()
            .flat_map(|(flag, file)| [OsStr::new(flag), file.as_os_str()]),
    );
    let server = EtcdServer::start_with_tls(folder.path(), address, &flags)
        .await
        .expect("etcd");
    let client_url = server.url().to_owned();
    let connect = async |ca: &str, identity: Option<(String, String)>| {
        let identity = identity.map(|(certificate, key)| (certificate.into(), key.into()));
        let tls = EtcdTls {
            ca: ca.into(),
            identity,
        };
        let options = EtcdOptions {
            endpoints: vec![client_url.clone()],
            tls: Some(tls),
        };
        let store = Etcd::connect(options).await.ok()?;
        store.current_revision().await.ok()?;
        Some(store)
    };
    let own = connect(&ca, Some(signed(&issuer, address))).await;
    let own = own.expect("its own are let in");
    put(&own, "/a", "1").await;
    assert!(own.get("/a", None).await.expect("get").is_some());

    let (other_ca, other) = authority();
    assert!(connect(&ca, None).await.is_none(), "who shows nothing");
    assert!(
        connect(&ca, Some(signed(&other, address))).await.is_none(),
        "who is another's"
    );
    let wrong = connect(&other_ca, Some(signed(&issuer, address))).await;
    assert!(wrong.is_none(), "who believes another authority");
}
