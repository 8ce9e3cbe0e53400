//! The Node's conditions, computed.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::NodeCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use windlass_cri::v1::{CgroupDriver, RuntimeStatus};
use windlass_pods::Shortage;

/// What the conditions are computed from; an absent problem is none.
#[derive(Debug, Clone, Default)]
pub(crate) struct Observed {
    pub(crate) runtime: Option<String>,
    pub(crate) network: Option<String>,
    pub(crate) shortage: Shortage,
}

/// Why the runtime cannot run pods, by what it says of itself.
pub(crate) fn of_runtime(told: RuntimeStatus, driver: Option<CgroupDriver>) -> Vec<String> {
    let failing = told.conditions.into_iter().filter(|condition| {
        matches!(condition.r#type.as_str(), "RuntimeReady" | "NetworkReady") && !condition.status
    });
    let failing = failing.map(|condition| {
        format!(
            "container runtime not ready: {}=false reason:{} message:{}",
            condition.r#type, condition.reason, condition.message
        )
    });
    // Pods' cgroups are made as folders here: by systemd's names no sandbox could start.
    let driver = driver.filter(|driver| *driver == CgroupDriver::Systemd);
    let driver = driver.map(|_| {
        "container runtime not ready: it names cgroups as systemd does; set its cgroup driver to cgroupfs \
         (containerd: SystemdCgroup = false)"
            .to_owned()
    });
    failing.chain(driver).collect()
}

/// All four conditions; the time of a transition is kept while the status is.
pub(crate) fn compute(
    observed: &Observed,
    known: &[NodeCondition],
    now: Timestamp,
) -> Vec<NodeCondition> {
    let problems: Vec<&str> = [&observed.runtime, &observed.network]
        .into_iter()
        .filter_map(|problem| problem.as_deref())
        .collect();
    let ready = match problems.is_empty() {
        true => (
            "True",
            "KubeletReady",
            "kubelet is posting ready status".to_owned(),
        ),
        false => ("False", "KubeletNotReady", problems.join(", ")),
    };
    let pressure = |short: bool, yes: [&'static str; 2], no: [&'static str; 2]| match short {
        true => ("True", yes[0], yes[1].to_owned()),
        false => ("False", no[0], no[1].to_owned()),
    };
    let memory = pressure(
        observed.shortage.memory,
        [
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ],
        [
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ],
    );
    let disk = pressure(
        observed.shortage.disk,
        ["KubeletHasDiskPressure", "kubelet has disk pressure"],
        ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
    );
    let pids = pressure(
        observed.shortage.pids,
        [
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
        ],
        [
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ],
    );
    let all = [
        ("MemoryPressure", memory),
        ("DiskPressure", disk),
        ("PIDPressure", pids),
        ("Ready", ready),
    ];
    all.into_iter()
        .map(|(type_, (status, reason, message))| {
            let before = known.iter().find(|condition| condition.type_ == type_);
            let unchanged = before.filter(|before| before.status == status);
            let since = unchanged.and_then(|before| before.last_transition_time.clone());
            NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_heartbeat_time: Some(Time(now)),
                last_transition_time: Some(since.unwrap_or(Time(now))),
            }
        })
        .collect()
}

/// Whether the Ready condition is true.
pub(crate) fn is_ready(conditions: &[NodeCondition]) -> bool {
    conditions
        .iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether `known` says all that `conditions` say, whenever it was said.
pub(crate) fn same(conditions: &[NodeCondition], known: &[NodeCondition]) -> bool {
    conditions.iter().all(|condition| {
        known.iter().any(|known| {
            known.type_ == condition.type_
                && known.status == condition.status
                && known.reason == condition.reason
                && known.message == condition.message
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_node_is_ready_when_runtime_and_network_are() {
        let of = |runtime: Option<&str>, network: Option<&str>| {
            let observed = Observed {
                runtime: runtime.map(str::to_owned),
                network: network.map(str::to_owned),
                shortage: Shortage::default(),
            };
            compute(&observed, &[], at(1)).pop().unwrap()
        };
        assert_eq!(of(None, None).status, "True");
        assert_eq!(of(None, None).reason.as_deref(), Some("KubeletReady"));
        assert_eq!(of(Some("a"), None).status, "False");
        assert_eq!(of(Some("a"), Some("b")).message.as_deref(), Some("a, b"));
    }

    #[test]
    fn a_runtime_that_could_start_nothing_is_named() {
        use windlass_cri::v1::RuntimeCondition;
        let condition = |name: &str, status| RuntimeCondition {
            r#type: name.into(),
            status,
            reason: "Why".into(),
            message: "so".into(),
        };
        let of = |network, driver| {
            let conditions = vec![
                condition("RuntimeReady", true),
                condition("NetworkReady", network),
            ];
            of_runtime(RuntimeStatus { conditions }, driver)
        };
        assert!(of(true, None).is_empty());
        assert!(of(true, Some(CgroupDriver::Cgroupfs)).is_empty());
        let network = "container runtime not ready: NetworkReady=false reason:Why message:so";
        assert_eq!(of(false, None), [network]);
        assert!(of(true, Some(CgroupDriver::Systemd))[0].contains("SystemdCgroup = false"));
    }

    #[test]
    fn the_time_of_a_transition_stays_until_the_next() {
        let well = compute(&Observed::default(), &[], at(1));
        let later = compute(&Observed::default(), &well, at(9));
        assert_eq!(later[3].last_transition_time, Some(Time(at(1))));
        assert_eq!(later[3].last_heartbeat_time, Some(Time(at(9))));
        assert!(same(&later, &well));

        let short = Shortage {
            memory: true,
            ..Shortage::default()
        };
        let ill = compute(
            &Observed {
                shortage: short,
                ..Observed::default()
            },
            &later,
            at(10),
        );
        assert_eq!(ill[0].status, "True");
        assert_eq!(ill[0].last_transition_time, Some(Time(at(10))));
        assert!(!same(&ill, &later));
        assert!(is_ready(&ill), "a node under pressure still runs pods");
    }
}
