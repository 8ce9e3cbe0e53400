//! iptables mode: two chains to find a Service's port by comparing with one after another, a chain for each
//! port, a chain for each endpoint; loaded by one `iptables-restore --noflush` (KEP-3453: a later change
//! writes the list of Services again and only the chains that changed).

use std::fmt::Write as _;

use super::hash;
use crate::service::table::{CLUSTER_CIDR, PORT, Service, Table};

/// The whole of it, for an empty network namespace.
pub fn full(table: &Table) -> String {
    text(table, &|_| true, true)
}

/// More endpoints than this are a large cluster: rules of endpoints go without comments, and chains that nobody uses
/// any more are not looked for with every change.
const LARGE: usize = 1_000;

fn is_large(table: &Table) -> bool {
    let endpoints = table.services.iter().map(|service| service.backends.len());
    endpoints.sum::<usize>() > LARGE
}

/// After a change of one Service's endpoints. `before` is the Service as it was: chains of endpoints that are
/// gone are deleted, but in a large cluster.
pub fn change(table: &Table, before: &Service) -> String {
    let name = &before.name;
    let mut text = text(table, &|service| service.name == *name, false);
    if is_large(table) {
        return text;
    }
    let now = &table.asked().backends;
    let gone = before
        .backends
        .iter()
        .filter(|backend| !now.contains(backend));
    let gone: Vec<String> = gone
        .map(|backend| endpoint_chain(before, &backend.to_string()))
        .collect();
    for chain in &gone {
        text = text.replacen(
            "-A KUBE-SERVICES",
            &format!(":{chain} - [0:0]\n-A KUBE-SERVICES"),
            1,
        );
    }
    let deletions: String = gone.iter().map(|chain| format!("-X {chain}\n")).collect();
    let at = text.rfind("COMMIT").expect("every table ends with it");
    text.insert_str(at, &deletions);
    text
}

fn text(table: &Table, written: &dyn Fn(&Service) -> bool, jumps: bool) -> String {
    let (mut chains, mut list, mut rules) = (String::new(), String::new(), String::new());
    let large = is_large(table);
    let comment = |text: &str| match large {
        true => String::new(),
        false => format!(" -m comment --comment {text}"),
    };
    for service in &table.services {
        let (name, address) = (service.port_name(), service.address);
        let chain = format!("KUBE-SVC-{}", hash(&format!("{name}tcp"), 16));
        let _ = writeln!(
            list,
            "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" -m tcp -p tcp -d {address} --dport {PORT} -j {chain}"
        );
        if !written(service) {
            continue;
        }
        let _ = writeln!(chains, ":{chain} - [0:0]");
        let _ = writeln!(
            rules,
            "-A {chain} -m comment --comment \"{name} cluster IP\" -m tcp -p tcp -d {address} --dport {PORT} ! -s {CLUSTER_CIDR} -j KUBE-MARK-MASQ"
        );
        let count = service.backends.len();
        for (index, backend) in service.backends.iter().enumerate() {
            let endpoint = endpoint_chain(service, &backend.to_string());
            let chance = match count - index {
                1 => String::new(),
                left => format!(
                    " -m statistic --mode random --probability {:.10}",
                    1.0 / left as f64
                ),
            };
            let _ = writeln!(chains, ":{endpoint} - [0:0]");
            let _ = writeln!(
                rules,
                "-A {chain}{}{chance} -j {endpoint}",
                comment(&format!("\"{name} -> {backend}\""))
            );
            let _ = writeln!(
                rules,
                "-A {endpoint}{} -s {} -j KUBE-MARK-MASQ",
                comment(&name),
                backend.ip()
            );
            let _ = writeln!(
                rules,
                "-A {endpoint}{} -m tcp -p tcp -j DNAT --to-destination {backend}",
                comment(&name)
            );
        }
    }
    let (filter_jumps, nat_jumps) = if jumps {
        (FILTER_JUMPS, NAT_JUMPS)
    } else {
        ("", "")
    };
    format!(
        "*filter\n\
         :KUBE-NODEPORTS - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n\
         :KUBE-FIREWALL - [0:0]\n:KUBE-FORWARD - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n\
         {filter_jumps}\
         -A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -d 127.0.0.0/8 ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
         COMMIT\n\
         *nat\n\
         :KUBE-NODEPORTS - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
         {chains}\
         {nat_jumps}\
         {list}\
         -A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
         {rules}\
         COMMIT\n"
    )
}

/// kube-proxy adds these one by one when it starts; they are part of what a packet meets.
const FILTER_JUMPS: &str = "\
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
";

const NAT_JUMPS: &str = "\
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
";

fn endpoint_chain(service: &Service, backend: &str) -> String {
    format!(
        "KUBE-SEP-{}",
        hash(&format!("{}tcp{backend}", service.port_name()), 16)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str, what: &str) -> usize {
        text.lines().filter(|line| line.contains(what)).count()
    }

    #[test]
    fn every_service_has_a_rule_in_the_list_and_every_endpoint_its_chain() {
        let text = full(&Table::new(10, 3));
        assert_eq!(count(&text, "-A KUBE-SERVICES "), 11);
        assert_eq!(count(&text, ":KUBE-SVC-"), 10);
        // Nine Services of three, and the asked one of two.
        assert_eq!(count(&text, ":KUBE-SEP-"), 29);
        assert_eq!(count(&text, "-j DNAT"), 29);
        assert_eq!(count(&text, "--probability 0.3333333333"), 9);
    }

    #[test]
    fn a_change_writes_the_list_and_only_the_changed_chains() {
        let table = Table::new(10, 2);
        let text = change(&table.with_backends(1), table.asked());
        assert_eq!(count(&text, "-A KUBE-SERVICES "), 11);
        assert_eq!(count(&text, ":KUBE-SVC-"), 1);
        // The one that stays, and the one that is emptied and deleted.
        assert_eq!(count(&text, ":KUBE-SEP-"), 2);
        assert_eq!(count(&text, "-X KUBE-SEP-"), 1);
        assert_eq!(count(&text, "-A PREROUTING"), 0);
    }

    #[test]
    fn in_a_large_cluster_endpoints_have_no_comments_and_nothing_is_deleted() {
        let table = Table::new(600, 2);
        let text = full(&table);
        assert_eq!(count(&text, "cluster IP"), 1_200);
        assert_eq!(count(&text, " -> "), 0);
        assert_eq!(count(&text, "-j DNAT"), 1_200);
        let text = change(&table.with_backends(1), table.asked());
        assert_eq!((count(&text, ":KUBE-SEP-"), count(&text, "-X ")), (1, 0));
    }
}
