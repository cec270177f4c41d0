"""kill -9 of everything, at bad moments, under load that notices."""

import os
import re
import signal
import time

import leftovers
from case import case
from world import IMAGE, Failed, expect, wait_for

# Numbered records, each synced before the next. `read` is builtin: the uptime costs no process.
WRITER = """
i=0
while [ ! -e /data/stop ]; do
    read up rest </proc/uptime
    printf 'record %10d uptime %12s %-32s\\n' $i $up peplos |
        dd of=/data/records bs=72 conv=fsync,notrunc oflag=append 2>/data/err || exit 9
    i=$((i + 1))
done
echo $i >/data/count
sync -f /data
"""
READER = """
awk -v want="$(cat /data/count)" '
    { if ($1 != "record" || $2 + 0 != NR - 1) { print "bad record " NR ": " $0; exit 1 }
      if (NR > 1 && $4 - last > pause) pause = $4 - last
      last = $4 }
    END { if (NR != want) { print "records " NR ", written " want; exit 1 }
          printf "RESULT %d records, longest pause %.2f s\\n", NR, pause }' /data/records
"""


def start_writer(w, volume, name="writer", restart="no"):
    w.docker("run", "-d", "--name", name, "--restart", restart, "--network", "none", "-v",
             f"{volume}:/data", IMAGE, "sh", "-c", WRITER)
    wait_for("the first records", 20, lambda: records(w, name) > 5, 0.2)


def records(w, name="writer"):
    out = w.docker("exec", name, "wc", "-l", "/data/records", check=False).stdout
    return int(out.split()[0]) if out.split() and out.split()[0].isdigit() else 0


def end_writer(w, volume, name="writer", pause_max=10.0):
    w.docker("exec", name, "touch", "/data/stop")
    code = w.docker("wait", name, seconds=60).stdout.strip()
    expect(code == "0", f"the writer saw an error: exit {code}")
    w.docker("rm", name)
    out = w.shell(volume, READER).stdout
    print(f"     {volume}: {out.strip()}", flush=True)
    pause = float(re.search(r"pause ([0-9.]+)", out).group(1))
    expect(pause < pause_max, f"the pause was {pause} s")


def daemon_dies_five_times(w, fs):
    w.start()
    w.create("vol", size="1GiB", fs=fs)
    start_writer(w, "vol")
    slowest = 0.0
    for _ in range(5):
        before = records(w)
        slowest = max(slowest, w.restart_daemon())
        wait_for("more records", 20, lambda: records(w) > before + 3, 0.2)
    print(f"     slowest restart until serving: {slowest:.2f} s", flush=True)
    end_writer(w, "vol")


@case(240)
def kill_daemon_under_load_ext4(w):
    """kill -9 of peplosd five times under a syncing writer: a pause, no error, nothing lost."""
    daemon_dies_five_times(w, "ext4")


@case(240)
def kill_daemon_under_load_xfs(w):
    """The same on xfs."""
    daemon_dies_five_times(w, "xfs")


@case(120)
def clean_stop_and_start(w):
    """SIGTERM ends peplosd with 0 while a container writes; the writer sees a pause."""
    w.start()
    w.create("vol", size="1GiB")
    start_writer(w, "vol")
    process = w.processes["peplosd"]
    w.restart_daemon(signal.SIGTERM)
    expect(process.returncode == 0, f"SIGTERM gave {process.returncode}")
    end_writer(w, "vol")


@case(180)
def kill_dockerd(w):
    """kill -9 of dockerd: containers that restart find their volume; nothing stays attached."""
    w.start()
    w.create("vol", size="1GiB")
    w.docker("run", "-d", "--name", "keeper", "--restart", "always", "--network", "none", "-v",
             "vol:/data", IMAGE, "sh", "-c",
             "echo started >>/data/log; sync -f /data; exec sleep 600")
    wait_for("the container", 20, lambda: w.docker("exec", "keeper", "cat", "/data/log",
                                                   check=False).stdout == "started\n", 0.2)
    for count in (2, 3):
        w.kill_dockerd()
        w.start_docker()
        wait_for("the container to return with its volume", 60, lambda: w.docker(
            "exec", "keeper", "cat", "/data/log", check=False).stdout == "started\n" * count, 0.5)
    expect(len(w.loop_devices()) == 1, f"loop devices: {w.loop_devices()}")
    w.docker("rm", "-f", "keeper")
    wait_for("detach", 30, lambda: not w.volume_mounts(), 0.2)


@case(180)
def kill_dockerd_at_any_moment(w):
    """kill -9 of dockerd while it creates, mounts, runs, unmounts, removes: afterwards everything
    works, what was synced is there, and nothing stays mounted."""
    w.start()
    w.create("vol", size="512MiB")
    w.shell("vol", "echo 0 >/data/log; sync -f /data")
    script = "echo $N >>/data/log; sync -f /data; echo written $N; sleep 0.2"
    written = []
    for turn in range(1, 7):
        busy = [w.spawn(f"busy{turn}", "sh", "-c",
                        f"docker -H unix://{w.docker_socket} run --rm -e N={turn} --network none "
                        f"-v vol:/data {IMAGE} sh -c '{script}'"),
                w.spawn(f"made{turn}", "sh", "-c",
                        f"while :; do for verb in 'create -d {w.plugin} -o size=64MiB' rm; do "
                        f"docker -H unix://{w.docker_socket} volume $verb made || exit 0; done; "
                        "done")]
        time.sleep(turn * 0.13)  # another moment of it each time
        w.kill_dockerd()
        for process in busy:
            process.wait(30)
        if f"written {turn}" in (w.log_dir / f"busy{turn}.log").read_text():
            written.append(str(turn))
        w.start_docker()
    w.remove_containers()
    # What a containerd that was killed, too, left half-way holds the volume; Peplos says so.
    for pid in leftovers.processes_of(w.paths):
        if leftovers.read(f"/proc/{pid}/comm").startswith("runc"):
            os.kill(pid, signal.SIGKILL)
    lines = w.shell("vol", "cat /data/log").stdout.split()
    expect(lines[0] == "0" and set(written) <= set(lines), f"{written} were synced: {lines}")
    expect(lines == sorted(set(lines), key=int), f"not in order: {lines}")
    wait_for("detach", 40, lambda: not w.volume_mounts() and not w.loop_devices(), 0.3)
    expect(w.volume("vol")["holders"] == [], f"holders: {w.volume('vol')['holders']}")
    w.docker("volume", "rm", "vol")
    w.docker("volume", "rm", "-f", "made", check=False)
    expect(w.peplos("volume", "ls", "--json").stdout.count('"name"') == 0, "volumes are left")


@case(180)
def kill_holder(w):
    """The holder dies and the daemon after it: an honest error, and the next mount is clean."""
    w.start()
    w.create("vol", size="1GiB")
    w.shell("vol", "echo kept >/data/file; sync -f /data")
    w.docker("run", "-d", "--name", "user", "--network", "none", "-v", "vol:/data", IMAGE, "sleep",
             "600")
    w.kill("holder")
    w.kill("peplosd")
    w.start_holder()
    w.start_daemon()
    done = w.docker("exec", "user", "sh", "-c", "echo x >/data/x && sync -f /data", check=False,
                    seconds=30)
    del done  # an error or success is fine; a hang is not
    w.docker("rm", "-f", "user", seconds=60)
    w.peplos("doctor", "--fix", check=False)
    out = wait_for("a clean mount", 40, lambda: w.shell(
        "vol", "cat /data/file && echo y >/data/y && sync -f /data", check=False).stdout, 1)
    expect(out == "kept\n", f"read {out!r}")


@case(240, device="2GiB")
def device_full(w):
    """A full device: writes fail, reads, trim and removal work, space returns by itself."""
    w.start()

    def read_small():
        return w.docker("exec", "reader", "cat", "/data/file", check=False)

    w.create("big", size="8GiB", fs="xfs")
    w.create("small", size="512MiB")
    w.docker("run", "-d", "--name", "reader", "--network", "none", "-v", "small:/data", IMAGE,
             "sh", "-c", "echo kept >/data/file; sync -f /data; exec sleep 900")
    wait_for("the file", 20, lambda: read_small().stdout == "kept\n", 0.2)
    filled = w.shell("big", "dd if=/dev/urandom of=/data/f bs=1M count=4000 conv=fsync 2>&1; "
                            "ls -l /data/f", check=False, seconds=150)
    expect("error" in filled.stdout.lower() or "space" in filled.stdout.lower(),
           f"4000 MiB went onto a device of 2 GiB: {filled.stdout}")
    w.forget_page_cache()
    expect(read_small().stdout == "kept\n", "reads fail when full")
    health = w.api("GET", "/v1/status")[1]["health"]
    expect(health["light"] != "green" and health["next"], f"status says {health}")
    w.docker("volume", "rm", "big", check=False)
    wait_for("removal", 30, lambda: w.api("GET", "/v1/volumes/big")[0] == 404 or
             w.docker("volume", "rm", "-f", "big", check=False).returncode == 0, 1)
    w.docker("rm", "-f", "reader")
    wait_for("space to return", 60, lambda: w.shell(
        "small", "dd if=/dev/urandom of=/data/g bs=1M count=200 conv=fsync 2>/dev/null && echo ok",
        check=False).stdout == "ok\n", 2)
    w.restart_daemon()
    expect(w.shell("small", "cat /data/file").stdout == "kept\n", "lost after a restart")


@case(240)
def fio_verify(w):
    """fio with direct I/O and verification on the volume, through a kill -9 in the middle."""
    w.start()
    w.create("vol", size="1GiB")
    w.docker("run", "-d", "--name", "hold", "--network", "none", "-v", "vol:/data", IMAGE, "sleep",
             "900")
    path = w.volume("vol")["attach"]["path"]
    fio = w.spawn("fio", "fio", "--name=v", f"--filename={path}/fio", "--size=256M",
                  "--rw=randwrite", "--bs=4k", "--iodepth=16", "--ioengine=libaio", "--direct=1",
                  "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randrepeat=1",
                  f"--loops={1 + w.long_seconds // 30}")
    wait_for("fio to write", 30, lambda: w.volume("vol")["used_bytes"] > (8 << 20), 0.2)
    w.restart_daemon()
    code = fio.wait(150)
    w.processes.pop("fio")
    expect(code == 0, f"fio found {code}: see fio.log")
    w.docker("rm", "-f", "hold")


@case(180)
def grow_online(w):
    """XFS grows while a container writes, ext4 at the next mount, also if that comes at once."""
    w.start()
    w.create("grows-x", size="512MiB", fs="xfs")
    start_writer(w, "grows-x")
    w.peplos("volume", "grow", "grows-x", "2GiB")
    out = w.docker("exec", "writer", "df", "-m", "/data").stdout.split("\n")[1].split()
    expect(int(out[1]) > 1800, f"not grown: {out}")
    end_writer(w, "grows-x")

    def has_grown(volume, mib):
        out = w.shell(volume, "df -m /data; cat /data/f").stdout
        expect(int(out.split("\n")[1].split()[1]) > mib and "kept" in out, out)

    for fs in ("ext4", "xfs"):
        w.create(f"idle-{fs}", size="512MiB", fs=fs)
        w.shell(f"idle-{fs}", "echo kept >/data/f; sync -f /data")
        w.peplos("volume", "grow", f"idle-{fs}", "1GiB")  # still attached, without users
        has_grown(f"idle-{fs}", 900)
        wait_for("detach", 20, lambda: not w.volume_mounts(), 0.2)
        w.peplos("volume", "grow", f"idle-{fs}", "2GiB")
        has_grown(f"idle-{fs}", 1800)
    w.create("used", size="512MiB")
    w.docker("run", "-d", "--name", "user", "--network", "none", "-v", "used:/data", IMAGE, "sh",
             "-c", "echo kept >/data/f; sync -f /data; exec sleep 600")
    wait_for("the file", 20, lambda: w.docker("exec", "user", "cat", "/data/f",
                                              check=False).stdout == "kept\n", 0.2)
    said = w.peplos("volume", "grow", "used", "1GiB").stdout
    expect("next mount" in said or "online" in said, said)
    waits = "next mount" in said
    expect(w.volume("used")["attach"]["grows_at_mount"] == waits, f"REST: {w.volume('used')}")
    expect(("at the next mount" in w.peplos("volume", "show", "used").stdout) == waits, "show")
    w.restart_daemon()  # what is still to be done outlives the daemon that was told
    w.docker("rm", "-f", "user")
    has_grown("used", 900)


@case(150)
def freed_space_returns(w):
    """What a container deletes comes back by trim."""
    w.start()
    w.create("vol", size="1GiB")
    w.shell("vol", "dd if=/dev/urandom of=/data/f bs=1M count=200 conv=fsync 2>/dev/null")
    before = w.volume("vol")["used_bytes"]
    w.docker("run", "-d", "--name", "hold", "--network", "none", "-v", "vol:/data", IMAGE, "sleep",
             "600")
    w.docker("exec", "hold", "sh", "-c", "rm /data/f; sync -f /data")
    said = w.peplos("volume", "trim", "vol").stdout.strip()
    try:
        wait_for("used space to fall", 30,
                 lambda: w.volume("vol")["used_bytes"] < before - (150 << 20), 0.5)
    except Failed as error:
        raise Failed(f"{error}; used {before}, now {w.volume('vol')['used_bytes']}; "
                     f"trim said: {said}") from None
    w.docker("rm", "-f", "hold")
