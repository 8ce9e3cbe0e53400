//! Removing what a kube-proxy left on the node: its iptables chains, nftables tables and the
//! interface of its IPVS mode.
//!
//! By the node's own tools, since only they know which of the kernel's two iptables the rules
//! are in, and only in one transaction for each table, in which nobody else's rule is touched.
//! The chains of the kubelet (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`) stay.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

/// Chains by their whole name.
const CHAINS: [&str; 14] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-PROXY-IPVS",
];
/// Chains of a Service or an endpoint, by what comes before the hash.
const FAMILIES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-SEP-",
    "KUBE-FW-",
    "KUBE-EXT-",
    "KUBE-XLB-",
];
const IPVS_INTERFACE: &str = "kube-ipvs0";

/// Removes everything of kube-proxy from the node whose root is mounted at `host_root`. From
/// here on this process sees only that root.
pub(crate) fn clean(host_root: &Path) -> anyhow::Result<()> {
    if host_root != Path::new("/") {
        nix::unistd::chroot(host_root)
            .and_then(|()| nix::unistd::chdir("/"))
            .with_context(|| format!("enter the node's root {}", host_root.display()))?;
    }
    let mut problems = Vec::new();
    for family in ["iptables", "ip6tables"] {
        for backend in ["-legacy", "-nft"] {
            note(&mut problems, clean_iptables(&format!("{family}{backend}")));
        }
        if !is_there(&format!("{family}-nft-save")) && !is_there(&format!("{family}-legacy-save")) {
            note(&mut problems, clean_iptables(family));
        }
    }
    note(&mut problems, clean_nftables());
    note(&mut problems, clean_ipvs());
    if !problems.is_empty() {
        bail!("not removed: {}", problems.join("; "));
    }
    Ok(())
}

fn note(problems: &mut Vec<String>, result: anyhow::Result<()>) {
    if let Err(error) = result {
        problems.push(format!("{error:#}"));
    }
}

fn clean_iptables(tool: &str) -> anyhow::Result<()> {
    let save = format!("{tool}-save");
    if !is_there(&save) {
        return Ok(());
    }
    let rules = output(Command::new(&save))?;
    let Some(input) = removal(&rules) else {
        return Ok(());
    };
    let mut restore = Command::new(format!("{tool}-restore"));
    // Nothing but what the input says; wait for whoever else writes.
    restore.args(["--noflush", "-w", "5"]);
    feed(restore, &input)?;
    let chains = input.lines().filter(|line| line.starts_with("-X ")).count();
    tracing::info!(tool, chains, "rules of kube-proxy removed");
    Ok(())
}

fn clean_nftables() -> anyhow::Result<()> {
    if !is_there("nft") {
        return Ok(());
    }
    let mut list = Command::new("nft");
    list.args(["list", "tables"]);
    let tables = output(list)?;
    for family in ["ip", "ip6"] {
        if !tables
            .lines()
            .any(|line| line.trim() == format!("table {family} kube-proxy"))
        {
            continue;
        }
        let mut delete = Command::new("nft");
        delete.args(["delete", "table", family, "kube-proxy"]);
        output(delete)?;
        tracing::info!(family, "nftables table of kube-proxy removed");
    }
    Ok(())
}

/// Without the interface that holds the Services' addresses, no packet for one of them reaches
/// IPVS. Its virtual servers can be named only by `ipvsadm`, which few nodes have.
fn clean_ipvs() -> anyhow::Result<()> {
    if !Path::new("/sys/class/net").join(IPVS_INTERFACE).exists() {
        return Ok(());
    }
    if is_there("ipvsadm") {
        let mut clear = Command::new("ipvsadm");
        clear.arg("--clear");
        output(clear)?;
    } else {
        tracing::warn!(
            "no ipvsadm on this node: virtual servers for NodePorts stay until it restarts"
        );
    }
    let mut delete = Command::new("ip");
    delete.args(["link", "delete", IPVS_INTERFACE]);
    output(delete)?;
    tracing::info!("interface of kube-proxy's IPVS mode removed");
    Ok(())
}

/// What `iptables-restore --noflush` must read to remove kube-proxy's part of what
/// `iptables-save` said; nothing when there is none.
fn removal(saved: &str) -> Option<String> {
    let mut input = String::new();
    let mut table = Vec::new();
    for line in saved.lines() {
        if line.starts_with('*') {
            table.clear();
        }
        table.push(line);
        if line == "COMMIT" {
            remove_from_table(&table, &mut input);
        }
    }
    (!input.is_empty()).then_some(input)
}

fn remove_from_table(lines: &[&str], input: &mut String) {
    let Some(name) = lines.iter().find(|line| line.starts_with('*')) else {
        return;
    };
    let chains: BTreeSet<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix(':')?.split(' ').next())
        .filter(|chain| is_kube_proxys(chain))
        .collect();
    if chains.is_empty() {
        return;
    }
    let _ = writeln!(input, "{name}");
    // Naming a chain empties it, so that none refers to another when they are removed.
    for chain in &chains {
        let _ = writeln!(input, ":{chain} - [0:0]");
    }
    for line in lines {
        let Some(rule) = line.strip_prefix("-A ") else {
            continue;
        };
        let bare = without_quoted(rule);
        let mut words = bare.split(' ');
        let inside = words.next().is_some_and(|chain| chains.contains(chain));
        let jumps = words
            .skip_while(|word| !matches!(*word, "-j" | "-g"))
            .nth(1)
            .is_some_and(|target| chains.contains(target));
        if !inside && jumps {
            let _ = writeln!(input, "-D {rule}");
        }
    }
    for chain in &chains {
        let _ = writeln!(input, "-X {chain}");
    }
    let _ = writeln!(input, "COMMIT");
}

/// A comment may say anything, such as what was there before.
fn without_quoted(rule: &str) -> String {
    let mut is_quoted = false;
    let mut escapes = false;
    let bare = rule.chars().filter(|letter| {
        let is_end = *letter == '"' && !escapes;
        is_quoted ^= is_end;
        escapes = *letter == '\\' && !escapes;
        !is_quoted && !is_end
    });
    bare.collect()
}

fn is_kube_proxys(chain: &str) -> bool {
    CHAINS.contains(&chain) || FAMILIES.iter().any(|family| chain.starts_with(family))
}

/// Looked for where the shell of a node would look, since a scratch image sets no such path.
fn is_there(tool: &str) -> bool {
    std::env::split_paths(SEARCH).any(|folder| folder.join(tool).exists())
}

const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn output(mut command: Command) -> anyhow::Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .env("PATH", SEARCH)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {shown}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} failed: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn feed(mut command: Command, input: &str) -> anyhow::Result<()> {
    let shown = format!("{command:?}");
    let mut child = command
        .env("PATH", SEARCH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .with_context(|| format!("write to {shown}"))?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} failed: {}", said.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save
*filter
:INPUT ACCEPT [10:1]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
-A PREROUTING -j MARK --set-xmark 0x1
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
:MINE - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j MINE
-A MINE -m comment --comment "not -j KUBE-SERVICES-OF-MINE" -j RETURN
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j KUBE-SVC-NPX46M4PTMTKRN6Y
COMMIT
"#;

    #[test]
    fn only_what_is_kube_proxys_goes() {
        let expected = r#"*filter
:KUBE-FORWARD - [0:0]
-D FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-X KUBE-FORWARD
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-NPX46M4PTMTKRN6Y - [0:0]
-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-X KUBE-SERVICES
-X KUBE-SVC-NPX46M4PTMTKRN6Y
COMMIT
"#;
        assert_eq!(removal(SAVED).as_deref(), Some(expected));
    }

    #[test]
    fn a_node_without_kube_proxy_is_left_alone() {
        let text = "*nat\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING -j MINE\nCOMMIT\n";
        assert_eq!(removal(text), None);
        assert_eq!(removal(""), None);
    }
}
