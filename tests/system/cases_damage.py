"""Bytes of a device that went bad, and the way out for the volume that they keep closed."""

import mmap
import struct

from case import case
from world import expect, wait_for

ROOT_PAGE = 4


def damage_root(w, volume):
    """Flips bits in every root page of the volume's map. Gives the offset of the newest."""
    number = int(volume, 16)
    newest = (0, 0)
    with open(w.device_path, "r+b") as file, mmap.mmap(file.fileno(), 0) as device:
        at = device.find(b"PEPM")
        while at != -1:
            kind, = struct.unpack_from("<B", device, at + 6)
            owner, _, sequence = struct.unpack_from("<QQQ", device, at + 32)
            if at % 512 == 0 and kind == ROOT_PAGE and owner == number:
                newest = max(newest, (sequence, at))
                device[at + 65] ^= 0x10
            at = device.find(b"PEPM", at + 512)
        device.flush()
    expect(newest[0] != 0, "no root page found")
    return newest[1]


@case(120)
def damaged_map_root(w):
    """A volume whose map's root is corrupt is refused with the command that helps; it shows what
    is lost, changes nothing, and with --accept-loss the volume is back, and says so for good."""
    w.start()
    for name in ("vol", "second"):
        w.create(name, size="512MiB")
        w.shell(name, f"seq 100000 >/data/f; echo {name} >/data/name; sync -f /data")
    wait_for("detach", 20, lambda: not w.volume_mounts())
    volume = w.volume("vol")["id"]
    w.kill("peplosd")
    damage_root(w, volume)
    w.start_daemon()
    refused = w.shell("vol", "true", check=False)
    expect(refused.returncode != 0, "a volume without a map is mounted")
    expect("peplos volume recover vol" in refused.stderr, refused.stderr)
    told = w.peplos("doctor", check=False).stdout
    expect("peplos volume recover vol" in told, told)
    for _ in range(2):
        shown = w.peplos("volume", "recover", "vol", check=False)
        expect(shown.returncode == 1, f"{shown}")
        for part in (str(w.device_path), "offset", "map root", "--accept-loss"):
            expect(part in shown.stdout, f"no {part!r} in: {shown.stdout}")
        expect(w.shell("vol", "true", check=False).returncode != 0, "showing changed something")
    expect(w.shell("second", "cat /data/name").stdout == "second\n", "another volume is hurt")
    done = w.peplos("volume", "recover", "vol", "--accept-loss")
    expect("can be mounted again" in done.stdout, done.stdout)
    for _ in range(2):
        out = w.shell("vol", "seq 100000 | cmp - /data/f && cat /data/name").stdout
        expect(out == "vol\n", f"after the recovery: {out!r}")
        shown = w.peplos("volume", "show", "vol").stdout
        expect("Recovered" in shown and "with loss" in shown, shown)
        w.shell("vol", "echo x >>/data/more; sync -f /data")
        wait_for("detach", 20, lambda: not w.volume_mounts())
        w.restart_daemon()
    expect("Recovered" not in w.peplos("volume", "show", "second").stdout, "the wrong volume")
