//! Policies, ingresses and address bookkeeping: `networking.k8s.io/v1`.

pub mod address;
pub mod ingress;
pub mod ingress_class;
pub mod network_policy;

use crate::resource::{NameRule, Resource};

fn networking(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("networking.k8s.io", "v1", kind, plural)
}

pub fn resources() -> Vec<Resource> {
    vec![
        networking("IngressClass", "ingressclasses")
            .cluster()
            .columns("Controller, Parameters, Age")
            .rules(ingress_class::IngressClass),
        networking("Ingress", "ingresses")
            .short("ing")
            .prefix("/registry/ingress")
            .status()
            .columns("Class, Hosts, Address, Ports, Age")
            .rules(ingress::Ingress),
        networking("IPAddress", "ipaddresses")
            .cluster()
            .short("ip")
            .names(NameRule::PathSegment)
            .columns("ParentRef")
            .rules(address::IpAddress),
        networking("NetworkPolicy", "networkpolicies")
            .short("netpol")
            .columns("Pod-Selector, Age")
            .rules(network_policy::NetworkPolicy),
        networking("ServiceCIDR", "servicecidrs")
            .cluster()
            .status()
            .columns("CIDRs, Age")
            .rules(address::ServiceCidr),
    ]
}
