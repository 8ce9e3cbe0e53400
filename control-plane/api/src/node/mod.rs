//! Container runtimes: `node.k8s.io/v1`.

pub mod runtime_class;

use crate::resource::Resource;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource::new("node.k8s.io", "v1", "RuntimeClass", "runtimeclasses")
            .cluster()
            .columns("Handler, Age")
            .rules(runtime_class::RuntimeClass),
    ]
}
