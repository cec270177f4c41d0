"""The control store on an etcd: a volume's round trip, and what goes on while etcd is away."""

import json
import signal
import socket
import time

from case import case
from cases_crash import end_writer, records, start_writer
from world import BIN, UnixHttp, expect, run, wait_for


class Etcd:
    """One etcd in the case's world."""

    def __init__(self, w):
        self.w = w
        ports = []
        for _ in range(2):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                ports.append(probe.getsockname()[1])
        self.url, self.peer = (f"http://127.0.0.1:{port}" for port in ports)

    def configure(self):
        self.w.config.write_text(self.w.config.read_text() + f"""
[control]
kind = "etcd"
endpoints = ["{self.url}"]
prefix = "/peplos/{self.w.plugin}/"
""")

    def start(self):
        self.w.spawn("etcd", "etcd", "--name", "m0", "--data-dir", self.w.root / "etcd",
                     "--log-level", "error", "--logger", "zap", "--listen-client-urls", self.url,
                     "--advertise-client-urls", self.url, "--listen-peer-urls", self.peer,
                     "--initial-advertise-peer-urls", self.peer, "--initial-cluster",
                     f"m0={self.peer}")
        wait_for("etcd", 30, lambda: run("curl", "-sf", f"{self.url}/health",
                                         check=False).returncode == 0)

    def signal(self, number):
        self.w.processes["etcd"].send_signal(number)


def plugin_call(w, call, volume, seconds=20):
    """What dockerd would ask; the answer's Err and the seconds that it took."""
    began = time.monotonic()
    connection = UnixHttp(f"/run/docker/plugins/{w.plugin}.sock", seconds)
    connection.request("POST", f"/VolumeDriver.{call}",
                       json.dumps({"Name": volume, "ID": "0" * 64}))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer.get("Err", ""), time.monotonic() - began


def expect_clear_refusal(w, call, volume):
    error, seconds = plugin_call(w, call, volume)
    print(f"     {call} without etcd: {seconds:.2f} s: {error}", flush=True)
    expect("control store" in error or "etcd" in error, f"{call} {volume} says: {error!r}")
    expect(seconds < 5, f"{call} {volume} took {seconds:.2f} s")


@case(240)
def volume_on_etcd(w):
    """create, write, kill -9 of peplosd, read, remove; a second node is kept off the store."""
    etcd = Etcd(w)
    etcd.configure()
    etcd.start()
    w.start()
    w.create("vol", size="512MiB")
    w.shell("vol", "echo hello >/data/file; sync -f /data")
    w.restart_daemon()
    expect(w.shell("vol", "cat /data/file").stdout == "hello\n", "the file is gone")
    other = w.root / "other.toml"
    other.write_text(w.config.read_text().replace(f'"{w.root}/state"', f'"{w.root}/state2"')
                     .replace(f'"{w.run_dir}"', f'"{w.run_dir}/b"')
                     .replace(f'path = "{w.device_path}"', f'path = "{w.root}/device2"'))
    refused = run(BIN / "peplosd", "--config", other, "--plugin-socket", w.root / "other.sock",
                  check=False)
    expect(refused.returncode == 78 and "belongs to the node" in refused.stderr,
           f"a second node: {refused.returncode} {refused.stderr}")
    w.docker("volume", "rm", "vol")
    expect(w.api("GET", "/v1/volumes/vol")[0] == 404, "the volume is still there")


@case(300)
def etcd_dies_and_hangs_under_load(w):
    """kill -9 and SIGSTOP of etcd under a syncing writer: its I/O goes on without a pause, what
    needs the store says so within 5 s, and everything works when etcd is back."""
    etcd = Etcd(w)
    etcd.configure()
    etcd.start()
    w.start()
    w.create("vol", size="1GiB")
    w.create("idle", size="256MiB")
    start_writer(w, "vol")
    w.kill("etcd")
    before = records(w)
    wait_for("records without etcd", 20, lambda: records(w) > before + 20, 0.2)
    expect_clear_refusal(w, "Mount", "idle")
    expect_clear_refusal(w, "Create", "new")
    expect_clear_refusal(w, "Remove", "idle")
    etcd.start()
    w.create("new", size="256MiB")
    w.shell("idle", "echo 1 >/data/file; sync -f /data")
    etcd.signal(signal.SIGSTOP)
    before = records(w)
    expect_clear_refusal(w, "Mount", "idle")
    expect_clear_refusal(w, "Create", "newer")
    wait_for("records while etcd hangs", 20, lambda: records(w) > before + 20, 0.2)
    etcd.signal(signal.SIGCONT)
    wait_for("etcd to serve again", 20,
             lambda: w.shell("idle", "cat /data/file", check=False).stdout == "1\n", 0.5)
    w.create("newer", size="256MiB")
    end_writer(w, "vol", pause_max=3.0)


@case(240)
def store_moves_to_etcd(w):
    """A node with a file as its store, a container writing: with [control] in the configuration the
    next start moves everything into etcd, and the container sees a pause."""
    etcd = Etcd(w)
    etcd.start()
    w.start()
    w.create("vol", size="1GiB")
    start_writer(w, "vol")
    etcd.configure()
    w.restart_daemon()
    expect((w.root / "state/control.db.moved").exists(), "the old file was not set aside")
    expect(not (w.root / "state/control.db").exists(), "the old file is still there")
    before = records(w)
    wait_for("records", 20, lambda: records(w) > before + 5, 0.2)
    w.restart_daemon()
    end_writer(w, "vol")
