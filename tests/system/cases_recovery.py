"""The control store is lost or old: nothing starts over, and a backup brings everything back."""

import shutil

from case import case
from world import BIN, IMAGE, expect, run, wait_for


def lose_the_store(w):
    w.kill("peplosd")
    for file in (w.root / "state").glob("control.db*"):
        file.unlink()


def refused(w, *parts):
    """What peplosd says when it does not start; nothing is made or changed by the attempt."""
    before = {path: path.stat().st_mtime_ns for path in w.root.glob("*")
              if path.name.startswith("device")}
    made = sorted((w.root / "state").iterdir())
    done = run(BIN / "peplosd", "--config", w.config, check=False, seconds=20)
    said = done.stdout + done.stderr
    expect(done.returncode == 78, f"exit {done.returncode}, systemd would try again: {said}")
    for part in ("control.db is missing", "intact", *parts):
        expect(part in said, f"no {part!r} in: {said}")
    expect(sorted((w.root / "state").iterdir()) == made, "it made something")
    for path, changed in before.items():
        expect(path.stat().st_mtime_ns == changed, f"{path} was written to")
    return said


def restore(w, backup):
    """As docs/operations/control-store.md has it."""
    run("cp", backup, w.root / "state/control.db")
    w.start_daemon()


@case(90)
def control_store_lost(w):
    """Without control.db nothing starts over: peplosd names the device and the copy that it keeps,
    and with that copy every volume is back, with all that was written."""
    w.start()
    for name in ("vol", "second"):
        w.create(name, size="512MiB")
        w.shell(name, f"echo {name} >/data/f; sync -f /data")
    w.restart_daemon()
    w.shell("vol", "echo more >>/data/f; sync -f /data")
    wait_for("detach", 20, lambda: not w.volume_mounts())
    lose_the_store(w)
    beside = w.root / "device0.control-backup.db"
    own = w.root / "state/control-backup.db"
    refused(w, "state is not empty", "cp ", "control-backup.db")
    for path in (own, beside):
        expect(path.stat().st_mode & 0o77 == 0, f"others can read {path}")
    shutil.rmtree(w.root / "state")  # the disk of the state is lost altogether
    (w.root / "state").mkdir()
    (w.root / "state/lost+found").mkdir()
    refused(w, f"{w.device_path} is a Peplos device", f"cp {beside} {w.root}/state/control.db")
    restore(w, beside)
    for name, kept in (("vol", "vol\nmore\n"), ("second", "second\n")):
        out = w.shell(name, "cat /data/f; echo x >>/data/f; sync -f /data").stdout
        expect(out == kept, f"{name} has {out!r}")
    # No copy at hand, and the folder gone with it: still nothing starts over.
    wait_for("detach", 20, lambda: not w.volume_mounts())
    lose_the_store(w)
    kept = w.root / "kept.db"
    own.rename(kept)
    for path in (beside, w.root / "state/lost+found"):
        path.rmdir() if path.is_dir() else path.unlink()
    refused(w, "copy a backup of it")
    (w.root / "state").rmdir()
    done = run(BIN / "peplosd", "--config", w.config, check=False, seconds=20)
    expect(done.returncode != 0 and str(w.device_path) in done.stdout + done.stderr, f"{done}")
    restore(w, kept)
    expect(w.shell("vol", "cat /data/f").stdout == "vol\nmore\nx\n", "not as it was")


@case(90)
def state_disk_full(w):
    """No space where the control store lives: creating says so, what runs goes on, and with space
    again everything works without a restart."""
    image = w.root / "state.img"
    run("truncate", "-s", "24M", image)
    run("mkfs.ext4", "-q", "-m", "0", image)
    (w.root / "state").mkdir()
    run("mount", "-o", "loop", image, w.root / "state")
    w.start()
    w.create("vol", size="512MiB")
    w.docker("run", "-d", "--name", "user", "--network", "none", "-v", "vol:/data", IMAGE, "sleep",
             "600")
    ballast = w.root / "state/ballast"
    run("dd", "if=/dev/zero", f"of={ballast}", "bs=4k", "conv=fsync", check=False)
    refused = None
    for index in range(400):  # the write-ahead log has some room of its own
        status, body = w.api("POST", "/v1/volumes", {"name": f"v{index}", "size": "64MiB"})
        if status != 201:
            refused = body["error"]["message"]
            break
    expect(refused and "space" in refused and "control.db" in refused, f"said {refused!r}")
    w.docker("exec", "user", "sh", "-c", "echo on >/data/f; sync -f /data")
    log = w.log_dir / "peplosd.log"
    wait_for("a word of the backup", 30, lambda: "control-backup.db" in log.read_text())
    ballast.unlink()
    w.docker("rm", "-f", "user")
    w.create("later", size="512MiB")
    expect(w.shell("vol", "cat /data/f").stdout == "on\n", "lost")
    w.shell("later", "echo x >/data/f; sync -f /data")
    w.restart_daemon()
    expect(w.shell("later", "cat /data/f").stdout == "x\n", "lost by the restart")


@case(90)
def control_store_old_backup(w):
    """A copy of last week: its volumes have what was written since, also those never mounted then;
    what was created since is not known, and the newer copy that peplosd kept stays."""
    w.start()
    for name in ("vol", "fresh"):
        w.create(name, size="512MiB")
    w.shell("vol", "echo before >/data/f; sync -f /data")
    old = w.root / "old.db"
    wait_for("a copy", 10, (w.root / "state/control-backup.db").exists)
    w.kill("peplosd", 15)
    run("cp", w.root / "state/control-backup.db", old)  # SIGTERM has brought it up to date
    w.start_daemon()
    w.create("later", size="512MiB")
    for word in ("after", "much-later"):
        for name in ("vol", "fresh", "later"):
            w.shell(name, f"echo {word} >>/data/f; sync -f /data")
        w.restart_daemon()
    wait_for("detach", 20, lambda: not w.volume_mounts())
    lose_the_store(w)
    restore(w, old)
    out = w.shell("vol", "cat /data/f; echo more >>/data/f; sync -f /data").stdout
    expect(out == "before\nafter\nmuch-later\n", f"after the restore: {out!r}")
    out = w.shell("fresh", "cat /data/f").stdout
    expect(out == "after\nmuch-later\n", f"formatted after the copy, then: {out!r}")
    names = [volume["name"] for volume in w.api("GET", "/v1/volumes")[1]["volumes"]]
    expect(sorted(names) == ["fresh", "vol"], f"{names}")
    wait_for("detach", 20, lambda: not w.volume_mounts())
    newer = w.root / "state/control-backup.db.newer"
    expect(newer.exists(), "the copy that knew more is gone")
    lose_the_store(w)
    restore(w, newer)
    out = w.shell("later", "cat /data/f").stdout
    expect(out == "after\nmuch-later\n", f"after the second restore: {out!r}")
