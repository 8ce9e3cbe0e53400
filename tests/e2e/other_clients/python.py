"""What programs do with pods through the Python client: run commands in them, talk to them, read their logs, forward
ports to them, copy files, resize and evict them. Any surprise is an exception, and ends the script with an error."""

import gzip
import io
import json
import select
import socket
import sys
import tarfile
import threading
import time

from kubernetes import client, config, watch
from kubernetes.client import ApiException
from kubernetes.stream import portforward, stream
from kubernetes.stream.ws_client import ERROR_CHANNEL

NAMESPACE = sys.argv[1]
IMAGE = "windlass.dev/busybox:dev"
config.load_kube_config()
# Streams take the client's requests over: each gets a client of its own.
core = client.CoreV1Api(client.ApiClient())


def own_core():
    return client.CoreV1Api(client.ApiClient())


def pod(name, command, **more):
    container = {"name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", command]}
    container.update(more)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"run": name}},
            "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}}


def started(manifest):
    name = manifest["metadata"]["name"]
    core.create_namespaced_pod(NAMESPACE, manifest)
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespaced_pod, NAMESPACE, field_selector=f"metadata.name={name}", timeout_seconds=60):
        statuses = event["object"].status.container_statuses or []
        if statuses and all(status.ready for status in statuses):
            watcher.stop()
            return name
    raise AssertionError(f"{name} does not start")


def run(name, command, call="get", **more):
    options = dict(command=command, stderr=True, stdin=False, stdout=True, tty=False)
    options.update(more)
    connect = getattr(own_core(), f"connect_{call}_namespaced_pod_exec")
    return stream(connect, name, NAMESPACE, **options)


def commands(name):
    assert run(name, ["sh", "-c", "echo 1; echo 2; echo 3"]).split() == ["1", "2", "3"]
    squeezed = run(name, ["sh", "-c", "printf squeezed | gzip"], call="post", stderr=False, binary=True)
    assert gzip.decompress(squeezed) == b"squeezed", squeezed
    for command, code in [(["true"], 0), (["false"], 1), (["sh", "-c", "sleep 1; exit 3"], 3)]:
        running = run(name, command, _preload_content=False)
        assert running.returncode is None
        running.run_forever(timeout=20)
        assert running.returncode == code, (command, running.returncode)
    try:
        run(name, ["/none/such"])
    except ApiException as error:
        raise AssertionError("a command that is not there is no reason to refuse the connection") from error
    sized = run(name, ["sh", "-c", "until stty size | grep '37 91'; do :; done"], stdin=True, tty=True, _preload_content=False)
    sized.write_channel(4, json.dumps({"Width": 91, "Height": 37}))
    sized.run_forever(timeout=20)
    assert sized.returncode == 0, "the terminal has another size"


def conversation(name, binary):
    text = (lambda line: line.encode()) if binary else (lambda line: line)
    shell = run(name, ["sh"], call="post", stdin=True, binary=binary, _preload_content=False)
    shell.write_stdin(text("echo to one\n"))
    assert shell.readline_stdout(timeout=10) == text("to one")
    assert not shell.peek_stderr()
    shell.write_stdin(text("echo to two >&2\n"))
    assert shell.readline_stderr(timeout=10) == text("to two")
    assert not shell.peek_stdout()
    shell.write_stdin(text("exit\n"))
    verdict = shell.read_channel(ERROR_CHANNEL, timeout=10)
    assert json.loads(verdict)["status"] == "Success", verdict
    shell.update(timeout=5)
    assert not shell.is_open()


def end_of_input(name):
    cat = run(name, ["cat"], call="post", stdin=True, _preload_content=False)
    if cat.subprotocol != "v5.channel.k8s.io":
        cat.close()
        return
    cat.write_stdin("last words\n")
    assert cat.readline_stdout(timeout=10) == "last words"
    cat.close_channel(0)
    cat.run_forever(timeout=20)
    assert not cat.is_open() and cat.returncode == 0, cat.returncode


def copies(name):
    data = bytes(range(256)) * 4096
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("folder/file")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    into = run(name, ["tar", "xf", "-", "-C", "/tmp"], stdin=True, binary=True, _preload_content=False)
    whole = archive.getvalue()
    for at in range(0, len(whole), 1 << 16):
        into.write_stdin(whole[at:at + (1 << 16)])
    # Not every version of the protocol can say that this is all.
    if into.subprotocol == "v5.channel.k8s.io":
        into.close_channel(0)
        into.run_forever(timeout=20)
        assert into.returncode == 0
    else:
        into.update(timeout=5)
        into.close()
    out = run(name, ["tar", "cf", "-", "-C", "/tmp", "folder"], stderr=False, binary=True)
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert tar.extractfile("folder/file").read() == data


def logs_and_attach():
    name = started(pod("talker", "echo hello; while read line; do echo said $line; done", stdin=True))
    assert core.read_namespaced_pod_log(name, NAMESPACE) == "hello\n"
    lines = []
    follow = own_core().read_namespaced_pod_log(name, NAMESPACE, follow=True, _preload_content=False)
    reader = threading.Thread(target=lambda: lines.extend(line.decode() for line in follow))
    reader.start()
    attached = stream(own_core().connect_get_namespaced_pod_attach, name, NAMESPACE, container="main",
                      stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False)
    attached.write_stdin("yes\n")
    assert attached.readline_stdout(timeout=10) == "said yes"
    attached.close()
    core.delete_namespaced_pod(name, NAMESPACE)
    reader.join(timeout=30)
    assert lines == ["hello\n", "said yes\n"], lines


def forwarded_ports():
    serve = "nc -ll -p 1234 -e cat & exec nc -ll -p 1235 -e cat"
    name = started(pod("ports", serve, startupProbe={"tcpSocket": {"port": 1235}, "periodSeconds": 1, "failureThreshold": 30}))
    for turn in range(3):
        forward = portforward(own_core().connect_get_namespaced_pod_portforward, name, NAMESPACE, ports="1234,1235,1236")
        assert forward.connected
        both = {port: forward.socket(port) for port in (1234, 1235)}
        wanted = {port: f"turn {turn} to {port}".encode() for port in both}
        for port, end in both.items():
            end.setblocking(True)
            end.sendall(wanted[port])
        got = {port: b"" for port in both}
        deadline = time.monotonic() + 30
        while got != wanted:
            assert time.monotonic() < deadline, got
            for port, end in both.items():
                if select.select([end], [], [], 0.1)[0]:
                    received = end.recv(1024)
                    assert received, f"{port} is closed"
                    got[port] += received
        nobody = forward.socket(1236)
        nobody.setblocking(True)
        assert nobody.recv(1024) == b"" and forward.error(1236)
        nobody.close()
        for end in both.values():
            assert forward.connected
            end.close()
        deadline = time.monotonic() + 20
        while forward.connected:
            assert time.monotonic() < deadline, "the connection outlives its sockets"
            time.sleep(0.1)
        assert forward.error(1234) is None and forward.error(1235) is None


def pages_over_http():
    name = started(pod("pages", "mkdir /www; echo welcome > /www/index.html; exec httpd -f -p 80 -h /www",
                       readinessProbe={"tcpSocket": {"port": 80}, "periodSeconds": 1}))
    forward = portforward(own_core().connect_get_namespaced_pod_portforward, name, NAMESPACE, ports="80")
    end = forward.socket(80)
    end.setblocking(True)
    end.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while received := end.recv(4096):
        answer += received
    assert answer.endswith(b"welcome\n"), answer
    through_proxy = core.connect_get_namespaced_pod_proxy_with_path(name, NAMESPACE, "index.html")
    assert through_proxy == "welcome\n", through_proxy


def changes(name):
    debugger = {"spec": {"ephemeralContainers": [{"name": "debugger", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                                                   "command": ["sh", "-c", "echo look"]}]}}
    core.patch_namespaced_pod_ephemeralcontainers(name, NAMESPACE, debugger)
    deadline = time.monotonic() + 30
    while True:
        statuses = core.read_namespaced_pod(name, NAMESPACE).status.ephemeral_container_statuses or []
        if statuses and statuses[0].state.terminated:
            break
        assert time.monotonic() < deadline, statuses
        time.sleep(0.2)
    assert core.read_namespaced_pod_log(name, NAMESPACE, container="debugger") == "look\n"
    core.create_namespaced_pod_eviction(name, NAMESPACE, {"metadata": {"name": name}})
    while any(found.metadata.name == name for found in core.list_namespaced_pod(NAMESPACE).items):
        assert time.monotonic() < deadline, "the evicted pod stays"
        time.sleep(0.2)


NAME = started(pod("shell", "echo ready; exec sleep 100000"))
commands(NAME)
for binary in (False, True):
    conversation(NAME, binary)
end_of_input(NAME)
copies(NAME)
logs_and_attach()
forwarded_ports()
pages_over_http()
changes(NAME)
print("pods: as expected")
