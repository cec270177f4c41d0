#!/usr/bin/env python3
"""Measures what grows with the node: absolute figures, beside bench/run.py's ratios.

  restart  kill -9 under load with a full ring, --gib GiB live and 1 TiB mapped one block per leaf
  map      RAM of a 1 TiB volume mapped one block per leaf
  idle     a real peplosd with --volumes volumes: CPU and RAM when idle, creation, restart (root)

Usage: bench/scale.py CASE [--dir DIR] [--seconds S] [--rounds N] [--gib G] [--volumes N]
[--idle-seconds S] [--json FILE].
"""
import argparse
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

GIB = 1 << 30
TIB = 1 << 40


class UnixHttp(http.client.HTTPConnection):
    """REST over the daemon's unix socket, one connection for many calls."""

    def __init__(self, path):
        super().__init__("localhost", timeout=60)
        self.socket_path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.socket_path)

    def call(self, method, path, body=None):
        self.request(method, path, json.dumps(body) if body is not None else None,
                     {"Content-Type": "application/json"})
        answer = self.getresponse()
        content = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]}")
        return json.loads(content) if content else {}


def bench(program, *words, seconds=600, killed=False):
    """Runs peplos-bench; the object that it printed last."""
    done = subprocess.run([program, *map(str, words)], stdout=subprocess.PIPE, timeout=seconds)
    if done.returncode != (-signal.SIGKILL if killed else 0):
        raise RuntimeError(f"exit {done.returncode}: {words}")
    return json.loads(done.stdout.splitlines()[-1])


def restart(options, program, where):
    """kill -9 under load: a full ring, --gib GiB live, and 1 TiB mapped one block per leaf."""
    device = os.path.join(where, "device")
    volumes = ["--volume", options.gib * GIB, "--beside", TIB]
    bench(program, "prepare", "--file", device, "--bytes", options.gib * GIB * 4 // 3 + 6 * GIB,
          "--no-prezero", *volumes, seconds=1800)
    print("| round | ring bytes used | undrained | live GiB | device open s | serving after s |\n"
          "|---:|---:|---:|---:|---:|---:|", flush=True)
    rows = []
    for i in range(options.rounds):
        # More than the ring holds, so that no byte of it is blank; then what no drain took.
        bench(program, "run", "--file", device, *volumes, "--op", "write", "--random", "--qd", 32,
              "--seconds", options.seconds, "--undrained", 100 << 20, "--leave-dirty", killed=True)
        row = bench(program, "run", "--file", device, *volumes, "--seconds", 0)
        rows.append(row)
        print(f"| {i + 1} | {row['ring_used_bytes']:,} | {row['undrained_bytes']:,} | "
              f"{row['live_bytes'] / GIB:.1f} | {row['open_device_seconds']:.2f} | "
              f"{row['open_seconds']:.2f} |", flush=True)
    return rows


def map_memory(options, program, where):
    """RAM of a 1 TiB volume with one block in every leaf, with a leaf cache of 16 MiB."""
    device = os.path.join(where, "device")
    cache = 16 << 20
    volume = ["--volume", TIB, "--leaf-cache", cache]
    bench(program, "prepare", "--file", device, "--bytes", 5 * GIB, "--no-prezero",
          "--sparse", TIB, *volume, seconds=900)
    row = bench(program, "run", "--file", device, *volume, "--op", "read", "--random",
                "--bs", 4096, "--qd", 32, "--seconds", options.seconds)
    at_open, after = row["memory_at_open"], row["memory"]
    mib = 1 << 20
    print("| | map MiB | cached leaves MiB | process MiB |\n|---|---:|---:|---:|\n"
          f"| before open | - | - | {row['resident_bytes_before'] / mib:.1f} |")
    for name, memory in (("open", at_open), (f"after {row['operations']:,} random reads", after)):
        print(f"| {name} | {memory['map_bytes'] / mib:.2f} | "
              f"{memory['leaf_cache_used_bytes'] / mib:.1f} | "
              f"{memory['resident_bytes'] / mib:.1f} |")
    return row


class Node:
    """A holder and a peplosd in a folder of their own."""

    def __init__(self, where, build, device_bytes):
        self.where, self.build = where, build
        self.processes = {}
        self.run_dir = os.path.join(where, "run")
        self.socket = os.path.join(self.run_dir, "api.sock")
        os.makedirs(self.run_dir, exist_ok=True)
        self.config = os.path.join(where, "peplosd.toml")
        with open(self.config, "w", encoding="utf-8") as out:
            out.write(f'state_dir = "{where}/state"\nrun_dir = "{self.run_dir}"\n'
                      f'[plugin]\nname = "peplosbench{os.getpid()}"\n[api]\nport = 0\n'
                      f'[log]\nlevel = "warn"\n'
                      f'[[device]]\npath = "{where}/device"\nsize = "{device_bytes}"\n')

    def spawn(self, key, *words):
        with open(os.path.join(self.where, f"{key}.log"), "ab") as log:
            self.processes[key] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log,
                                                   stderr=log, start_new_session=True)

    def start(self):
        """The seconds until it answered."""
        if "holder" not in self.processes:
            holder = os.path.join(self.run_dir, "holder.sock")
            self.spawn("holder", os.path.join(self.build, "peplos-holder"), holder)
            while not os.path.exists(holder):
                time.sleep(0.01)
        began = time.monotonic()
        self.spawn("peplosd", os.path.join(self.build, "peplosd"), "--config", self.config)
        while time.monotonic() < began + 120:
            if self.processes["peplosd"].poll() is not None:
                raise RuntimeError(f"peplosd ended: see {self.where}/peplosd.log")
            try:
                UnixHttp(self.socket).call("GET", "/v1/status")
                return time.monotonic() - began
            except OSError:
                time.sleep(0.005)
        raise RuntimeError("peplosd does not serve")

    def end(self, key, how=signal.SIGKILL):
        process = self.processes.pop(key, None)
        if process is None:
            return
        process.send_signal(how)
        process.wait(60)

    def stop(self):
        self.end("peplosd", signal.SIGTERM)
        self.end("holder")
        # The daemon leaves it for its successor; without a daemon there is none.
        subprocess.run(["umount", os.path.join(self.run_dir, "mnt")], check=False, timeout=30,
                       stderr=subprocess.DEVNULL)

    def proc(self, name):
        with open(f"/proc/{self.processes['peplosd'].pid}/{name}", encoding="utf-8") as file:
            return file.read()

    def resident_mib(self):
        return int(self.proc("statm").split()[1]) * os.sysconf("SC_PAGESIZE") / (1 << 20)

    def cpu_seconds(self):
        fields = self.proc("stat").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(node, seconds):
    """CPU in percent of one core over `seconds`."""
    before = node.cpu_seconds()
    time.sleep(seconds)
    return (node.cpu_seconds() - before) / seconds * 100


def timed(call, *words):
    began = time.monotonic()
    call(*words)
    return time.monotonic() - began


def idle(options, program, where):
    """--volumes volumes of 16 TiB in a real peplosd: created, idle, restarted, listed, removed."""
    node = Node(where, os.path.dirname(program), "2GiB")
    out = {"volumes": options.volumes}
    try:
        node.start()
        print(f"| what ({options.volumes:,} volumes of 16 TiB) | figure |\n|---|---:|")

        def say(key, text, value, unit):
            out[key] = value
            print(f"| {text} | {value:,.2f} {unit} |", flush=True)

        say("empty_mib", "resident before", node.resident_mib(), "MiB")
        api = UnixHttp(node.socket)
        names = [f"v{i:06d}" for i in range(options.volumes)]
        began = time.monotonic()
        for name in names:
            api.call("POST", "/v1/volumes", {"name": name, "size": "16TiB"})
        say("create_s", "created, one after the other", time.monotonic() - began, "s")
        say("created_mib", "resident after", node.resident_mib(), "MiB")
        node.end("peplosd")
        say("restart_s", "serving after kill -9", node.start(), "s")
        say("restarted_mib", "resident then", node.resident_mib(), "MiB")
        time.sleep(5)
        say("idle_cpu_percent", f"CPU over {options.idle_seconds} s idle",
            watch(node, options.idle_seconds), "% of a core")
        api = UnixHttp(node.socket)
        say("list_s", "GET /v1/volumes", timed(api.call, "GET", "/v1/volumes"), "s")
        say("status_s", "GET /v1/status", timed(api.call, "GET", "/v1/status"), "s")
        began = time.monotonic()
        for name in names[:options.volumes // 10]:
            api.call("DELETE", f"/v1/volumes/{name}")
        say("remove_s", "a tenth of them removed", time.monotonic() - began, "s")
        say("end_mib", "resident at the end", node.resident_mib(), "MiB")
    finally:
        node.stop()
    return out


CASES = {"restart": restart, "map": map_memory, "idle": idle}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--dir", default=None, help="where the files go (default: a temporary one)")
    parser.add_argument("--seconds", type=int, default=10, help="of load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gib", type=int, default=16, help="live data of the case restart")
    parser.add_argument("--volumes", type=int, default=10_000)
    parser.add_argument("--idle-seconds", type=int, default=60)
    parser.add_argument("--json", help="write the rows here as well")
    options = parser.parse_args()
    program = os.path.join(ROOT, "build/release/src/peplos-bench")
    if not os.path.exists(program):
        sys.exit(f"{program} is missing: cmake --preset release && ninja -C build/release")
    where = tempfile.mkdtemp(prefix="peplos-scale-", dir=options.dir)
    try:
        rows = CASES[options.case](options, program, where)
        if options.json:
            with open(options.json, "w", encoding="utf-8") as out:
                json.dump(rows, out, indent=1)
    finally:
        shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    main()
