//! What PersistentVolumes and their claims become: bound to each other, protected while in use, attached to
//! nodes, made for generic ephemeral volumes. Nothing here mounts, attaches or
//! provisions: node agents and CSI drivers do.

pub(crate) mod attachment;
pub(crate) mod binder;
mod claim;
pub(crate) mod ephemeral;
pub(crate) mod protection;
mod volume;
