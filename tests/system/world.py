"""A private Peplos node and a private dockerd for one system test: real processes, real mounts.

Everything lives below one folder and one run directory; stop() takes all of it away again, also
after a failure or Ctrl-C. Processes are ended by their pid.
"""

import atexit
import functools
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import leftovers

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(os.environ.get("PEPLOS_BIN", REPOSITORY / "build/release/src"))
IMAGE = "peplos-test/busybox"


class Failed(Exception):
    """What a case says when the system did not do what it promises."""


def expect(condition, message):
    if not condition:
        raise Failed(message)


def wait_for(what, seconds, probe, pause=0.05):
    """Until probe() is true; its value. A case waits for conditions, never for time alone."""
    end = time.monotonic() + seconds
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed(f"waited {seconds} s in vain for {what}")
        time.sleep(pause)


def run(*words, seconds=60, check=True, text=None, env=None):
    """Runs a command, bounded in time; its output when it succeeds, Failed when it does not."""
    words = [str(word) for word in words]
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=seconds,
                              env=env, errors="replace")
    except subprocess.TimeoutExpired:
        raise Failed(f"took longer than {seconds} s: {' '.join(words)}") from None
    if check and done.returncode != 0:
        raise Failed(f"exit {done.returncode}: {' '.join(words)}\n{done.stdout}{done.stderr}")
    return done


@functools.cache
def managed_plugin_folder():
    """The managed plugin, built once for all cases; gone when the run ends."""
    folder = Path(tempfile.mkdtemp(prefix="peplos-plugin-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run(REPOSITORY / "deploy/plugin/make.sh", folder / "plugin", seconds=120)
    return folder / "plugin"


class UnixHttp(http.client.HTTPConnection):
    def __init__(self, path, seconds=30):
        super().__init__("localhost", timeout=seconds)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


class World:
    """One node (holder, peplosd) and, when asked for, one dockerd."""

    def __init__(self, name, log_dir, device="3GiB"):
        self.name = name
        self.root = Path("/var/tmp/peplos-test") / f"{os.getpid()}-{name}"
        # Short: containerd puts sockets below it, and a socket's path has 104 bytes.
        self.run_dir = Path("/run/peplos-test") / f"{os.getpid()}-{name[:12]}"
        self.log_dir = Path(log_dir)
        self.plugin = f"peplostest{os.getpid()}"
        self.device = device
        self.device_path = self.root / "device0"
        self.processes = {}
        self.loops = []
        self.undo = []  # called in reverse by stop()
        self.fuse_connections = set()  # ours, as far as they were seen
        self.containers = set()
        self.interfaces_before = leftovers.interfaces()
        for folder in (self.root, self.run_dir, self.log_dir, Path("/run/docker/plugins")):
            folder.mkdir(parents=True, exist_ok=True)
        for old in self.log_dir.glob("*.log"):  # of an earlier run: a case may read its logs
            old.unlink()
        self.docker_socket = self.run_dir / "docker.sock"
        self.docker_arguments = []
        self.write_config()

    def write_config(self):
        self.config = self.root / "peplosd.toml"
        self.config.write_text(
            f'state_dir = "{self.root}/state"\nrun_dir = "{self.run_dir}"\n'
            f'[plugin]\nname = "{self.plugin}"\n[api]\nport = 0\n[log]\nlevel = "debug"\n'
            f'[[device]]\npath = "{self.device_path}"\n'
            + (f'size = "{self.device}"\n' if self.device else ""))

    # --- processes ---

    def spawn(self, key, *words, env=None):
        log = open(self.log_dir / f"{key}.log", "ab")
        process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL,
                                   cwd=self.log_dir, stdout=log, stderr=log,
                                   start_new_session=True, env=env)
        log.close()
        self.processes[key] = process
        return process

    def kill(self, key, how=signal.SIGKILL, seconds=30):
        self.take_notes()
        process = self.processes.pop(key, None)
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(how)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            raise Failed(f"{key} did not end within {seconds} s of signal {how}") from None

    def deaths(self):
        """What ended by itself, how, and its last words: an error: line each."""
        lines = []
        for key, process in self.processes.items():
            if process.poll() is not None:
                log = (self.log_dir / f"{key}.log").read_text(errors="replace").splitlines()
                lines.append(f"error: {key} ended with {process.returncode}: "
                             + " | ".join(log[-4:]))
        return lines

    def start_holder(self):
        self.spawn("holder", BIN / "peplos-holder", self.run_dir / "holder.sock")
        wait_for("the holder", 10, (self.run_dir / "holder.sock").exists)

    def start_daemon(self, seconds=60):
        self.spawn("peplosd", BIN / "peplosd", "--config", self.config)
        self.wait_ready(seconds)

    def wait_ready(self, seconds=60):
        def ready():
            process = self.processes["peplosd"]
            if process.poll() is not None:
                tail = (self.log_dir / "peplosd.log").read_text(errors="replace")[-2000:]
                raise Failed(f"peplosd ended with {process.returncode}:\n{tail}")
            try:
                return self.api("GET", "/v1/status")[0] == 200
            except (OSError, http.client.HTTPException):
                return False
        wait_for("peplosd to serve", seconds, ready)

    def restart_daemon(self, how=signal.SIGKILL):
        """Ends it and starts it again; the seconds until it served."""
        began = time.monotonic()
        self.kill("peplosd", how)
        self.start_daemon()
        return time.monotonic() - began

    def start(self, docker=True):
        self.start_holder()
        self.start_daemon()
        if docker:
            self.start_docker()
            self.make_image()

    def kill_dockerd(self):
        """kill -9, and the containerd that it started: a new dockerd must not find it dying."""
        pid_file = self.run_dir / "docker-exec/containerd/containerd.pid"
        pid = int(pid_file.read_text()) if pid_file.exists() else 0
        self.kill("dockerd")
        if pid and Path(f"/proc/{pid}/comm").exists() and \
                "containerd" in Path(f"/proc/{pid}/comm").read_text():
            os.kill(pid, signal.SIGKILL)
        wait_for("containerd to end", 10, lambda: not Path(f"/proc/{pid}").exists() or pid == 0)
        pid_file.unlink(missing_ok=True)

    def start_docker(self):
        (self.run_dir / "dockerd.pid").unlink(missing_ok=True)
        self.spawn("dockerd", "dockerd", "--data-root", self.root / "docker", "--exec-root",
                   self.run_dir / "docker-exec", "--pidfile", self.run_dir / "dockerd.pid", "-H",
                   f"unix://{self.docker_socket}", "--bridge=none", "--iptables=false",
                   "--ip6tables=false", *self.docker_arguments)
        wait_for("dockerd", 60, lambda: self.docker("info", check=False).returncode == 0, 0.2)

    # --- clients ---

    def docker(self, *words, seconds=90, check=True, text=None):
        return run("docker", "-H", f"unix://{self.docker_socket}", *words, seconds=seconds,
                   check=check, text=text)

    def docker_api(self, method, path, body=None, seconds=60):
        connection = UnixHttp(self.docker_socket, seconds)
        connection.request(method, path, json.dumps(body) if body is not None else None,
                           {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, json.loads(content) if content else {}

    def api(self, method, path, body=None, raw=None, seconds=40):
        connection = UnixHttp(self.run_dir / "api.sock", seconds)
        data = raw if raw is not None else json.dumps(body) if body is not None else None
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, json.loads(content) if content else {}

    def peplos(self, *words, check=True, seconds=60):
        return run(BIN / "peplos", "--socket", self.run_dir / "api.sock", "--config", self.config,
                   *words, check=check, seconds=seconds,
                   env=dict(os.environ, DOCKER_HOST=f"unix://{self.docker_socket}"))

    def volume(self, name):
        status, volume = self.api("GET", f"/v1/volumes/{name}")
        expect(status == 200, f"volume {name}: {status} {volume}")
        return volume

    def create(self, name, **options):
        words = [word for key, value in options.items()
                 for word in ("-o", f"{key.replace('_', '-')}={value}")]
        return self.docker("volume", "create", "-d", self.plugin, *words, name)

    def add_managed_plugin(self, name):
        """As an operator does it; taken away at the end."""
        self.docker("plugin", "create", name, managed_plugin_folder())
        self.docker("plugin", "set", name, f"peplos.source={self.run_dir}",
                    f"PEPLOS_RUN_DIR={self.run_dir}")
        self.docker("plugin", "enable", name)
        self.undo.append(lambda: self.docker("plugin", "disable", "-f", name, check=False,
                                             seconds=20))

    def shell(self, volume, script, seconds=90, check=True, image=IMAGE, options=()):
        """A container with the volume at /data; its output."""
        return self.docker("run", "--rm", "--network", "none", *options, "-v", f"{volume}:/data",
                           image, "sh", "-c", script, seconds=seconds, check=check)

    def make_image(self):
        folder = self.root / "image"
        (folder / "bin").mkdir(parents=True)
        for name in ("tmp", "proc", "sys", "dev", "etc"):
            (folder / name).mkdir()
        shutil.copy(shutil.which("busybox"), folder / "bin/busybox")
        for applet in run("busybox", "--list").stdout.split():
            if applet != "busybox":
                (folder / "bin" / applet).symlink_to("busybox")
        self.import_image(folder, IMAGE)

    def import_image(self, folder, name, *options):
        tar = self.root / "image.tar"
        run("tar", "-C", folder, "-cf", tar, ".", seconds=120)
        self.docker("import", *options, tar, name, seconds=120)
        tar.unlink()

    def forget_page_cache(self):
        Path("/proc/sys/vm/drop_caches").write_text("3\n")

    # --- the end ---

    @property
    def paths(self):
        return [self.run_dir, self.root]

    def mounts(self):
        return [words[4] for words in leftovers.mount_lines(self.paths)]

    def volume_mounts(self):
        return [place for place in self.mounts() if place.startswith(str(self.run_dir) + "/mnt/")]

    def loop_devices(self):
        return leftovers.loops_of(self.paths)

    def take_notes(self):
        """What can be told only while it is there, for the question what is left of it."""
        self.fuse_connections |= leftovers.connections_of(self.paths)
        self.containers |= {folder.name for folder in (self.root / "docker/containers").glob("*")}

    def stop(self):
        """Takes everything away, whatever state it is in. Returns what went wrong with it."""
        problems = []

        def attempt(what, action):
            try:
                action()
            except Exception as error:  # the rest must still be undone
                problems.append(f"{what}: {error}")

        self.take_notes()
        for action in reversed(self.undo):
            attempt("undo", action)
        if "dockerd" in self.processes and self.processes["dockerd"].poll() is None:
            attempt("docker rm", self.remove_containers)
        for key, how in (("dockerd", signal.SIGTERM), ("peplosd", signal.SIGTERM)):
            attempt(key, lambda key=key, how=how: self.kill(key, how))
        for key in list(self.processes):
            attempt(key, lambda key=key: self.kill(key))
        leftovers.sweep(self.paths, self.fuse_connections, self.containers)
        Path(f"/run/docker/plugins/{self.plugin}.sock").unlink(missing_ok=True)
        return problems

    def remove_containers(self):
        containers = self.docker("ps", "-aq", check=False, seconds=20).stdout.split()
        if containers:
            self.docker("rm", "-f", *containers, check=False, seconds=40)

    def left(self):
        """What is on the host after stop() that was not there before the world: nothing, or names.
        """
        sockets = Path("/run/docker/plugins").glob(f"{self.plugin}*")
        return leftovers.settle(10, lambda: leftovers.find(
            self.paths, self.fuse_connections, sockets, self.interfaces_before, self.containers))
