// What programs do with pods through the JavaScript client: run commands in them, attach, copy files, forward ports,
// follow logs and read what they use. Any surprise is an exception, and ends the script with an error.

import assert from 'node:assert/strict';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { PassThrough } from 'node:stream';
import * as k8s from '@kubernetes/client-node';

const NAMESPACE = process.argv[2];
const IMAGE = 'windlass.dev/busybox:dev';
const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

async function eventually(what, probe) {
    for (const deadline = Date.now() + 60_000; Date.now() < deadline; await pause(100)) {
        const found = await probe();
        if (found) return found;
    }
    assert.fail(`not within 60 s: ${what}`);
}

// What a stream has said so far.
function collector() {
    const stream = new PassThrough();
    stream.text = '';
    stream.on('data', (chunk) => { stream.text += chunk; });
    return stream;
}

function pod(name, command, more = {}) {
    const container = { name: 'main', image: IMAGE, imagePullPolicy: 'IfNotPresent', command: ['sh', '-c', command], ...more };
    return { metadata: { name, labels: { run: name } }, spec: { terminationGracePeriodSeconds: 0, containers: [container] } };
}

async function started(body) {
    const name = body.metadata.name;
    await core.createNamespacedPod({ namespace: NAMESPACE, body });
    await eventually(`${name} is ready`, async () => {
        const { status } = await core.readNamespacedPod({ name, namespace: NAMESPACE });
        return status.containerStatuses?.every((container) => container.ready);
    });
    return name;
}

async function commands(name) {
    const [out, err] = [collector(), collector()];
    const status = await new Promise((resolve, reject) => {
        new k8s.Exec(config).exec(
            NAMESPACE, name, 'main', ['sh', '-c', 'echo to one; echo to two >&2; exit 7'], out, err, null, false, resolve).catch(reject);
    });
    assert.equal(status.status, 'Failure');
    assert.equal(status.details.causes[0].message, '7');
    await eventually('both streams are read', () => out.text === 'to one\n' && err.text === 'to two\n');

    const [input, heard] = [new PassThrough(), collector()];
    const ended = new Promise((resolve, reject) => {
        const command = ['sh', '-c', 'read word; echo "heard $word"'];
        new k8s.Exec(config).exec(NAMESPACE, name, 'main', command, heard, collector(), input, false, resolve).catch(reject);
    });
    input.write('something\n');
    assert.equal((await ended).status, 'Success');
    await eventually('what was typed is heard', () => heard.text === 'heard something\n');
}

// To the pod only: what this version of the client copies from a pod it packs, and then does not unpack.
async function files(name) {
    const local = fs.mkdtempSync(path.join(os.tmpdir(), 'windlass-cp-'));
    fs.mkdirSync(path.join(local, 'folder'));
    fs.writeFileSync(path.join(local, 'folder', 'file'), 'x'.repeat(300_000));
    await new k8s.Cp(config).cpToPod(NAMESPACE, name, 'main', local, '/tmp');
    await eventually('the file is in the pod', async () => {
        const out = collector();
        await new Promise((resolve, reject) => {
            const command = ['wc', '-c', '/tmp/folder/file'];
            new k8s.Exec(config).exec(NAMESPACE, name, 'main', command, out, collector(), null, false, resolve).catch(reject);
        });
        return out.text.startsWith('300000 ');
    });
    fs.rmSync(local, { recursive: true });
}

async function attachAndLogs() {
    const name = await started(pod('js-talker', 'echo hello; while read line; do echo said $line; done', { stdin: true }));
    const followed = collector();
    await new k8s.Log(config).log(NAMESPACE, name, 'main', followed, { follow: true });
    const [input, heard] = [new PassThrough(), collector()];
    const socket = await new k8s.Attach(config).attach(NAMESPACE, name, 'main', heard, collector(), input, false);
    input.write('yes\n');
    await eventually('the pod answers', () => heard.text.includes('said yes\n'));
    await eventually('its log says so', () => followed.text === 'hello\nsaid yes\n');
    socket.close();
}

async function ports() {
    const page = 'mkdir /www; echo welcome > /www/index.html; exec httpd -f -p 8080 -h /www';
    const name = await started(pod('js-pages', page, { readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 } }));
    const forward = new k8s.PortForward(config);
    const server = net.createServer((socket) => forward.portForward(NAMESPACE, name, [8080], socket, null, socket));
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    for (let turn = 0; turn < 3; turn += 1) {
        const answer = await new Promise((resolve, reject) => {
            let text = '';
            const socket = net.createConnection({ port: server.address().port, host: '127.0.0.1' });
            socket.on('error', reject);
            socket.on('data', (chunk) => {
                text += chunk;
                if (text.includes('welcome')) { socket.destroy(); resolve(text); }
            });
            socket.write('GET / HTTP/1.0\r\n\r\n');
        });
        assert.match(answer, /^HTTP\/1.. 200 OK/);
    }
    server.close();
}

async function aWatch() {
    const seen = [];
    const controller = await new k8s.Watch(config).watch(
        `/api/v1/namespaces/${NAMESPACE}/pods`, { labelSelector: 'run=js-watched' },
        (phase, object) => seen.push(`${phase} ${object.metadata.name}`), () => {});
    await core.createNamespacedPod({ namespace: NAMESPACE, body: pod('js-watched', 'exec sleep 100000') });
    await eventually('its creation is seen', () => seen[0] === 'ADDED js-watched');
    await core.deleteNamespacedPod({ name: 'js-watched', namespace: NAMESPACE });
    await eventually('its end is seen', () => seen.at(-1) === 'DELETED js-watched');
    controller.abort();
}

async function usage(name) {
    const nodes = await k8s.topNodes(core);
    assert.ok(nodes.length > 0 && nodes[0].CPU.Capacity > 0);
    const pods = await k8s.topPods(core, { getPodMetrics: async () => ({ items: [] }) }, NAMESPACE);
    assert.ok(pods.some((used) => used.Pod.metadata.name === name));
}

const name = await started(pod('js-shell', 'echo ready; exec sleep 100000'));
for (const check of [commands, files, attachAndLogs, ports, aWatch, usage]) {
    await check(name);
}
console.log('pods: as expected');
process.exit(0);
