// What programs do with the JavaScript client: typed calls, untyped objects, watches, informers, patches.
// Any surprise is an exception, and ends the script with an error.

import assert from 'node:assert/strict';
import * as k8s from '@kubernetes/client-node';

const NAMESPACE = 'javascript-client';
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const apps = config.makeApiClient(k8s.AppsV1Api);
const objects = k8s.KubernetesObjectApi.makeApiClient(config);

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function eventually(what, probe) {
    for (const deadline = Date.now() + 30_000; Date.now() < deadline; await pause(100)) {
        if (await probe()) return;
    }
    assert.fail(`not within 30 s: ${what}`);
}

async function refused(code, call) {
    await assert.rejects(call, (error) => {
        assert.equal(error.code, code, error.message);
        return true;
    });
}

function configMap(name, data) {
    return { apiVersion: 'v1', kind: 'ConfigMap', metadata: { name, namespace: NAMESPACE, labels: { by: 'js' } }, data };
}

async function typedCalls() {
    const namespace = NAMESPACE;
    const made = await core.createNamespacedConfigMap({ namespace, body: configMap('typed', { a: '1' }) });
    assert.ok(made.metadata.creationTimestamp instanceof Date);
    await refused(409, () => core.createNamespacedConfigMap({ namespace, body: configMap('typed') }));
    const merge = k8s.setHeaderOptions('Content-Type', k8s.PatchStrategy.MergePatch);
    const patched = await core.patchNamespacedConfigMap({ name: 'typed', namespace, body: { data: { b: '2' } } }, merge);
    assert.deepEqual(patched.data, { a: '1', b: '2' });
    const json = [{ op: 'remove', path: '/data/a' }];
    const cut = await core.patchNamespacedConfigMap({ name: 'typed', namespace, body: json });
    assert.deepEqual(cut.data, { b: '2' });
    const list = await core.listNamespacedConfigMap({ namespace, labelSelector: 'by=js' });
    assert.deepEqual(list.items.map((item) => item.metadata.name), ['typed']);
    await core.deleteNamespacedConfigMap({ name: 'typed', namespace });
    await refused(404, () => core.readNamespacedConfigMap({ name: 'typed', namespace }));
}

async function untypedObjects() {
    const body = {
        apiVersion: 'apps/v1', kind: 'Deployment', metadata: { name: 'untyped', namespace: NAMESPACE },
        spec: {
            replicas: 1, selector: { matchLabels: { app: 'x' } },
            template: { metadata: { labels: { app: 'x' } }, spec: { containers: [{ name: 'c', image: 'example.test/i:1' }] } },
        },
    };
    await objects.create(body);
    const read = await objects.read(body);
    assert.equal(read.spec.strategy.type, 'RollingUpdate');
    const applied = await objects.patch(
        { ...body, spec: { ...body.spec, replicas: 2 } }, undefined, undefined, 'js', true, k8s.PatchStrategy.ServerSideApply);
    assert.equal(applied.spec.replicas, 2);
    await eventually('both pods exist', async () =>
        (await core.listNamespacedPod({ namespace: NAMESPACE, labelSelector: 'app=x' })).items.length === 2);
    const all = await objects.list('apps/v1', 'Deployment', NAMESPACE);
    assert.equal(all.items.length, 1);
    const scale = await apps.readNamespacedDeploymentScale({ name: 'untyped', namespace: NAMESPACE });
    assert.equal(scale.spec.replicas, 2);
    await objects.delete(body);
    await eventually('it is gone', async () => (await objects.list('apps/v1', 'Deployment', NAMESPACE)).items.length === 0);
}

async function anInformer() {
    const path = `/api/v1/namespaces/${NAMESPACE}/configmaps`;
    const list = () => core.listNamespacedConfigMap({ namespace: NAMESPACE, labelSelector: 'by=js' });
    const informer = k8s.makeInformer(config, path, list, 'by=js');
    const seen = [];
    for (const kind of ['add', 'update', 'delete']) {
        informer.on(kind, (object) => seen.push(`${kind} ${object.metadata.name} ${object.data?.n}`));
    }
    informer.on('error', (error) => assert.fail(error));
    await core.createNamespacedConfigMap({ namespace: NAMESPACE, body: configMap('before', { n: '0' }) });
    await informer.start();
    await core.createNamespacedConfigMap({ namespace: NAMESPACE, body: configMap('after', { n: '1' }) });
    const changed = configMap('after', { n: '2' });
    await core.replaceNamespacedConfigMap({ name: 'after', namespace: NAMESPACE, body: changed });
    await core.deleteNamespacedConfigMap({ name: 'after', namespace: NAMESPACE });
    await eventually('the informer has seen all', () => seen.length >= 4);
    assert.deepEqual(seen, ['add before 0', 'add after 1', 'update after 2', 'delete after 2']);
    // It ends with the process: stopping it is an error of its own in some versions of the client.
}

async function whoAmI() {
    const api = config.makeApiClient(k8s.AuthenticationV1Api);
    const review = await api.createSelfSubjectReview({ body: {} });
    assert.equal(review.status.userInfo.username, 'kubernetes-admin');
    const version = await config.makeApiClient(k8s.VersionApi).getCode();
    assert.equal(version.major, '1');
}

await core.createNamespace({ body: { metadata: { name: NAMESPACE } } });
await eventually('pods can be created', async () =>
    (await core.listNamespacedServiceAccount({ namespace: NAMESPACE })).items.length > 0);
for (const check of [typedCalls, untypedObjects, anInformer, whoAmI]) {
    await check();
}
await core.deleteNamespace({ name: NAMESPACE });
await eventually('the namespace is gone', async () =>
    !(await core.listNamespace()).items.some((item) => item.metadata.name === NAMESPACE));
console.log('typed calls, untyped objects, an informer and reviews: as expected');
process.exit(0);
