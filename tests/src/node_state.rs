//! What a network agent may leave on a node beside files of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A line for each thing.
#[derive(Clone, Debug)]
pub struct NodeState(BTreeSet<String>);

impl NodeState {
    /// As it is now, in this network namespace.
    pub fn now() -> Result<Self> {
        let mut state = BTreeSet::new();
        for (what, arguments) in [
            ("route", "-4 route show table all"),
            ("route", "-6 route show table all"),
            ("rule", "-4 rule show"),
            ("rule", "-6 rule show"),
            ("namespace", "netns list"),
        ] {
            let text = said("ip", arguments)?;
            state.extend(text.lines().map(|line| format!("{what} {}", line.trim())));
        }
        // By the class `clsact` the agent's programs hang at interfaces.
        let text = said("tc", "qdisc show")?;
        state.extend(text.lines().map(|line| format!("qdisc {}", line.trim())));
        let links = fs::read_dir("/sys/class/net")?.flatten();
        for link in links.map(|it| it.file_name().to_string_lossy().into_owned()) {
            for setting in ["rp_filter", "accept_local", "proxy_arp", "route_localnet"] {
                let file = format!("/proc/sys/net/ipv4/conf/{link}/{setting}");
                let value = fs::read_to_string(&file).unwrap_or_default();
                state.insert(format!("setting {link} {setting} {}", value.trim()));
            }
            state.insert(format!("interface {link}"));
        }
        for tables in ["iptables-save", "ip6tables-save"] {
            // Who has no such tool has no such rules.
            let rules = said(tables, "").unwrap_or_default();
            let rules = rules.lines().filter(|line| line.starts_with('-'));
            state.extend(rules.map(|line| format!("{tables} {line}")));
        }
        pins(Path::new("/sys/fs/bpf"), &mut state);
        Ok(Self(state))
    }

    /// What is there now and was not.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

fn pins(folder: &Path, state: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        state.insert(format!("pin {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            pins(&entry.path(), state);
        }
    }
}

fn said(program: &str, arguments: &str) -> Result<String> {
    let output = Command::new(program)
        .args(arguments.split_whitespace())
        .output()
        .with_context(|| format!("starting {program}"))?;
    let fault = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments}: {fault}");
    Ok(String::from_utf8(output.stdout)?)
}
