//! A StatefulSet's pods and claims have names of their own that survive them: pure.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{
        PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume,
    },
};
use kube::ResourceExt;

use crate::{history::REVISION_LABEL, pods, runtime::controller_ref};

const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

fn templates(set: &StatefulSet) -> impl Iterator<Item = &PersistentVolumeClaim> {
    let spec = set.spec.as_ref();
    spec.and_then(|spec| spec.volume_claim_templates.as_ref())
        .into_iter()
        .flatten()
}

pub(super) fn claim_name(
    template: &PersistentVolumeClaim,
    set: &StatefulSet,
    ordinal: i32,
) -> String {
    format!("{}-{}-{ordinal}", template.name_any(), set.name_any())
}

/// The claims of one pod.
pub(super) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selected: BTreeMap<String, String> = set
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.match_labels.clone())
        .unwrap_or_default();
    templates(set)
        .map(|template| {
            let mut claim = template.clone();
            claim.metadata.name = Some(claim_name(template, set, ordinal));
            claim.metadata.namespace = set.namespace();
            claim
                .metadata
                .labels
                .get_or_insert_default()
                .extend(selected.clone());
            claim.status = None;
            claim
        })
        .collect()
}

/// The pod of an ordinal as `template` wants it.
pub(super) fn pod(
    set: &StatefulSet,
    template: &PodTemplateSpec,
    ordinal: i32,
    revision: &str,
) -> Pod {
    let name = format!("{}-{ordinal}", set.name_any());
    let namespace = set.namespace().unwrap_or_default();
    let mut pod = pods::from_template(template, &namespace, String::new(), controller_ref(set));
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME_LABEL.to_owned(), name.clone());
    labels.insert(POD_INDEX_LABEL.to_owned(), ordinal.to_string());
    labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    let volumes = spec.volumes.get_or_insert_default();
    for template in templates(set) {
        let volume = template.name_any();
        volumes.retain(|existing| existing.name != volume);
        volumes.push(Volume {
            name: volume,
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim_name(template, set, ordinal),
                read_only: Some(false),
            }),
            ..Default::default()
        });
    }
    if volumes.is_empty() {
        spec.volumes = None;
    }
    pod
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_gets_its_name_host_claims_and_labels() {
        let set: StatefulSet = serde_json::from_value(json!({
            "metadata": {"name": "db", "namespace": "ns", "uid": "u"},
            "spec": {"serviceName": "dbs", "selector": {"matchLabels": {"app": "db"}},
                "template": {"metadata": {"labels": {"app": "db"}},
                    "spec": {"containers": [{"name": "c"}],
                        "volumes": [{"name": "data", "emptyDir": {}}]}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}]},
        }))
        .unwrap();
        let template = &set.spec.as_ref().unwrap().template;
        let pod = pod(&set, template, 2, "db-rev");
        assert_eq!(pod.name_any(), "db-2");
        assert_eq!(pod.labels()[POD_INDEX_LABEL], "2");
        let spec = pod.spec.unwrap();
        assert_eq!(
            (spec.hostname.as_deref(), spec.subdomain.as_deref()),
            (Some("db-2"), Some("dbs"))
        );
        let volumes = spec.volumes.unwrap();
        assert_eq!(
            volumes.len(),
            1,
            "a claim takes the place of a volume of its name"
        );
        assert_eq!(
            volumes[0]
                .persistent_volume_claim
                .as_ref()
                .unwrap()
                .claim_name,
            "data-db-2"
        );
        let claims = claims(&set, 2);
        assert_eq!(claims[0].name_any(), "data-db-2");
        assert_eq!(claims[0].labels()["app"], "db");
    }
}
