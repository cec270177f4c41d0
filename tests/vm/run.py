#!/usr/bin/env python3
"""The Debian package on a real system: systemd starts it, Docker uses it, the machine reboots.

Usage: tests/vm/run.py --deb FILE [--work FOLDER]. Needs root (mmdebstrap), qemu-system-x86_64.
"""

import argparse
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

from machine import Machine, MachineError, base_image, run

MOUNT_FILES = "mkdir -p /files; mountpoint -q /files || mount -o ro /dev/vdc /files"
COUNTER = """
n=$(cat /data/boots 2>/dev/null || echo 0)
sha256sum -c /data/sum || exit 9
echo $((n + 1)) >/data/boots; sync -f /data; exec sleep 3600
"""
WRITER = """
n=0
while echo $n >/data/n && sync -f /data; do n=$((n + 1)); sleep 0.1; done
echo "failed at $n" >/proc/1/fd/1; exit 9
"""


def expect(condition, what):
    if not condition:
        raise MachineError(what)


def counted(boots):
    return f'[ "$(docker exec counter cat /data/boots)" = {boots} ]'


def check_install(m):
    """The package installs, init makes the device, three units run and are enabled."""
    m.shell(MOUNT_FILES)
    m.shell("DEBIAN_FRONTEND=noninteractive apt-get -q -y install /files/*.deb", 300)
    state = m.try_shell("systemctl is-active peplosd")[1]
    expect(state == "inactive", f"peplosd before init: {state}")
    print(m.shell("peplos init --size 1GiB", 120))
    print(m.shell("peplos device add /dev/vdb", 120))
    for unit in ("peplosd.service", "peplos-holder.service", "peplos-docker.socket"):
        m.shell(f"systemctl is-active {unit} && systemctl is-enabled {unit}")
    print(m.shell("peplos status"))


def check_container(m):
    """A container that is always restarted writes to a volume."""
    m.shell("systemctl start docker", 120)
    m.shell("docker import --change 'ENTRYPOINT []' /files/image.tar test", 120)
    m.shell("docker volume create -d peplos -o size=512MiB vol", 120)
    m.shell("docker run --rm --network none -v vol:/data test sh -c 'dd if=/dev/urandom "
            "of=/data/f bs=1M count=16 conv=fsync; sha256sum /data/f >/data/sum; sync -f /data'",
            180)
    m.shell(f"cat >/root/counter <<'END'{COUNTER}END")
    m.shell("docker run -d --name counter --restart always --network none -v vol:/data "
            "-v /root/counter:/counter:ro test sh /counter", 120)
    m.wait_for("the container", counted(1), 60)
    print(m.shell("docker volume inspect vol --format '{{json .Status}}'"))


def check_restart(m):
    """systemctl restart and kill -9 of peplosd: a writer sees a pause and no error."""
    m.shell("docker volume create -d peplos -o size=256MiB writes", 120)
    m.shell(f"cat >/root/writer <<'END'{WRITER}END")
    m.shell("docker run -d --name writer --network none -v writes:/data "
            "-v /root/writer:/writer:ro test sh /writer", 120)
    grows = ('before=$(docker exec writer cat /data/n); sleep 2; '
             '[ "$(docker exec writer cat /data/n)" -gt "$before" ]')
    m.wait_for("a writer that goes on", grows, 60)
    for command in ("systemctl restart peplosd", "systemctl kill -s KILL peplosd"):
        pid = m.shell("systemctl show -P MainPID peplosd")
        m.shell(command, 90)
        m.wait_for("another peplosd", f'p=$(systemctl show -P MainPID peplosd); [ "$p" != {pid} ] '
                   '&& [ "$p" != 0 ] && systemctl is-active peplosd', 60)
        took = m.wait_for(f"a writer that goes on after {command}", grows, 60)
        print(f"{command}: the writer goes on, {took:.1f} s")
    said = m.shell("docker logs writer")
    expect(said == "", f"the writer failed: {said}")
    m.shell("docker rm -f writer && docker volume rm writes", 120)


def check_power_cut(m):
    """Power is cut: after the boot the container is back with its data, without hands."""
    m.power_cut()
    print(f"boot in {m.power_on():.0f} s")
    took = m.wait_for("the container after a power cut", counted(2), 180)
    print(f"the container is back {took:.0f} s later")


def check_reboot(m):
    """systemctl reboot: stops without hanging or errors, loses nothing that was not synced yet, and
    the container is back."""
    m.shell("docker exec counter sh -c 'echo kept >/data/unsynced'")
    print(f"stopped and booted in {m.reboot():.0f} s")
    m.wait_for("the container after a reboot", counted(3), 180)
    kept = m.shell("docker exec counter cat /data/unsynced")
    expect(kept == "kept", f"not written at the shutdown: {kept}")
    previous = m.shell("journalctl -b -1 --no-pager -o short-monotonic", 120)
    bad = [line for line in previous.splitlines()
           if re.search(r"stop-sigterm.*timed out|Failed unmounting|Unit process .* remains|"
                        r"I/O error|hung_task|blocked for more than", line)]
    stops = [line for line in previous.splitlines()
             if re.search(r" (systemd\[1\]|peplosd\[\d+\]|dockerd\[\d+\]|kernel): ", line)][-80:]
    expect(not bad, "the shutdown was not clean:\n" + "\n".join(bad + ["..."] + stops))


def check_clean(m):
    """No unit failed; doctor is content; nothing of ours complains in the journal."""
    failed = m.shell("systemctl --failed --no-legend --plain")
    expect(not re.search("peplos|docker", failed), failed)
    print(m.shell("peplos doctor", 60))
    log = m.shell("journalctl -b --no-pager -u peplosd -u peplos-holder -p warning")
    expect("rror" not in log, log)


def check_remove(m):
    """The package is not removed under a mounted volume; without one it goes, the data stay."""
    status, output = m.try_shell("DEBIAN_FRONTEND=noninteractive apt-get -q -y remove peplos", 120)
    expect(status != 0 and "still mounted" in output, f"removed: {output}")
    m.shell("docker exec counter sha256sum -c /data/sum")
    m.shell("docker rm -f counter", 60)
    m.wait_for("detach", "! grep -q /run/peplos/mnt/ /proc/self/mountinfo", 60)
    m.shell("DEBIAN_FRONTEND=noninteractive apt-get -q -y remove peplos", 120)
    state = m.try_shell("systemctl is-active peplosd peplos-holder peplos-docker.socket")[1]
    expect(" active" not in f" {state}".replace("inactive", "-"), f"after the removal: {state}")
    m.shell("test -e /var/lib/peplos && test -e /etc/peplos/peplosd.toml")
    m.shell(MOUNT_FILES)
    m.shell("DEBIAN_FRONTEND=noninteractive apt-get -q -y install /files/*.deb", 300)
    m.shell("systemctl start peplosd peplos-docker.socket && peplos volume ls | grep vol", 120)
    m.shell("docker run --rm --network none -v vol:/data test sha256sum -c /data/sum", 120)


STORY = [check_install, check_container, check_restart, check_power_cut, check_reboot, check_clean,
         check_remove]


def image_tar(folder):
    """A busybox image for `docker import`."""
    root = folder / "image"
    (root / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in run("/bin/busybox", "--list").split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    run("tar", "-C", root, "-cf", folder / "image.tar", ".")
    shutil.rmtree(root)


def depends(deb):
    """Names of the packages that a package needs, the first of each choice."""
    field = run("dpkg-deb", "-f", deb, "Depends")
    return [re.match(r"\s*([a-z0-9.+-]+)", one).group(1) for one in field.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deb", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="keeps the Debian image")
    options = parser.parse_args()
    passed = 0
    with tempfile.TemporaryDirectory(prefix="peplos-vm-") as folder:
        files = Path(folder) / "files"
        files.mkdir()
        shutil.copy(options.deb, files)
        image_tar(files)
        base = base_image(options.work, depends(options.deb))
        machine = Machine(base, Path(folder), files, 4 << 30)
        try:
            print(f"boot in {machine.power_on():.0f} s", flush=True)
            for check in STORY:
                began = time.monotonic()
                check(machine)
                passed += 1
                print(f"ok   {check.__name__} {time.monotonic() - began:.0f} s", flush=True)
        except (MachineError, OSError, ValueError) as error:
            # What follows would build on it: the story ends here.
            print(f"FAIL {STORY[passed].__name__ if passed < len(STORY) else ''} {error}")
            for command in ("journalctl -b --no-pager -n 60 -u 'peplos*' -u docker",
                            "dmesg | tail -n 20", "systemctl --failed"):
                try:
                    print(machine.try_shell(command, 60)[1])
                except (MachineError, OSError, ValueError):
                    print(machine.console())
                    break
        finally:
            machine.end()
    failed = 1 if passed < len(STORY) else 0
    print(f"{passed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
