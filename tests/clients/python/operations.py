"""What programs do with the Python client: every verb on many kinds, watches, pages, tables of access, custom
resources. Any surprise is an exception, and ends the script with an error."""

import threading
import time

from kubernetes import client, config, dynamic, watch
from kubernetes.client import ApiException

config.load_kube_config()
api = client.ApiClient()
core = client.CoreV1Api(api)
apps = client.AppsV1Api(api)
NAMESPACE = "python-client"
CONTAINER = {"name": "c", "image": "example.test/image:1"}
TEMPLATE = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [CONTAINER]}}
SELECTOR = {"matchLabels": {"app": "x"}}

# apiVersion, kind, and what a usual object has besides its metadata
SAMPLES = [
    ("v1", "ConfigMap", {"data": {"k": "v"}}),
    ("v1", "Secret", {"stringData": {"k": "v"}}),
    ("v1", "Service", {"spec": {"ports": [{"port": 80}]}}),
    ("v1", "ServiceAccount", {}),
    ("v1", "PodTemplate", {"template": TEMPLATE}),
    ("v1", "LimitRange", {"spec": {"limits": [{"type": "Pod", "max": {"cpu": "8"}}]}}),
    ("v1", "ResourceQuota", {"spec": {"hard": {"pods": "100"}}}),
    ("v1", "PersistentVolumeClaim", {"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
    ("v1", "ReplicationController", {"spec": {"replicas": 0, "selector": {"app": "x"}, "template": TEMPLATE}}),
    ("apps/v1", "Deployment", {"spec": {"replicas": 0, "selector": SELECTOR, "template": TEMPLATE}}),
    ("apps/v1", "ReplicaSet", {"spec": {"replicas": 0, "selector": SELECTOR, "template": TEMPLATE}}),
    ("apps/v1", "StatefulSet", {"spec": {"replicas": 0, "selector": SELECTOR, "serviceName": "x", "template": TEMPLATE}}),
    ("apps/v1", "DaemonSet", {"spec": {"selector": SELECTOR, "template": TEMPLATE}}),
    ("apps/v1", "ControllerRevision", {"revision": 1, "data": {"a": 1}}),
    ("batch/v1", "CronJob", {"spec": {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [CONTAINER]}}}}}}),
    ("batch/v1", "Job", {"spec": {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [CONTAINER]}}}}),
    ("autoscaling/v2", "HorizontalPodAutoscaler", {"spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "none"}}}),
    ("policy/v1", "PodDisruptionBudget", {"spec": {"minAvailable": 1, "selector": SELECTOR}}),
    ("networking.k8s.io/v1", "NetworkPolicy", {"spec": {"podSelector": {}}}),
    ("networking.k8s.io/v1", "Ingress", {"spec": {"defaultBackend": {"service": {"name": "x", "port": {"number": 80}}}}}),
    ("networking.k8s.io/v1", "IngressClass", {"spec": {"controller": "example.test/c"}}),
    ("networking.k8s.io/v1", "ServiceCIDR", {"spec": {"cidrs": ["10.250.0.0/24"]}}),
    ("discovery.k8s.io/v1", "EndpointSlice", {"addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.7"]}], "ports": [{"port": 80}]}),
    ("coordination.k8s.io/v1", "Lease", {"spec": {"holderIdentity": "me", "leaseDurationSeconds": 10}}),
    ("rbac.authorization.k8s.io/v1", "Role", {"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]}),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}, "subjects": [{"kind": "User", "name": "x", "apiGroup": "rbac.authorization.k8s.io"}]}),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", {"rules": []}),
    ("storage.k8s.io/v1", "StorageClass", {"provisioner": "example.test/p"}),
    ("storage.k8s.io/v1", "CSIDriver", {"spec": {"attachRequired": False}}),
    ("scheduling.k8s.io/v1", "PriorityClass", {"value": 5}),
    ("node.k8s.io/v1", "RuntimeClass", {"handler": "h"}),
    ("flowcontrol.apiserver.k8s.io/v1", "FlowSchema", {"spec": {"matchingPrecedence": 9000, "priorityLevelConfiguration": {"name": "global-default"}}}),
    ("flowcontrol.apiserver.k8s.io/v1", "PriorityLevelConfiguration", {"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 2, "limitResponse": {"type": "Reject"}}}}),
    ("admissionregistration.k8s.io/v1", "ValidatingAdmissionPolicy", {"spec": {"validations": [{"expression": "true"}], "matchConstraints": {"resourceRules": [{"apiGroups": ["example.test"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["none"]}]}}}),
    ("resource.k8s.io/v1", "DeviceClass", {"spec": {}}),
    ("resource.k8s.io/v1", "ResourceClaim", {"spec": {}}),
    ("events.k8s.io/v1", "Event", {"eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "example.test/c", "reportingInstance": "i", "action": "Do", "reason": "Because", "type": "Normal", "regarding": {"kind": "Pod", "namespace": NAMESPACE, "name": "x"}}),
]


def eventually(what, probe):
    deadline = time.time() + 90
    while time.time() < deadline:
        if probe():
            return
        time.sleep(0.1)
    raise AssertionError(f"not within 90 s: {what}")


def refused(code, call, *arguments, **keywords):
    try:
        call(*arguments, **keywords)
    except ApiException as error:
        assert error.status == code, error
        return error
    raise AssertionError(f"{call} was not refused")


def every_verb(anything, api_version, kind, rest):
    """The operations that Kubernetes' conformance tests do on each API."""
    resource = anything.resources.get(api_version=api_version, kind=kind)
    where = {"namespace": NAMESPACE} if resource.namespaced else {}
    labels = {"python-client": kind.lower()}
    selector = f"python-client={kind.lower()}"

    def body(name):
        return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "labels": labels}, **rest}

    made = resource.create(body=body(f"{kind.lower()}-a"), **where)
    begin = made.metadata.resourceVersion
    name = made.metadata.name
    assert resource.get(name=name, **where).metadata.uid == made.metadata.uid
    assert [item.metadata.name for item in resource.get(label_selector=selector, **where).items] == [name]
    refused(409, resource.create, body=body(name), **where)
    patched = resource.patch(body={"metadata": {"annotations": {"patched": "yes"}}}, name=name,
                             content_type="application/merge-patch+json", **where)
    assert patched.metadata.annotations.patched == "yes"
    applied = resource.server_side_apply(
        body={"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "annotations": {"applied": "yes"}}},
        name=name, field_manager="python-client", **where)
    # Controllers may have added their own.
    assert applied.metadata.annotations.to_dict().items() >= {"patched": "yes", "applied": "yes"}.items()

    def write():
        current = resource.get(name=name, **where).to_dict()
        current["metadata"]["annotations"]["updated"] = "yes"
        try:
            return resource.replace(body=current, name=name, **where)
        except ApiException as error:
            if error.status != 409:
                raise
            return None

    eventually(f"{kind} is written", write)
    resource.create(body=body(f"{kind.lower()}-b"), **where)
    resource.delete(name=name, **where)
    eventually(f"{kind} {name} is gone",
               lambda: name not in [i.metadata.name for i in resource.get(label_selector=selector, **where).items])
    resource.delete(label_selector=selector, **where)
    eventually(f"all of {kind} are gone", lambda: not resource.get(label_selector=selector, **where).items)
    # All of it, in the order in which it happened, to someone who asks late.
    seen = []
    for event in resource.watch(label_selector=selector, resource_version=begin, timeout=1, **where):
        seen.append((event["type"], event["object"].metadata.name))
    assert ("MODIFIED", name) in seen and ("DELETED", name) in seen, (kind, seen)
    assert ("ADDED", f"{kind.lower()}-b") in seen, (kind, seen)


def a_watch_while_things_change():
    found = []

    def follow():
        stream = watch.Watch().stream(core.list_namespaced_config_map, NAMESPACE, label_selector="w=1", timeout_seconds=20)
        for event in stream:
            found.append((event["type"], event["object"].data.get("n")))
            if event["type"] == "DELETED":
                return

    reader = threading.Thread(target=follow)
    reader.start()
    made = client.V1ConfigMap(metadata=client.V1ObjectMeta(name="w", labels={"w": "1"}), data={"n": "0"})
    core.create_namespaced_config_map(NAMESPACE, made)
    for n in range(1, 4):
        core.patch_namespaced_config_map("w", NAMESPACE, {"data": {"n": str(n)}})
    core.delete_namespaced_config_map("w", NAMESPACE)
    reader.join(30)
    assert found[-1] == ("DELETED", "3"), found
    assert [n for _, n in found] == sorted(n for _, n in found), found


def pages():
    for n in range(7):
        core.create_namespaced_config_map(NAMESPACE, client.V1ConfigMap(metadata=client.V1ObjectMeta(name=f"page-{n}", labels={"page": "1"})))
    names, token = [], None
    while True:
        page = core.list_namespaced_config_map(NAMESPACE, limit=3, _continue=token, label_selector="page=1")
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue
        if not token:
            break
    assert names == [f"page-{n}" for n in range(7)], names


def scale_and_status():
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "scaled"},
            "spec": {"replicas": 0, "selector": SELECTOR, "template": TEMPLATE}}
    apps.create_namespaced_deployment(NAMESPACE, body)
    scale = apps.patch_namespaced_deployment_scale("scaled", NAMESPACE, {"spec": {"replicas": 2}})
    assert scale.spec.replicas == 2
    eventually("the deployment is observed",
               lambda: apps.read_namespaced_deployment_status("scaled", NAMESPACE).status.observed_generation == 2)
    eventually("its pods exist", lambda: len(core.list_namespaced_pod(NAMESPACE, label_selector="app=x").items) == 2)
    apps.delete_namespaced_deployment("scaled", NAMESPACE, propagation_policy="Foreground")
    eventually("its pods are gone", lambda: not core.list_namespaced_pod(NAMESPACE, label_selector="app=x").items)


def custom_resources():
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "pythons.example.test"},
        "spec": {"group": "example.test", "scope": "Namespaced", "names": {"plural": "pythons", "kind": "Python"},
                 "versions": [{"name": "v1", "served": True, "storage": True, "subresources": {"status": {}},
                               "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                                   "spec": {"type": "object", "properties": {"length": {"type": "integer", "minimum": 1, "default": 3}}},
                                   "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}}}}]}}
    extensions = client.ApiextensionsV1Api(api)
    extensions.create_custom_resource_definition(definition)
    custom = client.CustomObjectsApi(api)
    where = ("example.test", "v1", NAMESPACE, "pythons")

    def served():
        try:
            return custom.list_namespaced_custom_object(*where) is not None
        except ApiException as error:
            assert error.status == 404, error
            return False

    eventually("the custom resource is served", served)
    body = {"apiVersion": "example.test/v1", "kind": "Python", "metadata": {"name": "monty"}, "spec": {}}
    assert custom.create_namespaced_custom_object(*where, body)["spec"]["length"] == 3
    body["metadata"]["name"] = "short"
    body["spec"]["length"] = 0
    refused(422, custom.create_namespaced_custom_object, *where, body)
    status = custom.patch_namespaced_custom_object_status(*where, "monty", {"status": {"fed": True}})
    assert status["status"] == {"fed": True}
    extensions.delete_custom_resource_definition("pythons.example.test")
    eventually("its instances are gone with it", lambda: not served())


def who_may_what():
    review = client.V1SelfSubjectAccessReview(spec=client.V1SelfSubjectAccessReviewSpec(
        resource_attributes=client.V1ResourceAttributes(verb="delete", resource="nodes")))
    assert client.AuthorizationV1Api(api).create_self_subject_access_review(review).status.allowed
    eventually("the account exists", lambda: "default" in [a.metadata.name for a in core.list_namespaced_service_account(NAMESPACE).items])
    token = core.create_namespaced_service_account_token("default", NAMESPACE, client.AuthenticationV1TokenRequest(
        spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))).status.token
    own = client.Configuration.get_default_copy()
    own.api_key = {"authorization": token}
    own.api_key_prefix = {"authorization": "Bearer"}
    own.cert_file = own.key_file = None
    account = client.ApiClient(own)
    who = client.AuthenticationV1Api(account).create_self_subject_review(client.V1SelfSubjectReview())
    assert who.status.user_info.username == f"system:serviceaccount:{NAMESPACE}:default", who
    refused(403, client.CoreV1Api(account).list_namespaced_secret, NAMESPACE)


core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
eventually("pods can be created", lambda: core.list_namespaced_service_account(NAMESPACE).items)
anything = dynamic.DynamicClient(api)
for sample in SAMPLES:
    every_verb(anything, *sample)
for check in [a_watch_while_things_change, pages, scale_and_status, custom_resources, who_may_what]:
    check()
core.delete_namespace(NAMESPACE)
eventually("the namespace is gone", lambda: NAMESPACE not in [n.metadata.name for n in core.list_namespace().items])
print(f"{len(SAMPLES)} kinds and more: as expected")
