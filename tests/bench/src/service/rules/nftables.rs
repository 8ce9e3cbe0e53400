//! nftables mode: a verdict map finds a Service's port, a chain for each port and one for each endpoint; all of
//! it in one transaction of `nft -f`, and a change of one Service's endpoints in another, of that Service alone.

use std::fmt::Write as _;

use super::hash;
use crate::service::table::{CLUSTER_CIDR, PORT, SERVICE_CIDR, Service, Table};

pub fn full(table: &Table) -> String {
    let mut text = BASE.replace("SERVICE_CIDR", SERVICE_CIDR);
    for service in &table.services {
        write_service(&mut text, service, true);
    }
    text
}

/// `before` is the changed Service as it was: its elements of the sets and maps stay.
pub fn change(table: &Table, before: &Service) -> String {
    let mut text = String::new();
    write_service(&mut text, table.asked(), false);
    let now = &table.asked().backends;
    for backend in before
        .backends
        .iter()
        .filter(|backend| !now.contains(backend))
    {
        let chain = endpoint_chain(before, &backend.to_string());
        let _ = writeln!(text, "flush chain ip kube-proxy {chain}");
        let _ = writeln!(text, "delete chain ip kube-proxy {chain}");
    }
    text
}

fn write_service(text: &mut String, service: &Service, is_new: bool) {
    let chain = format!("service-{}", chain_name(service, ""));
    let address = service.address;
    let _ = writeln!(text, "add chain ip kube-proxy {chain}");
    let _ = writeln!(text, "flush chain ip kube-proxy {chain}");
    if is_new {
        let _ = writeln!(
            text,
            "add element ip kube-proxy cluster-ips {{ {address} }}"
        );
        let _ = writeln!(
            text,
            "add element ip kube-proxy service-ips {{ {address} . tcp . {PORT} : goto {chain} }}"
        );
    }
    let _ = writeln!(
        text,
        "add rule ip kube-proxy {chain} ip daddr {address} tcp dport {PORT} ip saddr != {CLUSTER_CIDR} jump mark-for-masquerade"
    );
    let mut choices = Vec::new();
    for (index, backend) in service.backends.iter().enumerate() {
        let endpoint = endpoint_chain(service, &backend.to_string());
        let _ = writeln!(text, "add chain ip kube-proxy {endpoint}");
        let _ = writeln!(text, "flush chain ip kube-proxy {endpoint}");
        let _ = writeln!(
            text,
            "add rule ip kube-proxy {endpoint} ip saddr {} jump mark-for-masquerade",
            backend.ip()
        );
        let _ = writeln!(
            text,
            "add rule ip kube-proxy {endpoint} meta l4proto tcp dnat to {backend}"
        );
        choices.push(format!("{index} : goto {endpoint}"));
    }
    let _ = writeln!(
        text,
        "add rule ip kube-proxy {chain} numgen random mod {} vmap {{ {} }}",
        choices.len(),
        choices.join(" , ")
    );
}

fn endpoint_chain(service: &Service, backend: &str) -> String {
    let suffix = format!("__{}", backend.replace(':', "/"));
    format!("endpoint-{}", chain_name(service, &suffix))
}

fn chain_name(service: &Service, suffix: &str) -> String {
    let name = format!("bench/{}/tcp/http{suffix}", service.name);
    format!("{}-{name}", hash(&name, 8))
}

const BASE: &str = "\
add table ip kube-proxy { comment \"rules for kube-proxy\" ; }
add chain ip kube-proxy filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }
add chain ip kube-proxy filter-output-pre-dnat { type filter hook output priority -110 ; }
add chain ip kube-proxy filter-input { type filter hook input priority 0 ; }
add chain ip kube-proxy filter-forward { type filter hook forward priority 0 ; }
add chain ip kube-proxy filter-output { type filter hook output priority 0 ; }
add chain ip kube-proxy nat-prerouting { type nat hook prerouting priority -100 ; }
add chain ip kube-proxy nat-output { type nat hook output priority -100 ; }
add chain ip kube-proxy nat-postrouting { type nat hook postrouting priority 100 ; }
add set ip kube-proxy cluster-ips { type ipv4_addr ; comment \"Active ClusterIPs\" ; }
add map ip kube-proxy no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; comment \"vmap to drop or reject packets to services with no endpoints\" ; }
add map ip kube-proxy no-endpoint-nodeports { type inet_proto . inet_service : verdict ; comment \"vmap to drop or reject packets to service nodeports with no endpoints\" ; }
add map ip kube-proxy firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment \"destinations that are subject to LoadBalancerSourceRanges\" ; }
add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; comment \"ClusterIP, ExternalIP and LoadBalancer IP traffic\" ; }
add map ip kube-proxy service-nodeports { type inet_proto . inet_service : verdict ; comment \"NodePort traffic\" ; }
add chain ip kube-proxy nodeport-endpoints-check
add chain ip kube-proxy service-endpoints-check
add chain ip kube-proxy firewall-check
add chain ip kube-proxy services
add chain ip kube-proxy masquerading
add chain ip kube-proxy mark-for-masquerade
add chain ip kube-proxy cluster-ips-check
add chain ip kube-proxy reject-chain { comment \"helper for @no-endpoint-services / @no-endpoint-nodeports\" ; }
add rule ip kube-proxy reject-chain reject
add rule ip kube-proxy filter-input ct state new jump nodeport-endpoints-check
add rule ip kube-proxy filter-input ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump service-endpoints-check
add rule ip kube-proxy filter-forward ct state new jump cluster-ips-check
add rule ip kube-proxy filter-output ct state new jump service-endpoints-check
add rule ip kube-proxy filter-output ct state new jump cluster-ips-check
add rule ip kube-proxy filter-prerouting-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy filter-output-pre-dnat ct state new jump firewall-check
add rule ip kube-proxy nat-output jump services
add rule ip kube-proxy nat-prerouting jump services
add rule ip kube-proxy nat-postrouting jump masquerading
add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000
add rule ip kube-proxy masquerading mark and 0x4000 == 0 return
add rule ip kube-proxy masquerading mark set mark xor 0x4000
add rule ip kube-proxy masquerading masquerade fully-random
add rule ip kube-proxy cluster-ips-check ip daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"
add rule ip kube-proxy cluster-ips-check ip daddr { SERVICE_CIDR } drop comment \"Drop traffic to unallocated ClusterIPs\"
add rule ip kube-proxy nodeport-endpoints-check ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @no-endpoint-nodeports
add rule ip kube-proxy service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services
add rule ip kube-proxy firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips
add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips
add rule ip kube-proxy services fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_touches_one_service() {
        let table = Table::new(10, 2);
        let text = change(&table.with_backends(1), table.asked());
        assert_eq!(text.matches("add element").count(), 0);
        assert_eq!(text.matches("add chain ip kube-proxy endpoint-").count(), 1);
        assert_eq!(text.matches("delete chain").count(), 1);
        assert!(text.contains("numgen random mod 1 vmap"));
        assert_eq!(full(&table).matches(" dnat to ").count(), 20);
    }
}
