//! `cargo xtask image`: the container images of this repository, from static binaries.
//!
//! glibc is linked statically (`crt-static`): such a binary runs in an image that holds nothing else. Only the
//! last crate is compiled again for it, so the images share every dependency with `up` and the tests.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::oci::{self, File, Image};
use crate::{cargo, containerd, dependencies, layout, notices, process, sbom, setup};

struct Recipe {
    name: &'static str,
    build: fn() -> Result<Image>,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "pause",
        build: pause,
    },
    Recipe {
        name: "echo",
        build: echo,
    },
    Recipe {
        name: "busybox",
        build: busybox,
    },
    Recipe {
        name: "control-plane",
        build: control_plane,
    },
    Recipe {
        name: "node-agent",
        build: node_agent,
    },
];

/// What `up` loads into the cluster's runtime.
pub const FOR_UP: [&str; 3] = ["pause", "echo", "busybox"];

pub fn run(names: &[String]) -> Result<()> {
    let all: Vec<String> = RECIPES
        .iter()
        .map(|recipe| recipe.name.to_owned())
        .collect();
    for name in if names.is_empty() { &all } else { names } {
        let archive = write(name)?;
        let size = archive.metadata()?.len() as f64 / 1e6;
        println!("{} ({size:.1} MB)", archive.display());
    }
    Ok(())
}

/// Builds one image and returns its archive.
pub fn write(name: &str) -> Result<PathBuf> {
    let Some(recipe) = RECIPES.iter().find(|recipe| recipe.name == name) else {
        let known: Vec<_> = RECIPES.iter().map(|recipe| recipe.name).collect();
        bail!(
            "there is no image `{name}`: the images are {}",
            known.join(", ")
        );
    };
    let archive = layout::images().join(format!("{name}.tar"));
    let image = (recipe.build)().with_context(|| format!("building the image `{name}`"))?;
    oci::write(&image, &archive)?;
    Ok(archive)
}

/// Holds a pod's namespaces open. Without the standard library it is about a kilobyte, and so costs a node
/// next to nothing per pod. rustc is called directly: cargo cannot have one package that aborts on panic among
/// others that unwind.
fn pause() -> Result<Image> {
    let source = layout::repository().join("tests/images/pause/pause.rs");
    let binary = layout::images().join("pause");
    fs::create_dir_all(layout::images())?;
    process::output(
        Command::new("rustc")
            .args(["--edition", "2024", "--crate-type", "bin", "-D", "warnings"])
            .args([
                "-C",
                "panic=abort",
                "-C",
                "opt-level=s",
                "-C",
                "strip=symbols",
            ])
            .args([
                "-C",
                "relocation-model=static",
                "-C",
                "target-feature=+crt-static",
            ])
            .args(["-C", "link-arg=-nostartfiles", "-C", "link-arg=-nostdlib"])
            .args([
                "-C",
                "link-arg=-static",
                "-C",
                "link-arg=-Wl,--build-id=none",
            ])
            .args([
                "-C",
                "link-arg=-Wl,-n",
                "-C",
                "link-arg=-Wl,--no-eh-frame-hdr",
            ])
            .arg("-o")
            .args([&binary, &source]),
    )?;
    Ok(single_binary(
        containerd::PAUSE_IMAGE,
        "pause",
        fs::read(binary)?,
    ))
}

fn echo() -> Result<Image> {
    let mut image = single_binary(
        "windlass.dev/echo:dev",
        "echo",
        static_binary("windlass-echo")?,
    );
    image.ports = ["8080/tcp", "9000/tcp", "9000/udp"]
        .map(str::to_owned)
        .into();
    Ok(image)
}

fn busybox() -> Result<Image> {
    let program = setup::static_busybox().context(
        "there is no static busybox: `cargo xtask setup` installs Debian's busybox-static",
    )?;
    let applets = process::output(Command::new(&program).arg("--list"))?;
    let mut files: Vec<File> = [
        ("bin", 0o755),
        ("etc", 0o755),
        ("root", 0o700),
        ("tmp", 0o1777),
    ]
    .map(|(path, mode)| File::Folder {
        path: path.into(),
        mode,
    })
    .into();
    files.push(regular("bin/busybox", 0o755, fs::read(&program)?));
    files.extend(
        applets
            .lines()
            .filter(|&name| name != "busybox")
            .map(|name| File::Link {
                path: format!("bin/{name}"),
                target: "busybox".into(),
            }),
    );
    let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    files.push(regular("etc/passwd", 0o644, users.into()));
    files.push(regular(
        "etc/group",
        0o644,
        "root:x:0:\nnogroup:x:65534:\n".into(),
    ));
    Ok(Image {
        reference: "windlass.dev/busybox:dev".into(),
        entrypoint: vec![],
        command: vec!["sh".into()],
        environment: vec!["PATH=/bin".into()],
        ports: vec![],
        labels: vec![],
        files,
    })
}

fn control_plane() -> Result<Image> {
    let mut image = product(
        "windlass.dev/control-plane:dev",
        "windlass-control-plane",
        &["windlass-control-plane"],
        "The Windlass control plane: API server, controllers and scheduler",
    )?;
    image.ports = vec!["6443/tcp".to_owned()];
    Ok(image)
}

fn node_agent() -> Result<Image> {
    product(
        "windlass.dev/node-agent:dev",
        "windlass-node-agent",
        // The programs for the kernel are in the binary too, as a file that cargo does not know of.
        &["windlass-node-agent", "windlass-ebpf-programs"],
        "The Windlass node agent: Services, pod interfaces and cluster DNS in eBPF",
    )
}

/// One of the two binaries that users run: with what they may need to know of its parts.
fn product(
    reference: &str,
    name: &'static str,
    packages: &[&str],
    description: &str,
) -> Result<Image> {
    let closure = dependencies::closure(packages)?;
    let sbom = serde_json::to_vec_pretty(&sbom::document(name, &closure, name))?;
    // Beside the archive as well: who signs or scans images wants it as a file.
    fs::create_dir_all(layout::images())?;
    fs::write(layout::images().join(format!("{name}.spdx.json")), &sbom)?;

    let mut image = single_binary(reference, name, static_binary(name)?);
    image.labels = vec![
        ("org.opencontainers.image.title", name.to_owned()),
        (
            "org.opencontainers.image.description",
            description.to_owned(),
        ),
        (
            "org.opencontainers.image.version",
            env!("CARGO_PKG_VERSION").to_owned(),
        ),
        ("org.opencontainers.image.licenses", "Apache-2.0".to_owned()),
        (
            "org.opencontainers.image.source",
            env!("CARGO_PKG_REPOSITORY").to_owned(),
        ),
    ];
    let folders = ["usr", "usr/share", "usr/share/licenses", "usr/share/sbom"];
    image.files.extend(folders.map(|path| File::Folder {
        path: path.to_owned(),
        mode: 0o755,
    }));
    let notices = notices::collect(&closure)?;
    image.files.extend(
        notices
            .into_iter()
            .map(|(file, content)| regular(&format!("usr/share/licenses/{file}"), 0o644, content)),
    );
    let path = format!("usr/share/sbom/{name}.spdx.json");
    image.files.push(regular(&path, 0o644, sbom));
    Ok(image)
}

fn single_binary(reference: &str, name: &str, content: Vec<u8>) -> Image {
    Image {
        reference: reference.into(),
        entrypoint: vec![format!("/{name}")],
        command: vec![],
        environment: vec!["PATH=/".into()],
        ports: vec![],
        labels: vec![],
        files: vec![
            // Where programs expect to be allowed to write.
            File::Folder {
                path: "tmp".into(),
                mode: 0o1777,
            },
            regular(name, 0o755, content),
        ],
    }
}

fn regular(path: &str, mode: u32, content: Vec<u8>) -> File {
    File::Regular {
        path: path.into(),
        mode,
        content,
    }
}

/// Builds the package's binary of the same name statically, and strips what only a debugger needs.
fn static_binary(package: &str) -> Result<Vec<u8>> {
    let mut build = cargo::workspace("build");
    build.args(["--quiet", "--bin", package]);
    // Not in the place of the plain binary: with settings of its own it is another one to cargo, and both stay fresh.
    let profile = cargo::profile();
    let stripped = format!(r#"profile.{profile}.package.{package}.strip="symbols""#);
    build.args(["--config", &stripped]);
    build.env(
        "RUSTC_WRAPPER",
        layout::repository().join("xtask/static-rustc"),
    );
    build.env("WINDLASS_STATIC", package.replace('-', "_"));
    process::run(&mut build)?;
    // The copy of the next plain build takes this name again, so it is read at once.
    let content = fs::read(cargo::binary(package))?;
    let copy = layout::images().join(package);
    fs::create_dir_all(layout::images())?;
    fs::write(&copy, &content)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    ensure_static(&copy)?;
    Ok(content)
}

fn ensure_static(binary: &Path) -> Result<()> {
    if !setup::is_static_elf(&fs::read(binary)?) {
        bail!(
            "{} is linked dynamically: it would not start in an empty image",
            binary.display()
        );
    }
    Ok(())
}
