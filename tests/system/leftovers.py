"""What a world (world.py) leaves on the host: found by its paths, never by a program's name.

find() names it, sweep() takes it away. A world's paths are unique to one run, so nothing of another
test and nothing of the host's own Docker is ever touched.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

CONNECTIONS = Path("/sys/fs/fuse/connections")


def read(path):
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def mount_lines(paths, process="self"):
    """The lines of mountinfo whose mount point lies below one of the paths."""
    lines = [line.split() for line in read(f"/proc/{process}/mountinfo").splitlines()]
    return [words for words in lines if words[4].startswith(tuple(f"{path}/" for path in paths))]


def connections_of(paths):
    """The numbers of the FUSE connections that are mounted below the paths."""
    return {words[2].split(":")[1] for words in mount_lines(paths)
            if words[words.index("-") + 1].startswith("fuse")}


def processes_of(paths):
    """pid -> command of every process whose command line, folder or root is of the paths."""
    wanted = [f"{path}/" for path in paths]
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), os.getppid()):
            continue
        if read(entry / "stat").rpartition(")")[2].split()[:1] in ([], ["Z"]):
            continue
        words = read(entry / "cmdline").replace("\0", " ")
        try:
            words_and_folder = f"{words} {os.readlink(entry / 'cwd')}/"
        except OSError:
            words_and_folder = words
        # A container's process names none of our paths, but its root is an overlay below them.
        root = [line for line in read(entry / "mountinfo").splitlines()
                if line.split()[4] == "/"]
        text = words_and_folder + "".join(root[:1])
        if any(path in text for path in wanted):
            found[int(entry.name)] = words.strip()[:80]
    return found


def loops_of(paths):
    """Loop devices whose file lies below the paths: FUSE files and the small disks."""
    found = []
    # From sysfs: losetup asks each device, and one that hangs (of another test) stops it.
    for entry in Path("/sys/block").glob("loop*/loop/backing_file"):
        if read(entry).startswith(tuple(f"{path}/" for path in paths)):
            found.append(f"/dev/{entry.parts[3]}")
    return found


def interfaces():
    """Network interfaces as Docker makes them."""
    return {name for name in os.listdir("/sys/class/net")
            if name.startswith(("docker", "veth", "br-"))}


def cgroups_of(containers):
    return [path for name in containers for path in Path("/sys/fs/cgroup").glob(f"*/docker/{name}")]


def find(paths, connections=(), files=(), interfaces_before=None, containers=()):
    """One sentence for each thing that is left."""
    left = [f"process {pid} ({words})" for pid, words in processes_of(paths).items()]
    left += [f"mount {words[4]}" for words in mount_lines(paths)]
    left += [f"loop device {device}" for device in loops_of(paths)]
    mounted = {line.split()[2].split(":")[1] for line in read("/proc/self/mountinfo").splitlines()}
    left += [f"FUSE connection {number}" for number in connections
             if (CONNECTIONS / number).exists() and number not in mounted]
    left += [f"file {path}" for path in (*paths, *files) if Path(path).exists()]
    left += [f"control group {path}" for path in cgroups_of(containers)]
    if interfaces_before is not None:
        left += [f"network interface {name}" for name in interfaces() - interfaces_before]
    return left


def settle(seconds, probe):
    """probe()'s last value, once it is empty or the time is over."""
    end = time.monotonic() + seconds
    while (value := probe()) and time.monotonic() < end:
        time.sleep(0.05)
    return value


def quietly(*words):
    try:
        subprocess.run(words, capture_output=True, timeout=20)
    except subprocess.TimeoutExpired:
        pass  # find() names what is left of it


def end_processes(paths):
    """kill -9 of whatever is the paths', until nothing more is found."""
    def step():
        left = processes_of(paths)
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        return left
    settle(15, step)


def sweep_kernel(paths, connections=(), containers=()):
    """Processes first, as they hold the rest: connections, mounts, loop devices, control groups.
    The files stay."""
    connections = set(connections) | connections_of(paths)
    end_processes(paths)
    # Nobody serves these any more: what waits for them has to get its error now.
    for number in connections:
        try:
            (CONNECTIONS / number / "abort").write_text("1")
        except OSError:
            pass
    for words in reversed(mount_lines(paths)):
        quietly("umount", "-l", words[4])
    for device in loops_of(paths):
        quietly("losetup", "-d", device)
    settle(5, lambda: loops_of(paths))
    for path in sorted(cgroups_of(containers), key=lambda p: -len(p.parts)):
        for folder in [*sorted(path.glob("**/"), reverse=True), path]:
            try:
                folder.rmdir()
            except OSError:
                pass


def sweep(paths, connections=(), containers=()):
    """Takes everything away."""
    sweep_kernel(paths, connections, containers)
    if not mount_lines(paths):
        for path in paths:
            shutil.rmtree(path, ignore_errors=True)


def sweep_dead_runs():
    """Runs that were themselves killed could not clean up: their pid says that they are gone."""
    for parent in (Path("/run/peplos-test"), Path("/var/tmp/peplos-test")):
        for folder in parent.glob("*-*"):
            pid = folder.name.partition("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                sweep([folder])
