//! `cargo xtask status`: says what runs.

use std::fs;
use std::io::{Write as _, stdout};
use std::process::Command;

use anyhow::Result;

use crate::{layout, process, supervise};

pub fn run() -> Result<()> {
    let mut out = stdout();
    let Some((pid, repository)) = supervise::running() else {
        writeln!(out, "no cluster runs: `cargo xtask up` starts one")?;
        return Ok(());
    };
    writeln!(out, "{:<14} pid {pid:<8} of {repository}", "supervisor")?;
    for service in supervise::services() {
        match pid_of(&service) {
            Some(pid) => writeln!(
                out,
                "{service:<14} pid {pid:<8} {:>6.1} MB resident",
                resident_megabytes(pid).unwrap_or_default()
            )?,
            None => writeln!(
                out,
                "{service:<14} not running; see {}",
                layout::log(&service).display()
            )?,
        }
    }
    if !layout::kubeconfig().exists() {
        writeln!(
            out,
            "no kubeconfig yet: the control plane has not started so far"
        )?;
        return Ok(());
    }
    for arguments in [&["get", "nodes", "-o", "wide"][..], &["get", "pods", "-A"]] {
        let mut kubectl = Command::new("kubectl");
        let said = process::output(
            kubectl
                .arg("--kubeconfig")
                .arg(layout::kubeconfig())
                .args(arguments),
        )?;
        write!(out, "\n{said}")?;
    }
    Ok(())
}

pub fn pid_of(service: &str) -> Option<u32> {
    fs::read_to_string(layout::pid_file(service))
        .ok()?
        .trim()
        .parse()
        .ok()
}

pub fn resident_megabytes(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()?;
    Some(kilobytes / 1024.0)
}
