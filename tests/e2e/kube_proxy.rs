//! What a kube-proxy left on a node goes, and nobody else's: real rules of each kind of iptables that the node has, and of
//! nftables, in a network namespace of the test.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use windlass_tests::unnamed_netns::NetNs;

/// As kube-proxy writes them, between rules of the kubelet's and of the node's owner.
const NAT: &str = r#"*nat
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SEP-DNA7NPDYVDPFFNOB - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
:OWNERS - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j OWNERS
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE
-A KUBE-SEP-DNA7NPDYVDPFFNOB -p tcp -m comment --comment "default/web:http" -m tcp -j DNAT --to-destination @POD@
-A KUBE-SERVICES -d @VIP@ -p tcp -m comment --comment "default/web:http cluster IP" -m tcp --dport 80 -j KUBE-SVC-TCOU7JCQXEZGVUNU
-A KUBE-SERVICES -m comment --comment "service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-SVC-TCOU7JCQXEZGVUNU ! -s @POD-NETWORK@ -d @VIP@ -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-TCOU7JCQXEZGVUNU -m comment --comment "default/web:http -> @POD@" -j KUBE-SEP-DNA7NPDYVDPFFNOB
-A OWNERS -d @VIP@ -j RETURN
COMMIT
"#;
const FILTER: &str = r#"*filter
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m comment --comment "the owner's, in place of -j KUBE-FORWARD" -j ACCEPT
-A KUBE-FIREWALL -m comment --comment "the kubelet's" -j RETURN
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
"#;
/// What no kube-proxy has made: chains and rules, in the order of a listing.
const KEPT: [&str; 7] = [
    "-A FORWARD",
    "-A INPUT",
    "-A KUBE-FIREWALL",
    "-A OWNERS",
    ":KUBE-FIREWALL",
    ":KUBE-KUBELET-CANARY",
    ":OWNERS",
];

const NFTABLES: &str = "table ip kube-proxy { chain services { ip daddr 10.96.0.7 drop; }; }\n\
    table ip owners { chain own { ip daddr 10.96.0.7 accept; }; }\n";

#[test]
fn rules_of_a_kube_proxy_go_and_all_others_stay() -> Result<()> {
    let mut tried = Vec::new();
    for (tool, is_v4) in [
        ("iptables-legacy", true),
        ("ip6tables-legacy", false),
        ("iptables-nft", true),
        ("ip6tables-nft", false),
    ] {
        let node = NetNs::new("node");
        let rules = [NAT, FILTER].concat();
        let rules = match is_v4 {
            true => rules
                .replace("@POD-NETWORK@", "10.244.0.0/16")
                .replace("@POD@", "10.244.0.7:8080")
                .replace("@VIP@", "10.96.0.7/32"),
            false => rules
                .replace("@POD-NETWORK@", "fd00:10:244::/56")
                .replace("@POD@", "[fd00:10:244::7]:8080")
                .replace("@VIP@", "fd00:10:96::7/128"),
        };
        // Neither every node nor every kernel has all of them.
        if let Err(error) = feed(&node, &format!("{tool}-restore"), &[], &rules) {
            println!("without {tool}: {error:#}");
            continue;
        }
        tried.push(tool);
        let before = said(&node, &format!("{tool}-save"), &[])?;
        clean(&node)?;
        let after = said(&node, &format!("{tool}-save"), &[])?;
        let lines = after.lines().filter(|line| {
            let is_builtin = line.starts_with(':') && !line.contains(" - ");
            (line.starts_with(':') || line.starts_with("-A")) && !is_builtin
        });
        let mut left: Vec<&str> = lines.collect();
        left.sort_unstable();
        // The jump to the owner's chain is among these, whatever its number.
        left.retain(|line| *line != "-A PREROUTING -j OWNERS");
        let is_kept = left.len() == KEPT.len()
            && left
                .iter()
                .zip(KEPT)
                .all(|(line, kept)| line.starts_with(kept));
        ensure!(is_kept, "{tool}: {left:#?}\nof\n{before}");
        ensure!(after.contains("-A PREROUTING -j OWNERS"), "{tool}: {after}");
        // There is nothing left to do, and that is fine.
        clean(&node)?;
        ensure!(rules_of(&said(&node, &format!("{tool}-save"), &[])?) == rules_of(&after));
    }
    ensure!(!tried.is_empty(), "no iptables works on this machine");

    let node = NetNs::new("node");
    match feed(&node, "nft", &["-f", "-"], NFTABLES) {
        Ok(()) => {
            clean(&node)?;
            let tables = said(&node, "nft", &["list", "tables"])?;
            ensure!(tables.trim() == "table ip owners", "{tables}");
        }
        Err(error) => println!("without nftables: {error:#}"),
    }
    Ok(())
}

fn rules_of(saved: &str) -> Vec<&str> {
    saved
        .lines()
        .filter(|line| line.starts_with("-A"))
        .collect()
}

fn clean(node: &NetNs) -> Result<()> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("the target folder")?;
    let agent: PathBuf = folder.join("windlass-node-agent");
    said(node, &agent.display().to_string(), &["clean-kube-proxy"]).map(drop)
}

fn said(node: &NetNs, program: &str, arguments: &[&str]) -> Result<String> {
    node.run(|| {
        let output = Command::new(program).args(arguments).output();
        let output = output.with_context(|| format!("starting {program}"))?;
        let fault = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program}: {fault}");
        Ok(String::from_utf8(output.stdout)?)
    })
}

fn feed(node: &NetNs, program: &str, arguments: &[&str], input: &str) -> Result<()> {
    node.run(|| {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        let mut stdin = child.stdin.take().context("an input")?;
        stdin.write_all(input.as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output()?;
        let fault = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{program}: {fault}");
        Ok(())
    })
}
