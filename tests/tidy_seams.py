#!/usr/bin/env python3
"""Reads the symbols of the built storage rooms: none may ask the system for time, chance, files,
sockets or threads; all of that comes through the seams of `runtime`, so that the simulator can
stand in for it. And the daemon holds nothing of the simulator, which alone can switch a FAULT or a
PLANTED mistake on.

tidy_seams.py [--build FOLDER]
"""

import argparse
import pathlib
import re
import subprocess

import rooms
import tree

# Undefined symbols that would reach around a seam: libc, libpthread, libstdc++'s clocks and files.
REFUSED = re.compile(
    r"(clock_gettime|clock_nanosleep|gettimeofday|time|nanosleep|usleep|sleep|getrandom|rand|"
    r"random|srand|open|open64|openat|openat64|creat|read|pread|pread64|write|pwrite|pwrite64|"
    r"preadv|pwritev|fsync|fdatasync|fopen|fopen64|stat|stat64|fstat|fstat64|mmap|mmap64|ioctl|"
    r"unlink|rename|socket|connect|bind|listen|accept|accept4|send|sendto|sendmsg|recv|recvfrom|"
    r"recvmsg|select|poll|epoll_wait|epoll_ctl|epoll_create1|eventfd|timerfd_create|"
    r"pthread_create|fork|vfork|posix_spawn|execve|io_uring_.*|sqlite3_.*|_ZNSt6chrono.*3nowEv|"
    r"_ZNSt6thread15_M_start_thread.*|_ZNSt13random_device.*|_ZNSt10filesystem.*|"
    r"_ZNSt1[034]basic_[io]?f(ile|stream).*)(@.*)?")
# Objects behind control's interface.
ALLOWED_OBJECTS = re.compile(r"(embedded|etcd)_\w+\.cc\.o")


def undefined_symbols(archive):
    """Yields (object, symbol)."""
    listing = subprocess.run(["nm", "--undefined-only", "--format=posix", str(archive)],
                             capture_output=True, text=True, check=True).stdout
    member = ""
    for line in listing.splitlines():
        if found := re.fullmatch(r".*\[(.*)\]:", line):
            member = found.group(1)
        elif line.strip():
            yield member, line.split()[0]


def check_archive(archive):
    return [f"{archive.name}({member}): calls {symbol}: storage rooms use the seams of runtime"
            for member, symbol in undefined_symbols(archive)
            if REFUSED.fullmatch(symbol) and not ALLOWED_OBJECTS.fullmatch(member)]


def check_daemon(program):
    if not program.exists():
        return [f"{program} is not built: run ninja first"]
    listing = subprocess.run(["nm", str(program)], capture_output=True, text=True,
                             check=True).stdout
    return [f"peplosd contains {line.split()[-1]}" for line in listing.splitlines()
            if re.search("6peplos(3sim|5swarm|5model)", line)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, default=tree.ROOT / "build/release")
    build = parser.parse_args().build
    results = {}
    for room in sorted(rooms.STORAGE_ROOMS):
        archive = build / "src" / f"libpeplos_{room}.a"
        sources = [path for path in (tree.ROOT / "src" / room).glob("*.cc")
                   if not path.stem.endswith(("_test", "_fuzz", "_main"))]
        if archive.exists():
            results[f"seams of {room}"] = check_archive(archive)
        elif sources:
            results[f"seams of {room}"] = [f"{archive} is not built: run ninja first"]
    results["no simulator in the daemon"] = check_daemon(build / "src/peplosd")
    tree.report(results)


if __name__ == "__main__":
    main()
