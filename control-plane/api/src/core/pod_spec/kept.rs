//! Faults that were let in before there was a rule against them. An object that has one may keep it through changes of
//! something else: else it could not even be deleted by who takes its finalizer off.

use serde_json::Value;
use windlass_machinery::validation::{Errors, Path};

use super::{Context, volume_source};
use super::{affinity, compute, security, spread};
use crate::tree::Tree;
use crate::validate::labels::selector;

/// Which rules a spec need not keep, since it did not before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    pub huge_page_multiples: bool,
    pub selector_values: bool,
    pub node_affinity_values: bool,
    pub spread_selectors: bool,
    pub spread_keys: bool,
    pub token_paths: bool,
    pub host_sysctls: bool,
    pub user_namespace_devices: bool,
}

impl Kept {
    /// What an existing spec may keep.
    pub fn of(old: &Value) -> Self {
        let terms = || affinity::pod_terms(old);
        let constraints = || old.list("topologySpreadConstraints").iter();
        Self {
            huge_page_multiples: has_fault(|path, errors| {
                for container in containers(old) {
                    compute::huge_page_multiples(container.at("resources"), path, errors);
                }
            }),
            selector_values: has_fault(|path, errors| {
                for term in terms() {
                    selector(term.at("labelSelector"), path, errors);
                    selector(term.at("namespaceSelector"), path, errors);
                }
            }),
            node_affinity_values: has_fault(|path, errors| {
                let node = old.at("affinity.nodeAffinity");
                if node.has(affinity::REQUIRED) {
                    affinity::node_selector(node.at(affinity::REQUIRED), path, errors);
                }
            }),
            spread_selectors: has_fault(|path, errors| {
                constraints().for_each(|c| selector(c.at("labelSelector"), path, errors));
            }),
            spread_keys: has_fault(|path, errors| {
                constraints().for_each(|c| spread::match_label_keys(c, path, errors));
            }),
            token_paths: has_fault(|path, errors| {
                let volumes = old.list("volumes").iter();
                for source in volumes.flat_map(|volume| volume.list("projected.sources")) {
                    let file = source.text("serviceAccountToken.path");
                    volume_source::file_path(file, path, errors);
                }
            }),
            host_sysctls: has_fault(|path, errors| {
                for sysctl in old.list("securityContext.sysctls") {
                    security::host_sysctl(sysctl.text("name"), old, path, errors);
                }
            }),
            user_namespace_devices: old.at("hostUsers") == false
                && containers(old).any(|c| !c.list("volumeDevices").is_empty()),
        }
    }
}

fn has_fault(check: impl FnOnce(&Path, &mut Errors)) -> bool {
    let mut errors = Errors::new();
    check(&Path::root(), &mut errors);
    !errors.is_empty()
}

/// All containers of a spec, of every kind.
pub fn containers(spec: &Value) -> impl Iterator<Item = &Value> {
    super::container::LISTS
        .iter()
        .flat_map(|list| spec.list(list))
}

impl Context<'_> {
    /// The same, for a spec that takes the place of another.
    #[must_use]
    pub fn replacing(mut self, old: Option<&Value>) -> Self {
        self.kept = old.map(Kept::of).unwrap_or_default();
        self
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_in_order_must_stay_so() {
        let good = json!({"containers": [{"resources": {"limits": {"hugepages-2Mi": "4Mi"}}}]});
        assert_eq!(Kept::of(&good), Kept::default());
        let odd = json!({
            "hostNetwork": true,
            "securityContext": {"sysctls": [{"name": "net.ipv4.ip_forward", "value": "1"}]},
            "containers": [{"resources": {"limits": {"hugepages-2Mi": "3Mi"}}}],
        });
        let expected = Kept {
            huge_page_multiples: true,
            host_sysctls: true,
            ..Kept::default()
        };
        assert_eq!(Kept::of(&odd), expected);
    }
}
