"""The room `attach` against the real kernel, served from memory; and that cases clean up."""

import leftovers
from case import case
from world import BIN, IMAGE, expect, run, wait_for


def attach_script(w, *words):
    work = w.run_dir / "attach"  # the world's: what the script leaves is found
    work.mkdir()
    done = run("bash", __file__.replace("cases_attach.py", "attach_test.sh"), BIN, work, *words,
               seconds=130, check=False)
    (w.log_dir / "attach.log").write_text(done.stdout + done.stderr)
    failed = [line for line in done.stdout.splitlines() if "FAIL" in line]
    expect(done.returncode == 0 and not failed,
           f"exit {done.returncode}\n" + "\n".join(failed) + done.stderr[-1000:])
    w.take_notes()


@case(150)
def attach_life(w):
    """kill -9 of the server under verified fio on ext4, then trim, detach, attach."""
    attach_script(w, "life", "ext4")


@case(150)
def attach_life_xfs(w):
    """The same on xfs."""
    attach_script(w, "life", "xfs")


@case(150)
def attach_raw_device(w):
    """Verified writes and discards on the loop device itself, over three kill -9."""
    attach_script(w, "raw_device")


@case(150)
def attach_holder(w):
    """The holder's death, alone and with the server: another one, or an honest error."""
    attach_script(w, "holder")


@case(240)
def attach_release(w):
    """A busy volume names its users; by force it goes; sizes grow; leftovers are mended."""
    for number, words in enumerate((("busy",), ("grow",), ("stale",))):
        attach_script(w, *words)
        (w.run_dir / "attach").rename(w.run_dir / f"attach{number}")


@case(150)
def attach_contents(w):
    """Foreign and damaged contents are refused; a kill at any step of the first mount is mended."""
    for number, words in enumerate((("contents",), ("half_made",))):
        attach_script(w, *words)
        (w.run_dir / "attach").rename(w.run_dir / f"attach{number}")


@case(90)
def nothing_is_left(w):
    """What a broken case leaves is named, and gone after the sweep: dockerd, shim, mounts, loops.
    """
    w.start()
    w.create("vol", size="512MiB")
    w.docker("run", "-d", "--name", "user", "--network", "none", "-v", "vol:/data", IMAGE, "sleep",
             "600")
    wait_for("the mount", 20, w.volume_mounts)
    w.take_notes()
    w.kill("peplosd")
    w.kill("dockerd")  # its containerd, shim and container live on
    found = leftovers.find(w.paths, w.fuse_connections, (), w.interfaces_before, w.containers)
    for what in ("containerd-shim", "peplos-holder", "sleep 600", "mount ", "loop device ",
                 "control group "):
        expect(any(what in line for line in found), f"{what} is not named: {found}")
    leftovers.sweep(w.paths, w.fuse_connections, w.containers)
    left = w.left()
    expect(left == [], f"after the sweep: {left}")
