"""A Debian in a virtual machine (QEMU without KVM): real systemd, Docker and kernel."""

import base64
import hashlib
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = [
    "systemd-sysv", "udev", "dbus", "kmod", "procps", "iproute2", "iptables", "apparmor",
    "docker.io", "linux-image-6.12-cloud-amd64", "initramfs-tools",
]
AGENT_UNIT = """[Unit]
Description=runs what the test asks for on the second serial port
[Service]
ExecStart=/vm-agent
Restart=always
[Install]
WantedBy=multi-user.target
"""
ANSWER = re.compile(r"@@(\d+) ((?:[\w+/]{4})*(?:[\w+/]{2}[\w+/=]=)?)", re.ASCII)
BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


class MachineError(Exception):
    pass


def run(*words, seconds=60, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                          timeout=seconds, **options)
    if done.returncode != 0:
        raise MachineError(f"{' '.join(map(str, words))}: exit {done.returncode}\n"
                           f"{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def base_image(folder, packages):
    """A disk image of Debian 12 with `packages`, and its kernel; made once for the same wishes."""
    names = sorted({*PACKAGES, *packages})
    wish = "\n".join([*names, (HERE / "agent.sh").read_text(), AGENT_UNIT])
    place = folder / f"base-{hashlib.sha256(wish.encode()).hexdigest()[:16]}"
    if (place / "complete").exists():
        return place
    shutil.rmtree(folder, ignore_errors=True)
    root = place / "root"
    place.mkdir(parents=True)
    run("mmdebstrap", "--variant=minbase", f"--include={','.join(names)}", "bookworm", root,
        seconds=900)
    shutil.copy(HERE / "agent.sh", root / "vm-agent")
    (root / "vm-agent").chmod(0o755)
    (root / "etc/systemd/system/vm-agent.service").write_text(AGENT_UNIT)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "vm-agent.service").symlink_to("/etc/systemd/system/vm-agent.service")
    (root / "etc/fstab").write_text("/dev/vda / ext4 rw 0 1\n")
    (root / "etc/hostname").write_text("machine\n")
    for name in ("vmlinuz", "initrd.img"):
        found = sorted((root / "boot").glob(f"{name}-*"))
        shutil.copy(found[-1], place / name)
    run("mkfs.ext4", "-q", "-E", "lazy_itable_init=1", "-d", root, place / "root.ext4", "4G",
        seconds=300)
    shutil.rmtree(root)
    (place / "complete").touch()
    return place


def folder_image(folder, image):
    """A read-only disk with the files of `folder`."""
    size = sum(path.stat().st_size for path in folder.rglob("*")) + (16 << 20)
    run("mkfs.ext4", "-q", "-d", folder, image, f"{size >> 10}K")


class Machine:
    """One virtual machine with its disks: the system, an empty one (/dev/vdb), files (/dev/vdc)."""

    def __init__(self, base, work, files, disk_bytes):
        self.base = base
        self.work = work
        self.process = None
        self.agent = None
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base / "root.ext4",
            work / "root.qcow2")
        with open(work / "disk.raw", "wb") as disk:
            disk.truncate(disk_bytes)
        folder_image(files, work / "files.ext4")

    def power_on(self, seconds=300):
        """Boots it; returns how long it took until commands are taken."""
        began = time.monotonic()
        place = self.work / "agent.sock"
        place.unlink(missing_ok=True)
        self.process = subprocess.Popen([
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2",
            "-m", "2048", "-nodefaults", "-display", "none",
            "-kernel", self.base / "vmlinuz", "-initrd", self.base / "initrd.img",
            "-append", "root=/dev/vda rw console=ttyS0 systemd.show_status=1 panic=-1",
            "-drive", f"file={self.work}/root.qcow2,if=virtio,format=qcow2",
            "-drive", f"file={self.work}/disk.raw,if=virtio,format=raw",
            "-drive", f"file={self.work}/files.ext4,if=virtio,format=raw,readonly=on",
            "-chardev", f"file,id=console,path={self.work}/console.log,append=on",
            "-serial", "chardev:console",
            "-chardev", f"socket,id=agent,path={place},server=on,wait=off",
            "-serial", "chardev:agent",
        ])
        while not place.exists():
            if self.process.poll() is not None or time.monotonic() > began + 20:
                raise MachineError("qemu does not start")
            time.sleep(0.1)
        self.connect(began + seconds)
        return time.monotonic() - began

    def connect(self, deadline):
        """Waits until the agent has come up."""
        self.agent = socket.socket(socket.AF_UNIX)
        self.agent.connect(str(self.work / "agent.sock"))
        self.received = b""
        while self.line(deadline) != "@@ready":
            pass

    def line(self, deadline):
        while b"\n" not in self.received:
            left = deadline - time.monotonic()
            if left <= 0:
                raise MachineError(f"no answer from the machine; its console:\n{self.console()}")
            self.agent.settimeout(left)
            try:
                data = self.agent.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise MachineError(f"the machine ended; its console:\n{self.console()}")
            self.received += data
        text, self.received = self.received.split(b"\n", 1)
        return text.decode(errors="replace").strip("\r\0 ")

    def send(self, command, seconds):
        packed = base64.b64encode(command.encode()).decode()
        self.agent.sendall(f"{seconds} {packed}\n".encode())

    def answer(self, deadline):
        """(status, output) of the command that was sent; None when the agent began a new life."""
        while True:
            line = self.line(deadline)
            if line == "@@ready":
                return None
            whole = ANSWER.fullmatch(line)
            if whole:
                output = base64.b64decode(whole[2]).decode(errors="replace")
                return int(whole[1]), output.rstrip("\n")

    def try_shell(self, command, seconds=60):
        """(status, output) of a command in the machine."""
        self.send(command, seconds)
        answer = self.answer(time.monotonic() + seconds + 30)
        if answer is None:
            raise MachineError(f"the machine started anew during: {command}")
        return answer

    def shell(self, command, seconds=60):
        """The output of a command that must succeed."""
        status, output = self.try_shell(command, seconds)
        if status != 0:
            raise MachineError(f"{command}: exit {status}\n{output}")
        return output

    def wait_for(self, what, command, seconds):
        """Until the command succeeds; returns how long it took."""
        began = time.monotonic()
        while True:
            status, output = self.try_shell(command, 30)
            if status == 0:
                return time.monotonic() - began
            if time.monotonic() > began + seconds:
                raise MachineError(f"{what} is not there after {seconds} s: {output}")
            time.sleep(0.5)

    def power_cut(self):
        """As if the plug were pulled: what the machine had not written to its disks is gone."""
        self.process.kill()
        self.process.wait(20)
        self.agent.close()
        self.agent = None

    def reboot(self, seconds=400):
        """systemctl reboot; returns how long it took until commands are taken again."""
        began = time.monotonic()
        boot = self.shell(BOOT_ID)
        self.send("systemctl --no-block reboot", 60)
        # The shutdown ends systemctl and the agent, too: the answer comes before that, or says
        # that SIGTERM came, or comes in part, or never. What counts is the boot that follows.
        while (answer := self.answer(began + seconds)) is not None:
            if answer[0] not in (0, 128 + signal.SIGTERM):
                raise MachineError(f"systemctl reboot: exit {answer[0]}\n{answer[1]}")
        if self.shell(BOOT_ID) == boot:
            raise MachineError("the agent started anew, the machine did not")
        return time.monotonic() - began

    def console(self):
        path = self.work / "console.log"
        return path.read_text(errors="replace")[-6000:] if path.exists() else ""

    def end(self):
        if self.process is not None and self.process.poll() is None:
            self.power_cut()
