"""A host that reboots, as near as one host can act it: everything is killed at once, everything in
the kernel and below /run is gone, and what systemd's units start comes up in their order."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import leftovers
from case import case
from world import BIN, IMAGE, REPOSITORY, expect, run, wait_for

COUNTER = """
n=$(cat /data/boots 2>/dev/null || echo 0)
sha256sum -c /data/sum || exit 9
echo $((n + 1)) >/data/boots; sync -f /data; exec sleep 600
"""


def power_off(w):
    """What is on disk stays; processes, mounts, loop devices and /run do not."""
    w.take_notes()
    # The daemons at once, as power would end them: none may see the other go and tidy up.
    for key in ("dockerd", "peplosd", "holder"):
        w.processes[key].send_signal(signal.SIGKILL)
    leftovers.end_processes(w.paths)
    for process in w.processes.values():
        process.wait(10)
    w.processes.clear()
    leftovers.sweep_kernel(w.paths, w.fuse_connections, w.containers)
    if not leftovers.mount_lines([w.run_dir]):
        shutil.rmtree(w.run_dir)
    Path(f"/run/docker/plugins/{w.plugin}.sock").unlink(missing_ok=True)
    left = [line for line in leftovers.find(w.paths, w.fuse_connections)
            if line != f"file {w.root}"]
    expect(not left, f"not powered off: {left}")


def boot(w):
    """dockerd first, peplosd through its socket only, the holder as its unit wants it."""
    w.run_dir.mkdir(parents=True)
    w.start_holder()  # peplos-holder.service: Before=docker.service
    w.spawn("peplosd", "systemd-socket-activate", "--listen",
            f"/run/docker/plugins/{w.plugin}.sock", "--fdname=docker-plugin",
            BIN / "peplosd", "--config", w.config)
    wait_for("the socket unit", 10, Path(f"/run/docker/plugins/{w.plugin}.sock").exists)
    expect(not (w.run_dir / "api.sock").exists(), "peplosd runs already: nothing is shown")
    w.start_docker()


def is_back(w, name, boots):
    out = w.docker("exec", name, "cat", "/data/boots", check=False).stdout
    return out == f"{boots}\n"


@case(150)
def reboot(w):
    """--restart=always containers come back with their data: dockerd starts before peplosd does."""
    w.start()
    w.create("vol", size="512MiB")
    w.create("vol-xfs", size="512MiB", fs="xfs")
    for volume in ("vol", "vol-xfs"):
        w.shell(volume, "dd if=/dev/urandom of=/data/f bs=1M count=20 conv=fsync 2>/dev/null; "
                        "sha256sum /data/f >/data/sum; sync -f /data")
        w.docker("run", "-d", "--name", f"on-{volume}", "--restart", "always", "--network", "none",
                 "-v", f"{volume}:/data", IMAGE, "sh", "-c", COUNTER)
        wait_for("the container", 20, lambda v=volume: is_back(w, f"on-{v}", 1), 0.2)
    for boots in (2, 3):
        power_off(w)
        began = time.monotonic()
        boot(w)
        for volume in ("vol", "vol-xfs"):
            wait_for(f"the container on {volume} to be back", 40,
                     lambda v=volume: is_back(w, f"on-{v}", boots), 0.2)
        print(f"     boot {boots}: containers are back after {time.monotonic() - began:.1f} s",
              flush=True)
        holders = w.volume("vol")["holders"]
        expect(len(holders) == 1, f"holders of before the reboot: {holders}")
    w.docker("rm", "-f", "on-vol", "on-vol-xfs")
    wait_for("detach", 30, lambda: not w.volume_mounts(), 0.2)


@case(150)
def reboot_managed_plugin(w):
    """The same where the volume comes from the managed plugin, which dockerd starts by itself."""
    w.start()
    name = "peplosmanaged"
    w.add_managed_plugin(name)
    w.docker("volume", "create", "-d", name, "-o", "size=512MiB", "vol")
    w.shell("vol", "echo x >/data/f; sha256sum /data/f >/data/sum; sync -f /data")
    w.docker("run", "-d", "--name", "on-vol", "--restart", "always", "--network", "none", "-v",
             "vol:/data", IMAGE, "sh", "-c", COUNTER)
    wait_for("the container", 20, lambda: is_back(w, "on-vol", 1), 0.2)
    power_off(w)
    w.run_dir.mkdir(parents=True)
    # peplosd.service has Before=docker.service and Type=notify: it serves when dockerd starts.
    w.start_holder()
    w.start_daemon()
    w.start_docker()
    wait_for("the container to be back", 40, lambda: is_back(w, "on-vol", 2), 0.2)
    w.docker("rm", "-f", "on-vol")
    wait_for("detach", 30, lambda: not w.volume_mounts(), 0.2)


def unit(name):
    """[(section, key, value)] of a unit file."""
    section, found = "", []
    for line in (REPOSITORY / "deploy/systemd" / name).read_text().splitlines():
        if re.match(r"\[.*\]$", line):
            section = line[1:-1]
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found += [(section, key, word) for word in value.split()]
    return found


@case(20)
def units_say_the_order(w):
    """The units give the order that `reboot` acts, and the installed names are theirs."""
    del w
    socket, holder, daemon = (unit(name) for name in (
        "peplos-docker.socket", "peplos-holder.service", "peplosd.service"))
    for what, found in (("socket", socket), ("holder", holder), ("daemon", daemon)):
        expect(("Unit", "Before", "docker.service") in found, f"{what} is not before docker")
    expect(("Socket", "Service", "peplosd.service") in socket, "the socket starts no peplosd")
    expect(("Socket", "ListenStream", "/run/docker/plugins/peplos.sock") in socket, "other path")
    expect(("Socket", "SocketMode", "0600") in socket, "the socket is not root's alone")
    expect(("Install", "WantedBy", "sockets.target") in socket, "the socket is not wanted")
    # A socket before docker.service and a daemon that waits for docker would wait for each other.
    for what in ("After", "Requires", "Wants", "BindsTo", "PartOf"):
        expect(("Unit", what, "docker.service") not in daemon + holder + socket,
               f"{what}=docker.service: a circle")
    expect(("Unit", "After", "peplos-holder.service") in daemon, "not after the holder")
    expect(("Unit", "Wants", "peplos-holder.service") in daemon, "the holder is not wanted")
    # Stopping the daemon must not stop the holder, nor the socket.
    for what in ("PartOf", "BindsTo", "Requires", "Requisite"):
        for found in (socket, holder):
            expect(("Unit", what, "peplosd.service") not in found, f"{what}=peplosd.service")
    expect(("Service", "Type", "notify") in daemon, "docker would not wait until it serves")
    expect(os.access("/usr/bin/systemd-socket-activate", os.X_OK), "systemd is not installed")
