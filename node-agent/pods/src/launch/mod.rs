//! How a pod and its containers look to the runtime.
//!
//! The pure half turns specs into the runtime's configurations, one file per topic;
//! `start` does the work with it: pull, make, start, hook.

pub(crate) mod container;
pub(crate) mod dns;
pub(crate) mod env;
mod env_file;
pub(crate) mod expansion;
mod handler;
pub(crate) mod hosts;
pub(crate) mod image;
pub(crate) mod image_volumes;
pub(crate) mod mounts;
mod pull;
pub(crate) mod pulled;
pub(crate) mod resources;
pub(crate) mod sandbox;
pub(crate) mod security;
pub(crate) mod service_env;
pub(crate) mod start;
pub(crate) mod user_namespace;

#[cfg(test)]
pub(crate) fn test_config() -> crate::config::Config {
    crate::config::Config {
        node: windlass_volumes::NodeFacts::default(),
        memory_capacity: 8 << 30,
        huge_pages: Default::default(),
        state_dir: "/var/lib/test".into(),
        root_dir: "/var/lib/test".into(),
        cgroup_root: "/kubepods".into(),
        cgroup_mount: "/sys/fs/cgroup".into(),
        cluster_dns: vec!["10.96.0.10".into()],
        cluster_domain: "cluster.local".into(),
        resolv_conf: "/etc/resolv.conf".into(),
        allowed_unsafe_sysctls: Vec::new(),
        manifests: None,
        eviction: Default::default(),
        image_gc: (85, 80),
        log_max_bytes: 10 << 20,
        log_max_files: 5,
    }
}
