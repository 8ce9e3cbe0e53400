//! Classes, drivers and attachments of volumes: `storage.k8s.io/v1`.

pub mod attachment;
pub mod class;
pub mod csi;

use crate::resource::Resource;

fn storage(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("storage.k8s.io", "v1", kind, plural).cluster()
}

pub fn resources() -> Vec<Resource> {
    vec![
        storage("CSIDriver", "csidrivers")
            .columns(
                "?AttachRequired, ?PodInfoOnMount, ?StorageCapacity, TokenRequests, ?RequiresRepublish, \
                 Modes, Age",
            )
            .rules(csi::CsiDriver),
        storage("CSINode", "csinodes").columns("#Drivers, Age").rules(csi::CsiNode),
        storage("CSIStorageCapacity", "csistoragecapacities")
            .namespaced()
            .columns("StorageClassName, Capacity")
            .rules(csi::CsiStorageCapacity),
        storage("StorageClass", "storageclasses")
            .short("sc")
            .columns("=Name, Provisioner, ReclaimPolicy, VolumeBindingMode, AllowVolumeExpansion, Age")
            .rules(class::StorageClass),
        storage("VolumeAttachment", "volumeattachments")
            .status()
            .columns("=Attacher, PV, Node, ?Attached, Age")
            .rules(attachment::VolumeAttachment),
        storage("VolumeAttributesClass", "volumeattributesclasses")
            .short("vac")
            .columns("=Name, DriverName, Age")
            .rules(class::VolumeAttributesClass),
    ]
}
