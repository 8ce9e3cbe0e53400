//! Policies, ingresses and address bookkeeping: `networking.k8s.io/v1`.

use crate::resource::{NameRule, Resource};

fn networking(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("networking.k8s.io", "v1", kind, plural)
}

pub fn resources() -> Vec<Resource> {
    vec![
        networking("IngressClass", "ingressclasses")
            .cluster()
            .columns("Controller, Parameters, Age"),
        networking("Ingress", "ingresses")
            .short("ing")
            .prefix("/registry/ingress")
            .status()
            .columns("Class, Hosts, Address, Ports, Age"),
        networking("IPAddress", "ipaddresses")
            .cluster()
            .short("ip")
            .names(NameRule::PathSegment)
            .columns("ParentRef"),
        networking("NetworkPolicy", "networkpolicies")
            .short("netpol")
            .columns("Pod-Selector, Age"),
        networking("ServiceCIDR", "servicecidrs")
            .cluster()
            .status()
            .columns("CIDRs, Age"),
    ]
}
