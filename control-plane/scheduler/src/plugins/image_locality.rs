//! ImageLocality: prefers nodes that have the pod's images, the larger the more; an image that few nodes
//! have counts less, so that not all pods run to the same node.

use std::sync::Arc;

use crate::{
    cache::Snapshot,
    event::Event,
    framework::{MAX_SCORE, Plugin, Score},
    node::NodeInfo,
    pod::PodInfo,
};

pub(crate) struct ImageLocality;

const MIB: i64 = 1024 * 1024;
/// Below this an image is fetched soon enough.
const SMALL: i64 = 23 * MIB;
/// Beyond this, per image, more bytes make no difference.
const LARGE: i64 = 1000 * MIB;

struct Images {
    /// Names, normalised, with the share of nodes that have each, in thousandths.
    wanted: Vec<(String, i64)>,
}

/// Nodes report images with their tag; a name without one means `latest`.
fn normalized(image: &str) -> String {
    let after_slash = image.rsplit('/').next().unwrap_or(image);
    if image.contains('@') || after_slash.contains(':') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn prepare_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        if feasible.len() < 2 {
            return None;
        }
        let spec = pod.spec();
        let containers = spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers);
        let total = i64::try_from(snapshot.nodes.len())
            .unwrap_or(i64::MAX)
            .max(1);
        let volumes = spec.volumes.iter().flatten();
        let of_volumes = volumes.filter_map(|volume| volume.image.as_ref()?.reference.as_deref());
        let wanted = containers
            .filter_map(|container| container.image.as_deref())
            .chain(of_volumes)
            .map(|image| {
                let image = normalized(image);
                let having = i64::try_from(snapshot.having(&image)).unwrap_or(0);
                (image, having * 1000 / total)
            })
            .collect::<Vec<_>>();
        // An image that no node has makes none better than another.
        let any = wanted.iter().any(|(_, share)| *share > 0);
        any.then(|| Box::new(Images { wanted }) as Box<dyn Score>)
    }

    fn wakes(&self, _pod: &PodInfo, _event: &Event) -> bool {
        false
    }
}

impl Score for Images {
    fn score(&self, node: &NodeInfo) -> i64 {
        let bytes: i64 = self
            .wanted
            .iter()
            .filter_map(|(image, share)| Some(node.images.get(image)? / 1000 * share))
            .sum();
        let most = LARGE * i64::try_from(self.wanted.len()).unwrap_or(1);
        (bytes.clamp(SMALL, most.max(SMALL + 1)) - SMALL) * MAX_SCORE / (most - SMALL).max(1)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::tests::*, *};

    #[test]
    fn a_node_that_has_a_large_image_is_preferred() {
        let images = json!({"status": {"allocatable": {},
            "images": [{"names": ["registry/app:latest"], "sizeBytes": 1000 * MIB}]}});
        let snapshot = Snapshot::of([
            node("has", json!({}), images, &[]),
            node("has-not", json!({}), json!({}), &[]),
        ]);
        let scores = |spec: serde_json::Value| {
            let pod = pod("p", json!({}), spec);
            scored(&ImageLocality, &pod, &snapshot)
        };
        // Half of the nodes have it, so half of its size counts.
        let container = |image: &str| json!([{"name": "c", "image": image}]);
        assert_eq!(
            scores(json!({"containers": container("registry/app")})),
            [48, 0]
        );
        let volume = json!({"name": "v", "image": {"reference": "registry/app"}});
        let spec = json!({"containers": container("other"), "volumes": [volume]});
        assert_eq!(scores(spec), [24, 0]);
    }

    #[test]
    fn names_without_a_tag_mean_latest() {
        assert_eq!(normalized("host:5000/app"), "host:5000/app:latest");
        assert_eq!(normalized("app:v1"), "app:v1");
        assert_eq!(normalized("app@sha256:00"), "app@sha256:00");
    }
}
