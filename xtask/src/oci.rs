//! Writes container images as OCI archives, without a container tool.
//!
//! An archive is a tar of an image layout (OCI image-spec v1.1): `oci-layout`, `index.json` and content-addressed
//! blobs. A `manifest.json` beside them lets `docker load` and `podman load` of any age read the same file. The
//! same input gives the same bytes: entries are in the order given, and every time is zero.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub struct Image {
    /// With registry and tag: what a Pod's `image` says.
    pub reference: String,
    pub entrypoint: Vec<String>,
    pub command: Vec<String>,
    pub environment: Vec<String>,
    /// `<port>/<protocol>`; informative, as EXPOSE in a Dockerfile.
    pub ports: Vec<String>,
    /// What registries and scanners show of an image (`org.opencontainers.image.*`).
    pub labels: Vec<(&'static str, String)>,
    pub files: Vec<File>,
}

/// One entry of the root file system; its parent folders come before it.
pub enum File {
    Folder {
        path: String,
        mode: u32,
    },
    Regular {
        path: String,
        mode: u32,
        content: Vec<u8>,
    },
    Link {
        path: String,
        target: String,
    },
}

/// Writes the archive and returns the digest of the image's manifest.
pub fn write(image: &Image, archive: &Path) -> Result<String> {
    let bytes = archive_bytes(image)?;
    if let Some(folder) = archive.parent() {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    fs::write(archive, &bytes.tar).with_context(|| format!("writing {}", archive.display()))?;
    Ok(bytes.manifest_digest)
}

struct Archive {
    tar: Vec<u8>,
    manifest_digest: String,
}

fn archive_bytes(image: &Image) -> Result<Archive> {
    let plain_layer = layer(&image.files)?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&plain_layer)?;
    let layer = Blob::new(
        "application/vnd.oci.image.layer.v1.tar+gzip",
        gzip.finish()?,
    );
    let config = Blob::json(
        "application/vnd.oci.image.config.v1+json",
        &configuration(image, &digest(&plain_layer)),
    );
    let manifest = Blob::json(
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        }),
    );
    let mut entry = manifest.descriptor();
    entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    entry["annotations"] = json!({
        // containerd takes the full name from the first, other tools the tag from the second.
        "io.containerd.image.name": image.reference,
        "org.opencontainers.image.ref.name": tag(&image.reference),
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    });
    let docker = json!([{
        "Config": config.path(),
        "RepoTags": [image.reference],
        "Layers": [layer.path()],
    }]);

    let mut tar = tar::Builder::new(Vec::new());
    let small: [(&str, Vec<u8>); 3] = [
        (
            "oci-layout",
            json!({ "imageLayoutVersion": "1.0.0" })
                .to_string()
                .into_bytes(),
        ),
        ("index.json", index.to_string().into_bytes()),
        ("manifest.json", docker.to_string().into_bytes()),
    ];
    for (path, content) in &small {
        append(&mut tar, path, 0o644, content)?;
    }
    for blob in [&config, &layer, &manifest] {
        append(&mut tar, &blob.path(), 0o644, &blob.content)?;
    }
    Ok(Archive {
        tar: tar.into_inner()?,
        manifest_digest: manifest.digest,
    })
}

fn configuration(image: &Image, diff_id: &str) -> Value {
    let ports: serde_json::Map<String, Value> = image
        .ports
        .iter()
        .map(|port| (port.clone(), json!({})))
        .collect();
    let labels: serde_json::Map<String, Value> = image
        .labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": image.entrypoint,
            "Cmd": image.command,
            "Env": image.environment,
            "ExposedPorts": ports,
            "Labels": labels,
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    })
}

fn layer(files: &[File]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for file in files {
        match file {
            File::Folder { path, mode } => {
                let mut header = header(tar::EntryType::Directory, *mode, 0);
                tar.append_data(&mut header, format!("{path}/"), std::io::empty())
            }
            File::Regular {
                path,
                mode,
                content,
            } => {
                let mut header = header(tar::EntryType::Regular, *mode, content.len());
                tar.append_data(&mut header, path, content.as_slice())
            }
            File::Link { path, target } => {
                let mut header = header(tar::EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut header, path, target)
            }
        }
        .context("writing the image's layer")?;
    }
    Ok(tar.into_inner()?)
}

fn append(tar: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(tar::EntryType::Regular, mode, content.len());
    tar.append_data(&mut header, path, content)
        .with_context(|| format!("writing {path}"))
}

fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

struct Blob {
    media_type: &'static str,
    digest: String,
    content: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, content: Vec<u8>) -> Self {
        Self {
            media_type,
            digest: digest(&content),
            content,
        }
    }

    fn json(media_type: &'static str, content: &Value) -> Self {
        Self::new(media_type, content.to_string().into_bytes())
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.content.len() })
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

fn digest(content: &[u8]) -> String {
    let hex: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("sha256:{hex}")
}

fn tag(reference: &str) -> &str {
    reference.rsplit_once(':').map_or("latest", |(_, tag)| tag)
}

/// In the words of the image specification, which are those of Go.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn image() -> Image {
        Image {
            reference: "example.test/tool:v1".into(),
            entrypoint: vec!["/tool".into()],
            command: vec![],
            environment: vec!["PATH=/".into()],
            ports: vec!["80/tcp".into()],
            labels: vec![],
            files: vec![
                File::Folder {
                    path: "bin".into(),
                    mode: 0o755,
                },
                File::Regular {
                    path: "tool".into(),
                    mode: 0o755,
                    content: b"program".to_vec(),
                },
                File::Link {
                    path: "bin/tool".into(),
                    target: "/tool".into(),
                },
            ],
        }
    }

    fn entries(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(tar);
        archive
            .entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let mut content = Vec::new();
                entry.read_to_end(&mut content).unwrap();
                (entry.path().unwrap().display().to_string(), content)
            })
            .collect()
    }

    #[test]
    fn the_same_image_gives_the_same_bytes() {
        assert_eq!(
            archive_bytes(&image()).unwrap().tar,
            archive_bytes(&image()).unwrap().tar
        );
    }

    #[test]
    fn every_descriptor_leads_to_a_blob_of_its_digest_and_size() {
        let archive = archive_bytes(&image()).unwrap();
        let entries = entries(&archive.tar);
        let blob = |descriptor: &Value| -> Vec<u8> {
            let name = descriptor["digest"].as_str().unwrap();
            let content = &entries[&format!("blobs/{}", name.replace(':', "/"))];
            assert_eq!(digest(content), name);
            assert_eq!(content.len() as u64, descriptor["size"].as_u64().unwrap());
            content.clone()
        };
        let index: Value = serde_json::from_slice(&entries["index.json"]).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "example.test/tool:v1"
        );
        assert_eq!(entry["digest"], archive.manifest_digest);
        let manifest: Value = serde_json::from_slice(&blob(entry)).unwrap();
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
        let mut layer = Vec::new();
        flate2::read::GzDecoder::new(blob(&manifest["layers"][0]).as_slice())
            .read_to_end(&mut layer)
            .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], digest(&layer));
        let files = self::entries(&layer);
        assert_eq!(files["tool"], b"program");
        assert!(files.contains_key("bin/tool"));
    }
}
