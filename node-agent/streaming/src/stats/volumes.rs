//! How full volumes are: in the summary of their pod, and as `kubelet_volume_stats_*` by their claim.

use serde_json::{Value, json};

use super::resource::{Text, escape};
use super::without_nulls;
use crate::lookup::{VolumeRoom, VolumeUsage};

type Column = (&'static str, &'static str, fn(&VolumeUsage) -> i64);

const COLUMNS: &[Column] = &[
    (
        "kubelet_volume_stats_available_bytes",
        "Number of available bytes in the volume",
        |one| one.bytes.available,
    ),
    (
        "kubelet_volume_stats_capacity_bytes",
        "Capacity in bytes of the volume",
        |one| one.bytes.total,
    ),
    (
        "kubelet_volume_stats_inodes",
        "Maximum number of inodes in the volume",
        |one| one.inodes.total,
    ),
    (
        "kubelet_volume_stats_inodes_free",
        "Number of free inodes in the volume",
        |one| one.inodes.available,
    ),
    (
        "kubelet_volume_stats_inodes_used",
        "Number of used inodes in the volume",
        |one| one.inodes.used,
    ),
    (
        "kubelet_volume_stats_used_bytes",
        "Number of used bytes in the volume",
        |one| one.bytes.used,
    ),
];

/// Prometheus text of the volumes that stand for claims; what several pods use is told once.
pub(super) fn render(volumes: &[VolumeUsage]) -> String {
    let mut claims: Vec<(String, &VolumeUsage)> = volumes
        .iter()
        .filter_map(|one| {
            let (namespace, claim) = (escape(&one.namespace), escape(one.claim.as_ref()?));
            let labels = format!("{{namespace=\"{namespace}\",persistentvolumeclaim=\"{claim}\"}}");
            Some((labels, one))
        })
        .collect();
    claims.sort_by(|a, b| a.0.cmp(&b.0));
    claims.dedup_by(|a, b| a.0 == b.0);
    let mut text = Text::default();
    if claims.is_empty() {
        return text.into_text();
    }
    for (name, help, value) in COLUMNS {
        text.head(name, "gauge", help);
        for (labels, one) in &claims {
            text.line(labels, value(one) as f64, None);
        }
    }
    text.into_text()
}

/// A pod's volumes in its summary; none if it has none of which anything is known.
pub(super) fn summarize(uid: &str, volumes: &[VolumeUsage], time: &str) -> Option<Vec<Value>> {
    let own = volumes.iter().filter(|one| one.uid == uid);
    let told: Vec<Value> = own
        .map(|one| {
            let VolumeRoom {
                total,
                available,
                used,
            } = one.bytes;
            let claim = one
                .claim
                .as_ref()
                .map(|claim| json!({"name": claim, "namespace": one.namespace}));
            without_nulls(json!({
                "time": time,
                "name": one.name,
                "pvcRef": claim,
                "availableBytes": available,
                "capacityBytes": total,
                "usedBytes": used,
                "inodes": one.inodes.total,
                "inodesFree": one.inodes.available,
                "inodesUsed": one.inodes.used,
            }))
        })
        .collect();
    (!told.is_empty()).then_some(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(pod: &str, claim: Option<&str>) -> VolumeUsage {
        VolumeUsage {
            namespace: "shop".into(),
            uid: format!("uid-{pod}"),
            name: "data".into(),
            claim: claim.map(str::to_owned),
            bytes: VolumeRoom {
                total: 100,
                available: 60,
                used: 40,
            },
            inodes: VolumeRoom::default(),
        }
    }

    #[test]
    fn a_claim_is_told_once_and_an_inline_volume_only_by_its_pod() {
        let volumes = [
            volume("a", Some("disk")),
            volume("b", Some("disk")),
            volume("c", None),
        ];
        let text = render(&volumes);
        let line = "kubelet_volume_stats_used_bytes{namespace=\"shop\",persistentvolumeclaim=\"disk\"} 40\n";
        assert_eq!(text.matches(line).count(), 1, "{text}");
        assert_eq!(
            text.lines().filter(|line| !line.starts_with('#')).count(),
            6
        );
        assert_eq!(render(&volumes[2..]), "");

        let of_a = summarize("uid-a", &volumes, "now").unwrap();
        assert_eq!(of_a.len(), 1);
        assert_eq!(of_a[0]["pvcRef"]["name"], "disk");
        assert_eq!(of_a[0]["capacityBytes"], 100);
        let of_c = summarize("uid-c", &volumes, "now").unwrap();
        assert!(of_c[0].get("pvcRef").is_none());
        assert_eq!(summarize("uid-d", &volumes, "now"), None);
    }
}
