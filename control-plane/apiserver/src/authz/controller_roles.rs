//! What each of upstream's controllers may do, for clusters whose controllers run as they do with
//! `--use-service-account-credentials`: every one as a ServiceAccount of its own in `kube-system`. Windlass' own controllers
//! share one identity and do without.

/// Controllers, which are the names of their accounts, and their rules.
///
/// A line is a rule: API groups, resources and verbs, and the names that the rule is for if it is not for all. `core` is the core
/// group, `read` stands for get, list and watch, `events` for the right to tell of events.
pub(super) const CONTROLLERS: &[(&str, &str)] = &[
    ("attachdetach-controller", "core persistentvolumeclaims,persistentvolumes list,watch
        core nodes read
        core nodes/status patch,update
        core pods list,watch
        events
        storage.k8s.io volumeattachments create,delete,read
        storage.k8s.io csidrivers read
        storage.k8s.io csinodes read"),
    ("certificate-controller", "certificates.k8s.io certificatesigningrequests delete,read
        certificates.k8s.io certificatesigningrequests/approval,certificatesigningrequests/status update
        certificates.k8s.io signers approve kubernetes.io/kube-apiserver-client-kubelet
        certificates.k8s.io signers sign kubernetes.io/kube-apiserver-client,kubernetes.io/kube-apiserver-client-kubelet,kubernetes.io/kubelet-serving,kubernetes.io/legacy-unknown
        authorization.k8s.io subjectaccessreviews create
        events"),
    ("clusterrole-aggregation-controller", "rbac.authorization.k8s.io clusterroles escalate,get,list,patch,update,watch"),
    ("cronjob-controller", "batch cronjobs get,list,update,watch
        batch jobs create,delete,get,list,patch,update,watch
        batch cronjobs/status update
        batch cronjobs/finalizers update
        core pods delete,list,watch
        events"),
    ("daemon-set-controller", "apps,extensions daemonsets read
        apps,extensions daemonsets/status update
        apps,extensions daemonsets/finalizers update
        core nodes list,watch
        core pods create,delete,list,patch,watch
        core pods/binding create
        apps controllerrevisions create,delete,get,list,patch,update,watch
        events"),
    ("deployment-controller", "apps,extensions deployments get,list,update,watch
        apps,extensions deployments/status update
        apps,extensions deployments/finalizers update
        apps,extensions replicasets create,delete,get,list,patch,update,watch
        core pods get,list,update,watch
        events"),
    ("device-taint-eviction-controller", "core pods delete,read
        core pods/status patch,update
        resource.k8s.io resourceclaims read
        resource.k8s.io resourceslices read
        resource.k8s.io deviceclasses read
        events"),
    ("disruption-controller", "apps,extensions deployments read
        apps,extensions replicasets read
        core replicationcontrollers read
        policy poddisruptionbudgets read
        apps statefulsets read
        policy poddisruptionbudgets/status update
        core pods/status patch,update
        * */scale get
        events"),
    ("endpoint-controller", "core pods,services read
        core endpoints create,delete,get,list,update,watch
        core endpoints/restricted create
        events"),
    ("endpointslice-controller", "core nodes,pods,services read
        core services/finalizers update
        discovery.k8s.io endpointslices create,delete,get,list,update,watch
        events"),
    ("endpointslicemirroring-controller", "core endpoints,services read
        core services/finalizers update
        core endpoints/finalizers update
        discovery.k8s.io endpointslices create,delete,get,list,update,watch
        events"),
    ("ephemeral-volume-controller", "core pods read
        core pods/finalizers update
        core persistentvolumeclaims create,read
        events"),
    ("expand-controller", "core persistentvolumes get,list,patch,update,watch
        core persistentvolumeclaims/status patch,update
        core persistentvolumeclaims read
        events"),
    ("generic-garbage-collector", "* * delete,get,list,patch,update,watch
        events"),
    ("horizontal-pod-autoscaler", "autoscaling horizontalpodautoscalers read
        autoscaling horizontalpodautoscalers/status update
        * */scale get,update
        core pods list,watch
        metrics.k8s.io pods list,watch
        custom.metrics.k8s.io * read
        external.metrics.k8s.io * read
        events"),
    ("job-controller", "batch jobs get,list,patch,update,watch
        batch jobs/status update
        batch jobs/finalizers update
        core pods create,delete,list,patch,watch
        events"),
    ("legacy-service-account-token-cleaner", "core configmaps get kube-apiserver-legacy-service-account-token-tracking
        core secrets delete,patch"),
    ("namespace-controller", "core namespaces delete,read
        core namespaces/finalize,namespaces/status update
        * * delete,deletecollection,read"),
    ("node-controller", "core nodes delete,get,list,patch,update,watch
        core nodes/status patch,update
        core pods/status patch,update
        core pods delete,read
        events"),
    ("persistent-volume-binder", "core persistentvolumes create,delete,get,list,update,watch
        core persistentvolumes/status update
        core persistentvolumeclaims get,list,update,watch
        core persistentvolumeclaims/status update
        core pods create,delete,read
        storage.k8s.io storageclasses read
        core nodes list,watch
        events
        core events watch"),
    ("pod-garbage-collector", "core pods delete,list,watch
        core nodes read
        core pods/status patch"),
    ("pv-protection-controller", "core persistentvolumes get,list,update,watch
        events"),
    ("pvc-protection-controller", "core persistentvolumeclaims get,list,update,watch
        core persistentvolumeclaims/status update
        core pods read
        events"),
    ("replicaset-controller", "apps,extensions replicasets get,list,update,watch
        apps,extensions replicasets/status update
        apps,extensions replicasets/finalizers update
        core pods create,delete,list,patch,watch
        events"),
    ("replication-controller", "core replicationcontrollers get,list,update,watch
        core replicationcontrollers/status update
        core replicationcontrollers/finalizers update
        core pods create,delete,list,patch,watch
        events"),
    ("resource-claim-controller", "core pods read
        core pods/finalizers update
        resource.k8s.io resourceclaims create,delete,read
        resource.k8s.io resourceclaims,resourceclaims/status patch,update
        core pods/status patch,update
        events"),
    ("resourcequota-controller", "* * list,watch
        core resourcequotas/status update
        events"),
    ("root-ca-cert-publisher", "core configmaps create,update
        events"),
    ("route-controller", "core nodes list,watch
        core nodes/status patch
        events"),
    ("selinux-warning-controller", "events
        core persistentvolumes read
        core persistentvolumeclaims read
        core pods read
        storage.k8s.io csidrivers read"),
    ("service-account-controller", "core serviceaccounts create
        events"),
    ("service-cidrs-controller", "networking.k8s.io servicecidrs get,list,patch,update,watch
        networking.k8s.io servicecidrs/finalizers patch,update
        networking.k8s.io servicecidrs/status patch,update
        networking.k8s.io ipaddresses read
        events"),
    ("service-controller", "core services read
        core services/status patch,update
        core nodes list,watch
        events"),
    ("statefulset-controller", "core pods list,watch
        apps statefulsets read
        apps statefulsets/status update
        apps statefulsets/finalizers update
        core pods create,delete,get,patch,update
        apps controllerrevisions create,delete,get,list,patch,update,watch
        core persistentvolumeclaims create,read
        core persistentvolumeclaims delete,update
        core pods/finalizers update
        events"),
    ("ttl-after-finished-controller", "batch jobs delete,read
        events"),
    ("ttl-controller", "core nodes list,patch,update,watch
        events"),
    ("validatingadmissionpolicy-status-controller", "admissionregistration.k8s.io validatingadmissionpolicies read
        admissionregistration.k8s.io validatingadmissionpolicies/status get,patch,update
        events"),
    ("volumeattributesclass-protection-controller", "core persistentvolumeclaims read
        core persistentvolumes read
        storage.k8s.io volumeattributesclasses get,list,update,watch
        events"),
];

/// Roles of one namespace: namespace, name, rules as above.
pub(super) const NAMESPACED: &[(&str, &str, &str)] = &[
    (
        "kube-public",
        "system:controller:bootstrap-signer",
        "core configmaps read
        core configmaps update cluster-info
        events",
    ),
    (
        "kube-system",
        "extension-apiserver-authentication-reader",
        "core configmaps read extension-apiserver-authentication",
    ),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        "coordination.k8s.io leases create,get,list,update,watch
        coordination.k8s.io leasecandidates create,get,list,update,watch",
    ),
    (
        "kube-system",
        "system::leader-locking-kube-scheduler",
        "coordination.k8s.io leases create,get,list,update,watch
        coordination.k8s.io leasecandidates create,get,list,update,watch",
    ),
    (
        "kube-system",
        "system:controller:bootstrap-signer",
        "core secrets read",
    ),
    (
        "kube-system",
        "system:controller:cloud-provider",
        "core configmaps create,get,list,watch",
    ),
    (
        "kube-system",
        "system:controller:token-cleaner",
        "core secrets delete,read
        events",
    ),
];

/// RoleBindings: namespace, name, role, subjects as `User:…` or `ServiceAccount:…` (of `kube-system`).
pub(super) const NAMESPACED_BINDINGS: &[(&str, &str, &str, &[&str])] = &[
    (
        "kube-public",
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &["ServiceAccount:bootstrap-signer"],
    ),
    (
        "kube-system",
        "system::extension-apiserver-authentication-reader",
        "extension-apiserver-authentication-reader",
        &[
            "User:system:kube-controller-manager",
            "User:system:kube-scheduler",
        ],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-controller-manager",
        "system::leader-locking-kube-controller-manager",
        &[
            "User:system:kube-controller-manager",
            "ServiceAccount:kube-controller-manager",
            "ServiceAccount:leader-election-controller",
        ],
    ),
    (
        "kube-system",
        "system::leader-locking-kube-scheduler",
        "system::leader-locking-kube-scheduler",
        &[
            "User:system:kube-scheduler",
            "ServiceAccount:kube-scheduler",
        ],
    ),
    (
        "kube-system",
        "system:controller:bootstrap-signer",
        "system:controller:bootstrap-signer",
        &["ServiceAccount:bootstrap-signer"],
    ),
    (
        "kube-system",
        "system:controller:cloud-provider",
        "system:controller:cloud-provider",
        &["ServiceAccount:cloud-provider"],
    ),
    (
        "kube-system",
        "system:controller:token-cleaner",
        "system:controller:token-cleaner",
        &["ServiceAccount:token-cleaner"],
    ),
];

/// ClusterRoles that nobody is bound to: name, rules as above.
pub(super) const OFFERED: &[(&str, &str)] = &[
    (
        "system:kubelet-api-admin",
        "core nodes read
        core nodes proxy
        core nodes/log,nodes/metrics,nodes/proxy,nodes/stats *",
    ),
    (
        "system:node-problem-detector",
        "core nodes get
        core nodes/status patch
        events",
    ),
    ("system:kube-aggregator", "core endpoints,services read"),
    (
        "system:heapster",
        "core events,namespaces,nodes,pods read
        extensions deployments read",
    ),
    (
        "system:certificates.k8s.io:kube-apiserver-client-approver",
        "certificates.k8s.io signers approve kubernetes.io/kube-apiserver-client",
    ),
    (
        "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        "certificates.k8s.io signers approve kubernetes.io/kube-apiserver-client-kubelet",
    ),
    (
        "system:certificates.k8s.io:kubelet-serving-approver",
        "certificates.k8s.io signers approve kubernetes.io/kubelet-serving",
    ),
    (
        "system:certificates.k8s.io:legacy-unknown-approver",
        "certificates.k8s.io signers approve kubernetes.io/legacy-unknown",
    ),
];
