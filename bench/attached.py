"""A real node (holder, peplosd) with one attached volume, for measurements through the attach.

The volume is attached as dockerd would ask for it: over the plugin's socket. Then the file system
is unmounted by hand while the loop device is held open, so that fio has the bare loop device.
"""
import json
import mmap
import os
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests/system"))

from world import Failed, UnixHttp, World, expect, run  # noqa: E402

VOLUME = "bench"


class AttachedWorld(World):
    """World with a log that does not take part in the measurement."""

    def __init__(self, log_dir, device_bytes, spin_us=0):
        super().__init__("bench", log_dir, device=f"{device_bytes >> 20}MiB")
        text = self.config.read_text().replace('"debug"', '"info"')
        self.config.write_text(f"{text}\n[core]\nspin_us = {spin_us}\n")
        self.loop_fd = None

    def plugin_call(self, method, body):
        connection = UnixHttp(f"/run/docker/plugins/{self.plugin}.sock", 120)
        connection.request("POST", f"/VolumeDriver.{method}", json.dumps(body))
        answer = json.loads(connection.getresponse().read())
        connection.close()
        expect(not answer.get("Err"), f"{method}: {answer.get('Err')}")
        return answer

    def attach(self, volume_bytes):
        """Starts the node, makes and mounts the volume; the folder that a container would get."""
        self.start(docker=False)
        self.plugin_call("Create", {"Name": VOLUME, "Opts": {"size": f"{volume_bytes >> 20}MiB"}})
        return self.plugin_call("Mount", {"Name": VOLUME, "ID": "bench"})["Mountpoint"]

    def bare_loop(self):
        """The loop device without its file system."""
        (device,) = self.loop_devices()
        self.loop_fd = os.open(device, os.O_RDONLY)
        for place in self.volume_mounts():
            # The FUSE mount is the file itself, the one with the file system is a folder.
            if os.path.isdir(place):
                run("umount", place)
        return device

    def stop(self):
        if self.loop_fd is not None:
            os.close(self.loop_fd)
        return super().stop()


class Writer(threading.Thread):
    """One durable 4 KiB write after the other; remembers the longest that one took."""

    def __init__(self, path, size=64 << 20):
        super().__init__()
        self.size = size
        self.longest = 0.0
        self.error = None
        self.ended = threading.Event()
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
        chunk = mmap.mmap(-1, 1 << 20)
        for offset in range(0, size, len(chunk)):
            os.pwrite(self.fd, chunk, offset)
        os.fsync(self.fd)

    def run(self):
        block = mmap.mmap(-1, 4096)
        offset = 0
        try:
            while not self.ended.is_set():
                began = time.monotonic()
                os.pwrite(self.fd, block, offset)
                self.longest = max(self.longest, time.monotonic() - began)
                offset = (offset + 4096 * 1021) % self.size
        except OSError as error:
            self.error = error
        os.close(self.fd)


def longest_pause(world, folder):
    """Kills peplosd with -9 under a writer and starts it again: seconds that a write waited at
    most, and seconds until the API answered. Raises Failed when the writer saw an error."""
    writer = Writer(os.path.join(folder, "pause"))
    writer.start()
    try:
        time.sleep(1)
        before = writer.longest
        restart = world.restart_daemon()
        seen = time.monotonic() + 20
        while writer.longest == before and time.monotonic() < seen:
            time.sleep(0.05)
    finally:
        writer.ended.set()
        writer.join(60)
    if writer.error:
        raise Failed(f"the writer failed: {writer.error}")
    return writer.longest, restart
