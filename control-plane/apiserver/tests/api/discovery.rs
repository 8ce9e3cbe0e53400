//! Discovery, held against what Kubernetes 1.35 serves.

use http::Request;
use serde_json::Value;

use crate::server::*;

/// Of each group version its resources: name, singular, kind and, where there are any, `c` for those of the cluster, short
/// names after `~`, categories after `@`, verbs after `!` where they are not all eight, subresources after `/`. A
/// subresource has its kind after `=` where that is not its resource's, and `!` its verbs where they are not get, patch
/// and update.
const SERVED: &str = "
admissionregistration.k8s.io/v1
  mutatingwebhookconfigurations mutatingwebhookconfiguration MutatingWebhookConfiguration c @api-extensions
  validatingadmissionpolicies validatingadmissionpolicy ValidatingAdmissionPolicy c @api-extensions /status
  validatingadmissionpolicybindings validatingadmissionpolicybinding ValidatingAdmissionPolicyBinding c @api-extensions
  validatingwebhookconfigurations validatingwebhookconfiguration ValidatingWebhookConfiguration c @api-extensions
apiextensions.k8s.io/v1
  customresourcedefinitions customresourcedefinition CustomResourceDefinition c ~crd,crds @api-extensions /status
apiregistration.k8s.io/v1
  apiservices apiservice APIService c @api-extensions /status
apps/v1
  controllerrevisions controllerrevision ControllerRevision
  daemonsets daemonset DaemonSet ~ds @all /status
  deployments deployment Deployment ~deploy @all /scale=autoscaling/v1/Scale /status
  replicasets replicaset ReplicaSet ~rs @all /scale=autoscaling/v1/Scale /status
  statefulsets statefulset StatefulSet ~sts @all /scale=autoscaling/v1/Scale /status
authentication.k8s.io/v1
  selfsubjectreviews selfsubjectreview SelfSubjectReview c !create
  tokenreviews tokenreview TokenReview c !create
authorization.k8s.io/v1
  localsubjectaccessreviews localsubjectaccessreview LocalSubjectAccessReview !create
  selfsubjectaccessreviews selfsubjectaccessreview SelfSubjectAccessReview c !create
  selfsubjectrulesreviews selfsubjectrulesreview SelfSubjectRulesReview c !create
  subjectaccessreviews subjectaccessreview SubjectAccessReview c !create
autoscaling/v1
  horizontalpodautoscalers horizontalpodautoscaler HorizontalPodAutoscaler ~hpa @all /status
autoscaling/v2
  horizontalpodautoscalers horizontalpodautoscaler HorizontalPodAutoscaler ~hpa @all /status
batch/v1
  cronjobs cronjob CronJob ~cj @all /status
  jobs job Job @all /status
certificates.k8s.io/v1
  certificatesigningrequests certificatesigningrequest CertificateSigningRequest c ~csr /approval /status
coordination.k8s.io/v1
  leases lease Lease
discovery.k8s.io/v1
  endpointslices endpointslice EndpointSlice
events.k8s.io/v1
  events event Event ~ev
flowcontrol.apiserver.k8s.io/v1
  flowschemas flowschema FlowSchema c /status
  prioritylevelconfigurations prioritylevelconfiguration PriorityLevelConfiguration c /status
metrics.k8s.io/v1beta1
  nodes nodemetrics NodeMetrics c !get,list
  pods podmetrics PodMetrics !get,list
networking.k8s.io/v1
  ingressclasses ingressclass IngressClass c
  ingresses ingress Ingress ~ing /status
  ipaddresses ipaddress IPAddress c ~ip
  networkpolicies networkpolicy NetworkPolicy ~netpol
  servicecidrs servicecidr ServiceCIDR c /status
node.k8s.io/v1
  runtimeclasses runtimeclass RuntimeClass c
policy/v1
  poddisruptionbudgets poddisruptionbudget PodDisruptionBudget ~pdb /status
rbac.authorization.k8s.io/v1
  clusterrolebindings clusterrolebinding ClusterRoleBinding c
  clusterroles clusterrole ClusterRole c
  rolebindings rolebinding RoleBinding
  roles role Role
resource.k8s.io/v1
  deviceclasses deviceclass DeviceClass c
  resourceclaims resourceclaim ResourceClaim /status
  resourceclaimtemplates resourceclaimtemplate ResourceClaimTemplate
  resourceslices resourceslice ResourceSlice c
scheduling.k8s.io/v1
  priorityclasses priorityclass PriorityClass c ~pc
storage.k8s.io/v1
  csidrivers csidriver CSIDriver c
  csinodes csinode CSINode c
  csistoragecapacities csistoragecapacity CSIStorageCapacity
  storageclasses storageclass StorageClass c ~sc
  volumeattachments volumeattachment VolumeAttachment c /status
  volumeattributesclasses volumeattributesclass VolumeAttributesClass c ~vac
v1
  bindings binding Binding !create
  componentstatuses componentstatus ComponentStatus c ~cs !get,list
  configmaps configmap ConfigMap ~cm
  endpoints endpoints Endpoints ~ep
  events event Event ~ev
  limitranges limitrange LimitRange ~limits
  namespaces namespace Namespace c ~ns !create,delete,get,list,patch,update,watch /finalize!update /status
  nodes node Node c ~no /proxy=NodeProxyOptions!create,delete,get,patch,update /status
  persistentvolumeclaims persistentvolumeclaim PersistentVolumeClaim ~pvc /status
  persistentvolumes persistentvolume PersistentVolume c ~pv /status
  pods pod Pod ~po @all /attach=PodAttachOptions!create,get /binding=Binding!create /ephemeralcontainers \
  /eviction=policy/v1/Eviction!create /exec=PodExecOptions!create,get /log!get \
  /portforward=PodPortForwardOptions!create,get /proxy=PodProxyOptions!create,delete,get,patch,update /resize /status
  podtemplates podtemplate PodTemplate
  replicationcontrollers replicationcontroller ReplicationController ~rc @all /scale=autoscaling/v1/Scale /status
  resourcequotas resourcequota ResourceQuota ~quota /status
  secrets secret Secret
  serviceaccounts serviceaccount ServiceAccount ~sa /token=authentication.k8s.io/v1/TokenRequest!create
  services service Service ~svc @all /proxy=ServiceProxyOptions!create,delete,get,patch,update /status
";

const ALL: &str = "create,delete,deletecollection,get,list,patch,update,watch";
const WRITE: &str = "get,patch,update";

fn joined(list: &Value) -> String {
    let texts = list.as_array().into_iter().flatten();
    texts
        .filter_map(Value::as_str)
        .collect::<Vec<_>>()
        .join(",")
}

/// ` mark` and a list, unless it is the usual one.
fn marked(mark: &str, list: &Value, usual: &str) -> String {
    match joined(list) {
        text if text == usual => String::new(),
        text => format!("{mark}{text}"),
    }
}

/// One resource of the older form; those of its subresources follow it.
fn line_of(resources: &[Value], own: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut line = format!(
        "  {} {} {}",
        text(&own["name"]),
        text(&own["singularName"]),
        text(&own["kind"])
    );
    if own["namespaced"] == false {
        line += " c";
    }
    line += &marked(" ~", &own["shortNames"], "");
    line += &marked(" @", &own["categories"], "");
    line += &marked(" !", &own["verbs"], ALL);
    let prefix = format!("{}/", text(&own["name"]));
    for sub in resources {
        let name = text(&sub["name"]);
        let Some(name) = name.strip_prefix(&prefix) else {
            continue;
        };
        assert_eq!(sub["singularName"], "");
        assert_eq!(sub["namespaced"], own["namespaced"]);
        line += &format!(" /{name}");
        if sub["kind"] != own["kind"] {
            let version = match text(&sub["group"]) {
                group if group.is_empty() => String::new(),
                group => format!("{group}/{}/", text(&sub["version"])),
            };
            line += &format!("={version}{}", text(&sub["kind"]));
        }
        line += &marked("!", &sub["verbs"], WRITE);
    }
    line
}

fn group_versions() -> impl Iterator<Item = &'static str> {
    SERVED
        .lines()
        .filter(|line| !line.starts_with(' ') && !line.is_empty())
}

fn path_of(group_version: &str) -> String {
    match group_version.contains('/') {
        true => format!("/apis/{group_version}"),
        false => format!("/api/{group_version}"),
    }
}

#[tokio::test]
async fn what_is_served_is_what_kubernetes_serves() {
    let server = Server::start().await;
    let mut found = String::from("\n");
    for group_version in group_versions() {
        let list = server.get(&path_of(group_version)).await.ok();
        assert_eq!(list["groupVersion"], group_version);
        found += &format!("{group_version}\n");
        let resources = list["resources"].as_array().unwrap();
        for own in resources {
            if !own["name"].as_str().unwrap().contains('/') {
                found += &format!("{}\n", line_of(resources, own));
            }
        }
    }
    for (found, expected) in found.lines().zip(SERVED.lines()) {
        assert_eq!(found, expected);
    }
    assert_eq!(found, SERVED);

    let groups = server.get("/apis").await.ok();
    let mut served: Vec<String> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|group| group["versions"].as_array().unwrap())
        .map(|version| version["groupVersion"].as_str().unwrap().to_owned())
        .collect();
    served.sort();
    let mut expected: Vec<&str> = group_versions().filter(|it| it.contains('/')).collect();
    expected.sort_unstable();
    assert_eq!(served, expected);

    // Upstream's own figures.
    let hashes = [
        ("/api/v1", "configmaps", "qFsyl6wFWjQ="),
        ("/api/v1", "pods", "xPOwRZ+Yhw8="),
        (
            "/apis/networking.k8s.io/v1",
            "networkpolicies",
            "YpfwF18m1G8=",
        ),
        ("/apis/storage.k8s.io/v1", "csinodes", "Pe62DkZtjuo="),
    ];
    for (path, name, hash) in hashes {
        let list = server.get(path).await.ok();
        let resources = list["resources"].as_array().unwrap();
        let resource = resources.iter().find(|it| it["name"] == name).unwrap();
        assert_eq!(resource["storageVersionHash"], hash, "{name}");
    }
}

/// Scripts look for such pieces of the text.
#[tokio::test]
async fn a_resource_is_written_in_the_order_of_upstream() {
    let server = Server::start().await;
    let text = String::from_utf8(server.get("/api/v1").await.body.to_vec()).unwrap();
    for piece in [
        r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"v1","resources":[{"name":"#,
        r#"{"name":"configmaps","singularName":"configmap","namespaced":true,"kind":"ConfigMap","verbs":["create","#,
        r#""shortNames":["po"],"categories":["all"],"storageVersionHash":"#,
        r#"{"name":"pods/eviction","singularName":"","namespaced":true,"group":"policy","version":"v1","kind":"Eviction","verbs":["#,
    ] {
        assert!(text.contains(piece), "{piece} is missing in {text}");
    }
}

/// Both forms say the same.
#[tokio::test]
async fn the_aggregated_form_says_the_same() {
    let server = Server::start().await;
    let media = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    for root in ["/api", "/apis"] {
        let request = Request::get(root).header("accept", media);
        let document = server.send(request, "").await.ok();
        for group in document["items"].as_array().unwrap() {
            let name = group["metadata"]["name"].as_str().unwrap_or_default();
            for version in group["versions"].as_array().unwrap() {
                let number = version["version"].as_str().unwrap();
                let group_version = match name {
                    "" => number.to_owned(),
                    name => format!("{name}/{number}"),
                };
                let list = server.get(&path_of(&group_version)).await.ok();
                let older = list["resources"].as_array().unwrap();
                let mut count = 0;
                for new in version["resources"].as_array().unwrap() {
                    let plural = new["resource"].as_str().unwrap();
                    let own = older.iter().find(|it| it["name"] == plural).unwrap();
                    let kind = &new["responseKind"];
                    assert_eq!(kind["kind"], own["kind"], "{plural}");
                    assert_eq!(
                        (&kind["group"], &kind["version"]),
                        (&name.into(), &number.into())
                    );
                    assert_eq!(new["singularResource"], own["singularName"]);
                    assert_eq!(new["scope"] == "Namespaced", own["namespaced"] == true);
                    for field in ["verbs", "shortNames", "categories"] {
                        assert_eq!(new[field], own[field], "{plural} {field}");
                    }
                    count += 1;
                    for sub in new["subresources"].as_array().into_iter().flatten() {
                        let path = format!("{plural}/{}", sub["subresource"].as_str().unwrap());
                        let own = older.iter().find(|it| it["name"] == path.as_str()).unwrap();
                        assert_eq!(sub["responseKind"]["kind"], own["kind"], "{path}");
                        assert_eq!(sub["verbs"], own["verbs"], "{path}");
                        if !own["group"].is_null() {
                            assert_eq!(sub["responseKind"]["group"], own["group"], "{path}");
                            assert_eq!(sub["responseKind"]["version"], own["version"], "{path}");
                        }
                        count += 1;
                    }
                }
                assert_eq!(count, older.len(), "{group_version}");
            }
        }
    }
}

#[tokio::test]
async fn who_has_the_list_of_all_groups_is_not_sent_it_again() {
    let server = Server::start().await;
    let ask = |known: &str| {
        Request::get("/apis")
            .header(
                "accept",
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
            )
            .header("if-none-match", known)
    };
    let first = server.send(ask("\"other\""), "").await;
    let tag = first.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(first.ok()["kind"], "APIGroupDiscoveryList");
    let again = server.send(ask(&tag), "").await;
    assert_eq!((again.code, again.body.len()), (304, 0));
    assert_eq!(again.headers["etag"], tag);
}
