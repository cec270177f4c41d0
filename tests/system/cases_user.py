"""What is promised to users, statement by statement: the plugin API, REST, the command, doctor."""

import http.client
import json
import re
import socket
import tarfile
import time
from pathlib import Path

import leftovers
from case import case
from world import BIN, IMAGE, UnixHttp, expect, run, wait_for

METRIC = re.compile(r'[a-z_]+(\{[a-z_]+="(?:[^"\\]|\\.)*"(,[a-z_]+="(?:[^"\\]|\\.)*")*\})? '
                    r'-?[0-9.]+(e[+-]?[0-9]+)?$')


def plugin_call(w, method, body, raw=None):
    """One call as dockerd makes it; the HTTP status and the answer."""
    connection = UnixHttp(f"/run/docker/plugins/{w.plugin}.sock")
    data = raw if raw is not None else json.dumps(body)
    connection.request("POST", method, data)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    try:
        return answer.status, json.loads(content)
    except ValueError:
        return answer.status, content


def doctor(w, *words):
    done = w.peplos("doctor", "--json", *words, check=False)
    return done.returncode, json.loads(done.stdout)["findings"]


def found(findings, check, level):
    return [f for f in findings if f["check"] == check and f["level"] == level]


@case(60)
def plugin_api(w):
    """Every call of Docker's volume plugin API, and what is wrong with some; the socket is root's.
    """
    w.start(docker=False)
    path = Path(f"/run/docker/plugins/{w.plugin}.sock")
    mode = path.stat().st_mode & 0o777
    expect(mode == 0o600 and path.stat().st_uid == 0, f"the socket has mode {mode:o}")

    def call(method, **body):
        status, answer = plugin_call(w, f"/VolumeDriver.{method}", body)
        expect(status == 200 and answer.get("Err", "") == "", f"{method}: {status} {answer}")
        return answer

    answer = plugin_call(w, "/Plugin.Activate", {})[1]
    expect(answer == {"Implements": ["VolumeDriver"]}, f"Activate: {answer}")
    expect(call("Capabilities")["Capabilities"] == {"Scope": "global"}, "the scope is not global")
    for _ in range(2):
        call("Create", Name="api", Opts={"size": "512MiB", "label": "a=b"})
    expect(call("Path", Name="api").get("Mountpoint", "") == "", "a path before it is mounted")
    place = call("Mount", Name="api", ID="one")["Mountpoint"]
    expect(call("Mount", Name="api", ID="two")["Mountpoint"] == place, "two places")
    expect(call("Path", Name="api")["Mountpoint"] == place and Path(place).is_dir(), "Path")
    expect("api" not in Path(place).relative_to(w.run_dir).parts, f"{place} comes from the name")
    volume = call("Get", Name="api")["Volume"]
    status = volume["Status"]
    for key, value in (("size", "512 MiB"), ("health", "green")):
        expect(status[key] == value, f"Status: {status}")
    for key in ("used", "host"):
        expect(status.get(key), f"Status has no {key}: {status}")
    expect(any("fuse" in str(value) for value in status.values()), f"no attach way: {status}")
    expect([v["Name"] for v in call("List")["Volumes"]] == ["api"], "List")
    status, answer = plugin_call(w, "/VolumeDriver.Remove", {"Name": "api"})
    expect("one" in answer["Err"] and "two" in answer["Err"], f"by whom? {answer}")
    for holder in ("one", "two", "never-seen"):
        call("Unmount", Name="api", ID=holder)
    call("Remove", Name="api")
    for method in ("Get", "Mount", "Path", "Remove"):
        status, answer = plugin_call(w, f"/VolumeDriver.{method}", {"Name": "api", "ID": "x"})
        expect(answer["Err"], f"{method} of nothing: {answer}")


@case(60)
def plugin_bad_input(w):
    """Names with .., slash, NUL, 300 bytes, Unicode; JSON of 10 MiB, truncated, deep, of no object.
    """
    w.start(docker=False)
    for name in ("..", ".", "", "a/b", "../../etc/passwd", "a\0b", "x" * 300, "ü", "a b", "-a",
                 "\n", "a\u202eb", "%00", "con\x7f"):
        status, answer = plugin_call(w, "/VolumeDriver.Create", {"Name": name})
        expect(answer["Err"], f"the name {name!r} was accepted")
        expect("\0" not in answer["Err"] and len(answer["Err"]) < 1000, f"{answer}")
        status, answer = w.api("POST", "/v1/volumes", {"name": name})
        expect(status == 400, f"REST took {name!r}: {status} {answer}")
    for size in ("0", "-1", "1e30", "nan", "inf", "1.5.5", "99999999999999999999GiB", "4GiB;", " "):
        body = {"Name": "v", "Opts": {"size": size}}
        status, answer = plugin_call(w, "/VolumeDriver.Create", body)
        expect("size" in answer["Err"], f"size {size!r}: {answer}")
    for size in (0, -1, 1e30, "x", None, [], {}):
        status, answer = w.api("POST", "/v1/volumes", {"name": "v", "size": size})
        expect(status == 400 or size is None, f"REST took size {size!r}: {status} {answer}")
        if status == 201:
            w.api("DELETE", "/v1/volumes/v")
    deep = '{"Name":' * 100_000
    for raw in ("", "{", '{"Name": "tru', "[" * 100_000, deep, "null", "[]", "3", '{"Name": 3}',
                '{"Name": "a", "Opts": []}', '{"Name": "a", "Opts": {"size": {}}}', "\xff\xfe",
                '{"Name": "a", "Name": "\\u0000"}'):
        status, answer = plugin_call(w, "/VolumeDriver.Create", None, raw=raw.encode("latin-1"))
        expect(status >= 400 or answer["Err"], f"{raw[:40]!r}: {status} {answer}")
    try:
        status, answer = plugin_call(w, "/VolumeDriver.Create", None, raw=b" " * (10 << 20))
        expect(status >= 400 or answer["Err"], f"10 MiB: {status} {answer}")
    except OSError:
        pass  # it may close the connection before all is sent
    connection = UnixHttp(f"/run/docker/plugins/{w.plugin}.sock")
    connection.connect()
    connection.sock.sendall(b"GARBAGE\r\n\r\n" + bytes(range(256)) * 20)
    connection.close()
    status, answer = plugin_call(w, "/VolumeDriver.Create", {"Name": "v", "Opts": {"colour": "x"}})
    for word in ("colour", "size", "fs", "mkfs-options", "uid", "gid", "mode", "label"):
        expect(word in answer["Err"], f"{word} is not in: {answer}")
    expect(w.api("GET", "/v1/volumes")[1]["volumes"] == [], "something was made")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@case(60)
def rest_and_metrics(w):
    """The port wants its token; OpenAPI names what is served; metrics parse; logs are JSON."""
    port = free_port()
    w.config.write_text(w.config.read_text().replace("port = 0", f"port = {port}").replace(
        'level = "debug"', 'level = "debug"\nformat = "json"'))
    w.start(docker=False)

    def get(path, token=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        content = answer.read().decode()
        connection.close()
        return answer.status, content

    token_file = w.root / "state/api.token"
    expect(token_file.stat().st_mode & 0o77 == 0, "others can read the token")
    token = token_file.read_text().strip()
    expect(get("/v1/volumes")[0] == 401 and get("/v1/volumes", "wrong")[0] == 401, "no token asked")
    expect(get("/v1/volumes", token)[0] == 200, "the token is refused")
    w.api("POST", "/v1/volumes", {"name": "m", "size": "512MiB"})
    document = json.loads(get("/openapi.json")[1])
    expect(document["openapi"].startswith("3."), "not OpenAPI 3")
    count = 0
    for path, operations in document["paths"].items():
        for method in operations:
            count += 1
            if method == "get":
                expect(w.api("GET", path.replace("{name}", "m"))[0] == 200 if path != "/metrics"
                       else get(path)[0] == 200, f"{method} {path} is not served")
            else:  # known, so never "no such path"; what is wrong is the body or the name
                status, body = w.api(method.upper(), path.replace("{name}", "none"), raw="[")
                expect(status != 405 and "no volume" in str(body) or status != 404,
                       f"{method} {path}: {status} {body}")
    expect(count >= 15 and w.api("GET", "/v1/nothing")[0] == 404, f"{count} operations")
    names = set()
    for line in get("/metrics")[1].splitlines():
        if line.startswith("# "):
            names.add(line.split()[2])
        else:
            expect(METRIC.match(line), f"not a metric: {line!r}")
            expect(re.split(r"[{ ]", line)[0] in names, f"without HELP and TYPE: {line}")
    expect({"peplos_device_free_bytes", "peplos_volumes"} <= names, f"{names}")
    w.restart_daemon(15)
    lines = (w.log_dir / "peplosd.log").read_text().splitlines()
    expect(len(lines) > 5 and all({"level"} <= json.loads(line).keys() for line in lines),
           "a log line is not a JSON object with its level")
    expect(token not in "".join(lines), "the token is in the log")


@case(60)
def shows_the_attach_way(w):
    """`peplos volume show` and docker inspect tell way, reason, device; support keeps no secret."""
    secret = "hunter2-very-secret"
    w.start()
    w.create("vol", size="512MiB", label=f"db-password={secret}")
    w.docker("run", "-d", "--name", "user", "--network", "none", "-v", "vol:/data", IMAGE, "sleep",
             "600")
    shown = w.peplos("volume", "show", "vol").stdout
    for words in (r"Attached +fuse on /dev/loop\d+", r"Why +fuse: ", r"Path +/", r"In use +",
                  r"Mounted by +[0-9a-f]{64}", r"State +attached"):
        expect(re.search(words, shown), f"no {words!r} in:\n{shown}")
    status = json.loads(w.docker("volume", "inspect", "vol").stdout)[0]["Status"]
    expect("fuse" in str(status) and status["host"], f"Status: {status}")
    script = w.root / "completion.bash"
    script.write_text(w.peplos("completion", "bash").stdout)
    run("bash", "-n", script)
    expect(w.peplos("complete", "--", "volume", "show", "").stdout.split() == ["vol"],
           "volume names are not completed")
    archive = w.root / "support.tar.gz"
    w.config.write_text(w.config.read_text() + f'# token = "{secret}"\n')
    w.peplos("support", archive)
    expect(archive.stat().st_mode & 0o77 == 0, "others can read the archive")
    with tarfile.open(archive) as files:
        texts = {m.name: files.extractfile(m).read().decode() for m in files if m.isfile()}
    for name in ("status.json", "volumes.json", "metrics.txt", "doctor.txt", "mountinfo.txt"):
        expect(any(path.endswith(name) for path in texts), f"no {name} in {list(texts)}")
    leaks = [name for name, text in texts.items() if secret in text]
    expect(not leaks, f"a secret is in {leaks}")
    w.docker("rm", "-f", "user")


@case(120)
def doctor_mends_leftovers(w):
    """What a crash left in the kernel is named by doctor and taken away by --fix."""
    w.start()
    w.create("vol", size="512MiB")
    w.docker("run", "-d", "--name", "user", "--network", "none", "-v", "vol:/data", IMAGE, "sleep",
             "600")
    wait_for("the mount", 20, w.volume_mounts)
    connections = leftovers.connections_of(w.paths)
    # The container goes without a word to the plugin: asked, dockerd would wait 15 s for it.
    for key in ("holder", "peplosd", "dockerd"):
        w.kill(key)
    leftovers.end_processes(w.paths)
    (w.run_dir / "docker-exec/containerd/containerd.pid").unlink()
    expect(w.volume_mounts() and connections, "nothing is left, so nothing is shown")
    w.start_holder()
    w.start_daemon()
    code, findings = doctor(w)
    del code
    stale = found(findings, "leftovers", "warning") + found(findings, "leftovers", "error")
    expect(stale or not w.volume_mounts(), f"not found: {findings}")
    w.peplos("doctor", "--fix", check=False)
    wait_for("the mounts to be gone", 20, lambda: not w.volume_mounts(), 0.5)
    code, findings = doctor(w)
    expect(not found(findings, "leftovers", "warning"), f"still there: {findings}")
    w.start_docker()
    expect(w.shell("vol", "echo ok").stdout == "ok\n", "the volume cannot be mounted any more")


@case(120)
def doctor_finds_plugin_trouble(w):
    """doctor: no plugin socket; the name served twice, by socket and by a managed plugin."""
    w.start()
    code, findings = doctor(w)
    expect(found(findings, "plugin", "ok") and found(findings, "kernel-fuse", "ok"), f"{findings}")
    path = Path(f"/run/docker/plugins/{w.plugin}.sock")
    dead = path.with_name(f"{w.plugin}-dead.sock")
    w.undo.append(lambda: dead.unlink(missing_ok=True))
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(dead))
    began = time.monotonic()
    trouble = found(doctor(w)[1], "dead-plugin", "warning")
    expect(time.monotonic() - began < 5, "doctor waited for the dead plugin")
    expect(any(str(dead) in one["reason"] and one["fixable"] for one in trouble), f"{trouble}")
    w.peplos("doctor", "--fix")
    expect(not dead.exists() and path.exists(), "--fix took away the wrong socket")
    path.rename(w.run_dir / "hidden.sock")
    code, findings = doctor(w)
    trouble = found(findings, "plugin", "error")
    expect(code == 1 and trouble and str(path) in trouble[0]["reason"] and trouble[0]["next"],
           f"{findings}")
    (w.run_dir / "hidden.sock").rename(path)
    w.add_managed_plugin(w.plugin)
    code, findings = doctor(w)
    twice = found(findings, "plugin", "error")
    expect(code == 1 and twice and "twice" in twice[0]["reason"] and str(path) in
           twice[0]["reason"], f"{findings}")
    w.docker("plugin", "disable", "-f", w.plugin)
    expect(found(doctor(w)[1], "plugin", "ok"), "still said to be served twice")


@case(150, device="1GiB")
def doctor_finds_a_full_device(w):
    """A nearly full device is named with its free space and the way out; reads go on."""
    w.start()
    w.create("big", size="4GiB")
    w.shell("big", "echo kept >/data/f; dd if=/dev/urandom of=/data/g bs=1M count=2000 2>/dev/null;"
                   "sync -f /data", check=False, seconds=100)

    def is_named():
        findings = doctor(w)[1]
        return found(findings, "device-space", "error") + found(findings, "device-space", "warning")

    full = wait_for("doctor to name the device", 20, is_named, 0.5)
    expect(str(w.device_path) in full[0]["reason"] and "free" in full[0]["reason"], f"{full}")
    expect("device add" in full[0]["next"], f"{full}")


@case(60)
def the_command_is_kind(w):
    """Mistakes on the command line: one sentence on stderr that names the thing, exit 1 or 2."""
    w.start(docker=False)

    def mistake(code, words, *parts):
        done = w.peplos(*words, check=False)
        expect(done.returncode == code, f"{words}: exit {done.returncode}")
        expect(done.stdout == "" and len(done.stderr) < 600, f"{words}: {done}")
        for part in parts:
            expect(part in done.stderr, f"{words}: no {part!r} in {done.stderr!r}")

    mistake(1, ["volume", "show", "none"], "none", "peplos volume ls")
    mistake(1, ["volume", "rm", "none"], "none")
    mistake(1, ["volume", "create", "a/b"], "a/b")
    mistake(1, ["volume", "create", "v", "--size", "1e30"], "1e30")
    mistake(1, ["volume", "create", "v", "--size", "0"], "size")
    mistake(1, ["volume", "create", "v", "--fs", "zfs"], "zfs", "ext4", "xfs")
    mistake(1, ["volume", "create", "v", "--label", "x"], "KEY=VALUE")
    mistake(2, ["volume", "create"], "NAME", "--help")
    mistake(2, ["volume", "crate"], "crate")
    mistake(2, ["volume", "create", "v", "--sise", "1GiB"], "--sise")
    mistake(1, ["device", "add", "no-such-file"], str(Path.cwd() / "no-such-file"))
    mistake(1, ["device", "add", "/nowhere/file"], "/nowhere/file")
    mistake(1, ["volume", "detach", "v"], "--force")
    w.peplos("volume", "create", "v", "--size", "1GiB")
    mistake(1, ["volume", "grow", "v", "512MiB"], "never shrink")
    mistake(1, ["volume", "trim", "v"], "not mounted")
    for words in (["status"], ["volume", "ls"], ["volume", "show", "v"], ["device", "ls"],
                  ["scrub", "show"], ["doctor"]):
        json.loads(w.peplos(*words, "--json", check=False).stdout)
        table = w.peplos(*words, check=False).stdout
        expect(table and "\x1b" not in table, f"{words}: colours in a pipe")
    w.kill("peplosd", 15)
    mistake(1, ["status"], "peplosd", "systemctl start peplosd")
    done = w.peplos("--json", "status", check=False)
    expect(json.loads(done.stderr)["error"]["code"], f"{done}")
