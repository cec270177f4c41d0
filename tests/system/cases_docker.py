"""What a user of Docker does, and does wrong."""

import json
import threading

from case import case
from world import IMAGE, expect, run, wait_for


@case(120)
def round_trip(w):
    """A volume outlives its containers, byte for byte, on ext4 and xfs."""
    w.start()
    for fs in ("ext4", "xfs"):
        w.create(f"v-{fs}", size="1GiB", fs=fs)
        w.shell(f"v-{fs}", "dd if=/dev/urandom of=/data/f bs=1M count=32 conv=fsync 2>/dev/null; "
                           "sha256sum /data/f >/data/sum; sync -f /data")
        out = w.shell(f"v-{fs}", "cat /data/sum; sha256sum -c /data/sum; grep /data /proc/mounts")
        expect("/data/f: OK" in out.stdout, f"the bytes differ: {out.stdout}")
        expect(f" {fs} " in out.stdout, f"not {fs}: {out.stdout}")
        expect("nosuid" in out.stdout and "nodev" in out.stdout, f"options: {out.stdout}")
    listed = w.docker("volume", "ls", "--format", "{{.Name}} {{.Driver}}").stdout
    expect(f"v-ext4 {w.plugin}" in listed, listed)
    status = json.loads(w.docker("volume", "inspect", "v-ext4").stdout)[0]["Status"]
    expect(status["size"] == "1 GiB" and status["health"] == "green", f"Status: {status}")
    wait_for("both volumes to be detached", 15, lambda: not w.volume_mounts())
    w.docker("volume", "rm", "v-ext4", "v-xfs")
    expect(w.peplos("volume", "ls", "--json").stdout.count('"name"') == 0, "volumes left")


@case(90)
def copy_up_and_options(w):
    """An image's directory is copied up into a new volume; uid, gid, mode and labels hold."""
    w.start()
    folder = w.root / "seeded"
    run("cp", "-a", w.root / "image", folder)
    (folder / "seed").mkdir()
    (folder / "seed/file").write_text("hello\n")
    w.import_image(folder, "peplos-test/seeded")
    w.create("seeded", size="512MiB")
    out = w.docker("run", "--rm", "--network", "none", "-v", "seeded:/seed", "peplos-test/seeded",
                   "cat", "/seed/file")
    expect(out.stdout == "hello\n", f"no copy-up: {out.stdout!r}")
    w.create("owned", size="512MiB", uid=1234, gid=4321, mode="0750", label="team=blue")
    out = w.shell("owned", "stat -c '%u %g %a' /data").stdout.strip()
    expect(out == "1234 4321 750", out)


@case(60)
def bad_input(w):
    """Bad names, sizes and options are refused by name, and nothing is made."""
    w.start()

    def refused(words, *parts):
        done = w.docker("volume", "create", "-d", w.plugin, *words, check=False)
        expect(done.returncode != 0, f"accepted: {words}")
        for part in parts:
            expect(part in done.stderr, f"{words}: no {part!r} in {done.stderr}")

    for size in ("0", "-1", "1e30", "abc", "", "999999999999999999999"):
        refused(["-o", f"size={size}", "v"], "size")
    refused(["-o", "sise=1GiB", "v"], "sise", "size")
    refused(["-o", "fs=zfs", "v"], "zfs", "ext4", "xfs")
    refused(["-o", "uid=-5", "v"], "uid")
    refused(["-o", "mode=9z", "v"], "mode")
    refused(["-o", "mkfs-options=$(reboot)", "v"], "mkfs")
    for name in ("..", "a/b", "../../etc", "a b", "ü", "x" * 300, "-v", "a\x01b"):
        status, body = w.docker_api("POST", "/volumes/create", {"Name": name, "Driver": w.plugin})
        expect(status >= 400, f"name {name!r} was accepted: {body}")
    for raw in ("{", "[" * 100_000, "null", '{"name": 1}', '{"name": "a", "colour": "red"}'):
        status, body = w.api("POST", "/v1/volumes", raw=raw)
        expect(status == 400, f"{raw[:40]!r}: {status} {body}")
    try:
        status, _ = w.api("POST", "/v1/volumes", raw=" " * (10 << 20))
        expect(status == 413, f"10 MiB of JSON: {status}")
    except OSError:
        pass  # it may close the connection before all is sent
    expect(w.api("GET", "/v1/volumes")[1]["volumes"] == [], "something was made")


@case(60)
def two_creates_of_one_name(w):
    """Equal creates at once give one volume; one that differs says in what."""
    w.start()
    results = []

    def make():
        results.append(w.create("twin", size="1GiB").returncode)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect(results == [0] * 8, f"results: {results}")
    expect(len(w.api("GET", "/v1/volumes")[1]["volumes"]) == 1, "more than one volume")
    status, body = w.api("POST", "/v1/volumes", {"name": "twin", "size": "2GiB"})
    expect(status == 409 and "size" in body["error"]["message"], f"{status} {body}")


@case(90)
def remove_in_use(w):
    """A used volume is not removed, and the answer says who uses it."""
    w.start()
    w.create("busy", size="512MiB")
    w.docker("run", "-d", "--name", "user", "--network", "none", "-v", "busy:/data", IMAGE, "sleep",
             "600")
    container = w.docker("inspect", "-f", "{{.Id}}", "user").stdout.strip()
    expect(w.docker("volume", "rm", "busy", check=False).returncode != 0, "dockerd removed it")
    status, body = w.api("DELETE", "/v1/volumes/busy")
    holder = w.volume("busy")["holders"]
    expect(status == 409, f"{status} {body}")
    expect(any(h[:12] in body["error"]["message"] for h in holder),
           f"no holder of {holder} named: {body} (container {container})")
    w.docker("rm", "-f", "user")
    wait_for("the volume to be removable", 20,
             lambda: w.docker("volume", "rm", "busy", check=False).returncode == 0, 0.5)


@case(90)
def docker_cp_keeps_the_mount(w):
    """docker cp mounts and unmounts with the container's own id: the volume must stay."""
    w.start()
    w.create("cp", size="512MiB")
    w.docker("run", "-d", "--name", "busy-one", "--network", "none", "-v", "cp:/data", IMAGE, "sh",
             "-c", "while :; do date >>/data/log || touch /failed; sleep 0.05; done")
    (w.root / "file").write_text("from outside\n")
    for index in range(5):
        w.docker("cp", w.root / "file", f"busy-one:/data/in{index}")
        w.docker("cp", f"busy-one:/data/in{index}", w.root / "back")
        expect((w.root / "back").read_text() == "from outside\n", "the copy differs")
    expect(len(w.volume_mounts()) >= 1, "the host's mount vanished under a running container")
    expect(len({place for place in w.volume_mounts()}) == len(w.volume_mounts()), "mounted twice")
    w.docker("exec", "busy-one", "sh", "-c",
             "[ ! -e /failed ] && echo more >/data/x && sync -f /data")
    loops = [d for d in w.loop_devices()]
    expect(len(loops) == 1, f"loop devices: {loops}")
    w.docker("rm", "-f", "busy-one")


@case(120)
def compose(w):
    """docker-compose with driver_opts: up, data, down, up again."""
    w.start()
    (w.root / "project").mkdir()
    (w.root / "project/docker-compose.yml").write_text(f"""
version: "3.8"
services:
  app:
    image: {IMAGE}
    network_mode: none
    command: ["sh", "-c", "echo started >>/data/log; sync -f /data; sleep 600"]
    volumes: ["data:/data"]
volumes:
  data:
    driver: {w.plugin}
    driver_opts: {{size: 512MiB, fs: xfs}}
""")

    def up_and_down(*words):
        return run("docker-compose", "-H", f"unix://{w.docker_socket}", "-f",
                   w.root / "project/docker-compose.yml", *words, seconds=60)

    for count in (1, 2):
        up_and_down("up", "-d")
        wait_for("the service", 20, lambda: w.docker(
            "exec", "project_app_1", "cat", "/data/log", check=False).stdout
            == "started\n" * count, 0.3)
        up_and_down("down", "-t", "0")
    expect(w.volume("project_data")["fs"] == "xfs", "driver_opts were lost")
    wait_for("detach", 20, lambda: not w.volume_mounts())


@case(240, device="6GiB")
def thousand_volumes(w):
    """1,000 volumes made, some mounted, all removed; the daemon answers throughout."""
    w.start(docker=False)
    for index in range(1000):
        status, body = w.api("POST", "/v1/volumes", {"name": f"v{index}", "size": "64MiB"})
        expect(status == 201, f"volume {index}: {status} {body}")
    expect(len(w.api("GET", "/v1/volumes")[1]["volumes"]) == 1000, "not all are listed")
    w.start_docker()
    w.make_image()
    for index in range(0, 1000, 200):
        w.shell(f"v{index}", f"echo {index} >/data/me; sync -f /data")
    w.restart_daemon()
    expect(w.shell("v400", "cat /data/me").stdout == "400\n", "v400 lost its data")
    wait_for("detach", 30, lambda: not w.volume_mounts())
    for index in range(1000):
        status, body = w.api("DELETE", f"/v1/volumes/v{index}")
        expect(status == 200, f"removing v{index}: {status} {body}")


@case(60)
def command_line(w):
    """The peplos command against a real daemon: every verb, tables and JSON, exit codes."""
    w.start(docker=False)
    expect("Healthy" in w.peplos("status").stdout, "not healthy")
    w.peplos("volume", "create", "cli", "--size", "1GiB", "--fs", "xfs", "--label", "a=b")
    shown = json.loads(w.peplos("volume", "show", "cli", "--json").stdout)
    expect(shown["size_bytes"] == 1 << 30 and shown["labels"] == {"a": "b"}, f"{shown}")
    expect("cli" in w.peplos("volume", "ls").stdout, "not listed")
    w.peplos("volume", "grow", "cli", "2GiB")
    expect(w.volume("cli")["size_bytes"] == 2 << 30, "not grown")
    done = w.peplos("volume", "grow", "cli", "1GiB", check=False)
    expect(done.returncode == 1 and done.stdout == "" and done.stderr.startswith("error: "),
           f"shrunk: {done}")
    expect(w.peplos("volume", "show", "none", check=False).returncode == 1, "shows nothing")
    w.peplos("device", "add", w.root / "device1", "--size", "2GiB")
    expect(w.peplos("device", "ls").stdout.count("device") >= 2, "second device missing")
    w.peplos("scrub", "start")
    wait_for("the scrub", 30, lambda: not json.loads(
        w.peplos("scrub", "show", "--json").stdout)["running"], 0.3)
    w.peplos("support", w.root / "support.tar.gz")
    names = run("tar", "-tzf", w.root / "support.tar.gz").stdout
    expect("status.json" in names and "doctor.txt" in names, names)
    findings = json.loads(w.peplos("doctor", "--json", check=False).stdout)["findings"]
    expect(any(f["check"] == "daemon" and f["level"] == "ok" for f in findings), f"{findings}")
    w.peplos("volume", "rm", "cli")
    expect("cr" in w.peplos("complete", "--", "volume", "cr").stdout, "no completion")


@case(90)
def shadowed_volume_is_found(w):
    """A local Docker volume of the same name is named by doctor."""
    w.start()
    w.docker("volume", "create", "shadow")
    w.peplos("volume", "create", "shadow", "--size", "512MiB")
    done = w.peplos("doctor", "--json", check=False)
    findings = json.loads(done.stdout)["findings"]
    shadows = [f for f in findings if f["check"] == "shadowed-volume"]
    expect(len(shadows) == 1 and "shadow" in shadows[0]["reason"], f"{findings}")
    expect(shadows[0]["next"] and done.returncode == 1, f"{done}")


@case(150)
def managed_plugin(w):
    """The same through `docker plugin create`: write, docker cp, restart of the daemon, release."""
    w.start()
    name = "peplosmanaged"
    w.add_managed_plugin(name)
    w.docker("volume", "create", "-d", name, "-o", "size=512MiB", "managed")
    w.shell("managed", "echo one >/data/file; sync -f /data")
    w.docker("run", "-d", "--name", "user", "--network", "none", "-v", "managed:/data", IMAGE,
             "sh", "-c", "while :; do date >>/data/log || touch /failed; sleep 0.05; done")
    (w.root / "in").write_text("two\n")
    w.docker("cp", w.root / "in", "user:/data/in")
    w.restart_daemon()
    out = w.docker("exec", "user", "sh", "-c", "cat /data/file /data/in; ls /failed 2>/dev/null; "
                   "echo three >/data/more && sync -f /data; mount | grep ' /data '",
                   check=False).stdout
    expect(out.startswith("one\ntwo\n/dev/loop"), f"in the container: {out}")
    w.docker("rm", "-f", "user")
    wait_for("the volume to be released", 30, lambda: not w.volume_mounts(), 0.2)
    expect(w.shell("managed", "cat /data/more").stdout == "three\n", "a write was lost")
    wait_for("the volume to be removable", 30,
             lambda: w.docker("volume", "rm", "managed", check=False).returncode == 0, 0.5)
