#!/usr/bin/env python3
"""Measures the control store on an etcd of its own: creations of volume records per second, and the
size of etcd's file afterwards, before and after compaction.

Usage: bench/control.py [--volumes N] [--depth N] [--dir DIR] [--program FILE]
"""
import argparse
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def etcdctl(url, *words):
    done = subprocess.run(["etcdctl", "--command-timeout=60s", "--endpoints", url, *words],
                          capture_output=True, text=True, timeout=120, check=True,
                          env=dict(os.environ, ETCDCTL_API="3"))
    return done.stdout


def status(url):
    return json.loads(etcdctl(url, "endpoint", "status", "-w", "json"))[0]["Status"]


def wait_until_healthy(url):
    for _ in range(200):
        try:
            etcdctl(url, "endpoint", "health")
            return
        except subprocess.SubprocessError:
            time.sleep(0.1)
    raise SystemExit("etcd does not serve")


def measure(options, folder):
    url, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    etcd = subprocess.Popen(
        ["etcd", "--name", "m0", "--data-dir", f"{folder}/m0", "--log-level", "error", "--logger",
         "zap", "--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls",
         peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"m0={peer}"])
    try:
        wait_until_healthy(url)
        done = subprocess.run(
            [options.program, "--etcd", url, "--volumes", str(options.volumes), "--depth",
             str(options.depth)], stdout=subprocess.PIPE, check=True, timeout=1800)
        out = json.loads(done.stdout)
        before = status(url)
        etcdctl(url, "compact", str(before["header"]["revision"]))
        etcdctl(url, "defrag")
        after = status(url)
        out |= {"etcd_bytes": before["dbSize"], "etcd_bytes_compacted": after["dbSize"]}
        return out
    finally:
        etcd.kill()
        etcd.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--volumes", type=int, default=100_000)
    parser.add_argument("--depth", type=int, default=32)
    parser.add_argument("--dir", default="/var/tmp")
    parser.add_argument("--program", default=f"{ROOT}/build/release/src/peplos-bench-store")
    options = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="peplos-control-", dir=options.dir)
    try:
        print(json.dumps(measure(options, folder), indent=1))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
