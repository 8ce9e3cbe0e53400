//! What a network agent may leave on a node beside files of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Of an interface, by family: what decides who sends through it, and as whom.
const SETTINGS: [(&str, &[&str]); 2] = [
    (
        "ipv4",
        &[
            "forwarding",
            "rp_filter",
            "accept_local",
            "proxy_arp",
            "route_localnet",
        ],
    ),
    (
        "ipv6",
        &[
            "forwarding",
            "force_forwarding",
            "accept_ra",
            "disable_ipv6",
            "proxy_ndp",
        ],
    ),
];

/// A line for each thing.
#[derive(Clone, Debug)]
pub struct NodeState(BTreeSet<String>);

impl NodeState {
    /// As it is now, in this network namespace and in these folders.
    pub fn now(folders: &[PathBuf]) -> Result<Self> {
        let mut state = BTreeSet::new();
        for (what, arguments) in [
            ("route", "-4 route show table all"),
            ("route", "-6 route show table all"),
            ("rule", "-4 rule show"),
            ("rule", "-6 rule show"),
            ("namespace", "netns list"),
        ] {
            let text = said("ip", arguments)?;
            state.extend(text.lines().map(|line| format!("{what} {}", lasting(line))));
        }
        // By the class `clsact` the agent's programs hang at interfaces.
        let text = said("tc", "qdisc show")?;
        state.extend(text.lines().map(|line| format!("qdisc {}", line.trim())));
        let links = fs::read_dir("/sys/class/net")?.flatten();
        for link in links.map(|it| it.file_name().to_string_lossy().into_owned()) {
            state.extend(settings(&link));
            state.insert(format!("interface {link}"));
        }
        state.extend(["all", "default"].into_iter().flat_map(settings));
        for tables in ["iptables-save", "ip6tables-save"] {
            // Who has no such tool has no such rules.
            let rules = said(tables, "").unwrap_or_default();
            let rules = rules.lines().filter(|line| line.starts_with('-'));
            state.extend(rules.map(|line| format!("{tables} {line}")));
        }
        files("pin", Path::new("/sys/fs/bpf"), &mut state);
        for folder in folders {
            files("file", folder, &mut state);
        }
        Ok(Self(state))
    }

    /// What is there now and was not.
    pub fn added_since(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }

    /// What is there now and was not, and what was there and is not.
    pub fn changed_since(&self, before: &Self) -> Vec<String> {
        let gone = before.0.difference(&self.0);
        let gone = gone.map(|it| format!("gone: {it}"));
        self.added_since(before).into_iter().chain(gone).collect()
    }
}

fn settings(interface: &str) -> Vec<String> {
    let of_family = |(family, names): (&str, &[&str])| {
        let values = names.iter().map(|name| {
            let file = format!("/proc/sys/net/{family}/conf/{interface}/{name}");
            let value = fs::read_to_string(&file).unwrap_or_default();
            format!("setting {family} {interface} {name} {}", value.trim())
        });
        values.collect::<Vec<_>>()
    };
    SETTINGS.into_iter().flat_map(of_family).collect()
}

/// Without what runs out by itself.
fn lasting(line: &str) -> String {
    let mut words = line.split_whitespace();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        if word == "expires" {
            words.next();
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}

fn files(kind: &str, folder: &Path, state: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        state.insert(format!("{kind} {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(kind, &entry.path(), state);
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
