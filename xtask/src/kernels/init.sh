#!/bin/sh
# The first process of the machine that runs the tests: what they find on an ordinary machine, then they themselves.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
# What the kernel asks for by itself it gets; the rest is loaded by whoever uses it elsewhere.
for module in veth vxlan dummy ifb bridge 8021q; do modprobe "$module"; done
ulimit -l unlimited
ulimit -n 65536
echo "kernel $(uname -r)"
cd /tmp && xargs -a /arguments /test
echo "tests ended with $?"
poweroff -f
