//! The store on an etcd that talks to those alone whom its authority has signed for.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use windlass_store::{Etcd, EtcdOptions, EtcdTls, Store};

use crate::suite::put;

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("a key");
    let mut parameters = CertificateParams::default();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).expect("a certificate");
    (certificate.pem(), Issuer::new(parameters, key))
}

/// A certificate for this machine and its key.
fn signed(issuer: &Issuer<'static, KeyPair>) -> (String, String) {
    let key = KeyPair::generate().expect("a key");
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let parameters = CertificateParams::new(names).expect("names");
    let certificate = parameters.signed_by(&key, issuer).expect("a certificate");
    (certificate.pem(), key.serialize_pem())
}

fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).expect("write");
    path
}

fn free_url(scheme: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    format!("{scheme}://{}", listener.local_addr().expect("an address"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_keeps_strangers_out_and_lets_its_own_in() {
    if Command::new("etcd").arg("--version").output().is_err() {
        eprintln!("not run: etcd (Debian's package etcd-server) is not installed");
        return;
    }
    // Whoever comes first in this program.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (ca, issuer) = authority();
    let (certificate, key) = signed(&issuer);
    let (client_url, peer_url) = (free_url("https"), free_url("http"));
    let server = Command::new("etcd")
        .arg("--data-dir")
        .arg(folder.path().join("data"))
        .args(["--listen-client-urls", &client_url])
        .args(["--advertise-client-urls", &client_url])
        .args(["--listen-peer-urls", &peer_url])
        .args(["--initial-advertise-peer-urls", &peer_url])
        .args(["--initial-cluster", &format!("default={peer_url}")])
        .arg("--client-cert-auth")
        .arg("--trusted-ca-file")
        .arg(file(folder.path(), "ca.crt", &ca))
        .arg("--cert-file")
        .arg(file(folder.path(), "server.crt", &certificate))
        .arg("--key-file")
        .arg(file(folder.path(), "server.key", &key))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let _server = Server(server.expect("etcd starts"));
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
    let mut own = None;
    for _ in 0..600 {
        own = connect(&ca, Some(signed(&issuer))).await;
        if own.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let own = own.expect("its own are let in");
    put(&own, "/a", "1").await;
    assert!(own.get("/a", None).await.expect("get").is_some());

    let (other_ca, other) = authority();
    assert!(connect(&ca, None).await.is_none(), "who shows nothing");
    assert!(
        connect(&ca, Some(signed(&other))).await.is_none(),
        "who is another's"
    );
    let wrong = connect(&other_ca, Some(signed(&issuer))).await;
    assert!(wrong.is_none(), "who believes another authority");
}
