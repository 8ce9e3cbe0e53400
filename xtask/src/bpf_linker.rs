//! bpf-linker turns the LLVM bitcode that rustc emits into an eBPF object, so it must be built against the
//! same major version of LLVM as the compiler.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{apt, process};

const VERSION: &str = "0.13.0";

pub fn present() -> bool {
    process::find_program("bpf-linker").is_some()
        || in_cargo_home().is_some_and(|file| file.is_file())
}

pub fn install() -> Result<()> {
    let llvm = llvm_version(&process::output(Command::new("rustc").arg("-vV"))?)?;
    let prefix = format!("/usr/lib/llvm-{}", llvm.major);
    if !PathBuf::from(&prefix).join("include/llvm").is_dir() {
        apt::install(&[
            &format!("llvm-{}-dev", llvm.major),
            &format!("libpolly-{}-dev", llvm.major),
            "libzstd-dev",
            "zlib1g-dev",
        ])?;
    }
    process::run(
        Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
            .args(["install", "bpf-linker", "--version", VERSION, "--locked"])
            // Its default feature is a newer LLVM than the compiler's.
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{}", llvm.major),
            ])
            .env("LLVM_PREFIX", &prefix)
            .env(
                format!("LLVM_SYS_{}{}_PREFIX", llvm.major, llvm.sys_minor),
                &prefix,
            )
            .env_remove("CARGO_TARGET_DIR"),
    )
    .with_context(|| {
        format!(
            "could not install bpf-linker {VERSION} with LLVM {}",
            llvm.major
        )
    })
}

#[derive(Debug, PartialEq)]
struct Llvm {
    major: u32,
    /// llvm-sys numbers its releases `<major><minor>`: LLVM 22.1 is `221`.
    sys_minor: u32,
}

fn llvm_version(verbose: &str) -> Result<Llvm> {
    let version = verbose
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .context("`rustc -vV` names no LLVM version")?;
    let mut parts = version.split('.').map(str::parse::<u32>);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok(Llvm {
            major,
            sys_minor: minor,
        }),
        _ => bail!("cannot read the LLVM version `{version}`"),
    }
}

fn in_cargo_home() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))?;
    Some(home.join("bin/bpf-linker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_the_compilers() {
        let verbose = "rustc 1.95.0\nrelease: 1.95.0\nLLVM version: 22.1.2\n";
        assert_eq!(
            llvm_version(verbose).unwrap(),
            Llvm {
                major: 22,
                sys_minor: 1
            }
        );
        assert!(llvm_version("rustc 1.95.0").is_err());
    }
}
