#!/usr/bin/env python3
"""Measures Peplos beside fio on the raw file of the same disk, in one run, as ratios.

Each case is measured as raw, Peplos, raw, Peplos, ... so that what the machine does meanwhile hits
both alike; the table shows medians. Suites:
  engine  the engine in its own process, no door in front, all map leaves cached
  leaves  random reads of a larger volume, with all leaves cached and with a quarter of them
  sustained  random writes for a minute with the drain that ends them; and on a device 75 % full
  attach  a real node: fio on the loop device over FUSE, and the pause of a kill -9 (needs root)
Usage: bench/run.py [--suite NAME ...] [--dir DIR] [--seconds S] [--rounds N] [--gib G]
[--large-gib G] [--sustain S] [--sustain-gib G] [--spin-us US] [--only NAME ...] [--json FILE].
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# name, engine arguments, fio arguments, least ratio (docs/performance.md says why). Sequential
# cases come first: random writes leave a volume in pieces, and the cleaning of what they left
# behind would be measured with the next case.
CASES = [
    ("read-128k-q8", ["--op", "read", "--bs", "131072", "--qd", "8"],
     ["--rw=read", "--bs=128k", "--iodepth=8"], 0.95),
    ("write-128k-q8-durable", ["--op", "write", "--bs", "131072", "--qd", "8"],
     ["--rw=write", "--bs=128k", "--iodepth=8", "--sync=dsync"], 0.8),
    ("read-4k-q1", ["--op", "read", "--random", "--bs", "4096", "--qd", "1"],
     ["--rw=randread", "--bs=4k", "--iodepth=1"], None),
    ("read-4k-q32", ["--op", "read", "--random", "--bs", "4096", "--qd", "32"],
     ["--rw=randread", "--bs=4k", "--iodepth=32"], 0.9),
    ("write-4k-q1-durable", ["--op", "write", "--random", "--bs", "4096", "--qd", "1"],
     ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--sync=dsync"], 0.9),
    ("write-4k-q8-durable", ["--op", "write", "--random", "--bs", "4096", "--qd", "8"],
     ["--rw=randwrite", "--bs=4k", "--iodepth=8", "--sync=dsync"], None),
    ("write-4k-q32-durable", ["--op", "write", "--random", "--bs", "4096", "--qd", "32"],
     ["--rw=randwrite", "--bs=4k", "--iodepth=32"], 0.6),
]

# A dense leaf in memory: 1,024 entries of 16 bytes and its bookkeeping; it maps 4 MiB.
LEAF_BYTES = 16 * 1024 + 128
LEAF_SPAN = 4 << 20
READ_Q32 = ["--op", "read", "--random", "--bs", "4096", "--qd", "32"]
# name, share of the leaves that the cache holds, least ratio
LEAF_CASES = [("read-4k-q32-large", 1.0, 0.9), ("read-4k-q32-quarter-leaves", 0.25, 0.45)]

# name, fio arguments on the loop device, fio arguments on the raw file, least ratio. No write is
# acknowledged by a cache here, so the loop device needs no --sync; the raw file does at QD1.
ATTACH_CASES = [
    ("attach-read-4k-q1", ["--rw=randread", "--bs=4k", "--iodepth=1"], [], 0.6),
    ("attach-read-4k-q32", ["--rw=randread", "--bs=4k", "--iodepth=32"], [], 0.75),
    ("attach-write-4k-q1-durable", ["--rw=randwrite", "--bs=4k", "--iodepth=1"],
     ["--sync=dsync"], 0.6),
    ("attach-write-4k-q32-durable", ["--rw=randwrite", "--bs=4k", "--iodepth=32"], [], 0.4),
]

# Random writes of 4 KiB, 32 in flight, durable, over --sustain seconds, with the drain that ends
# them, beside raw writes without sync. Name, live share of the device, percent of the volume that
# is written over first, least ratio. Each has a device of its own.
SUSTAINED = [
    ("write-4k-q32-sustained", 0.5, 0, 0.6),
    ("write-4k-q32-75-full", 0.75, 100, 0.3),
]
RING_BYTES = 512 << 20
OVERLAY_BYTES = 256 << 20


def fio(path, arguments, seconds):
    command = ["fio", "--name=raw", f"--filename={path}", "--ioengine=io_uring", "--direct=1",
               "--time_based", f"--runtime={seconds}", "--output-format=json", *arguments]
    out = json.loads(subprocess.run(command, check=True, capture_output=True,
                                    timeout=seconds + 120).stdout)
    job = out["jobs"][0]
    side = "read" if job["read"]["total_ios"] else "write"
    latency = job[side]["clat_ns"]
    return {"iops": job[side]["iops"], "p50_us": latency["percentile"]["50.000000"] / 1000,
            "p99_us": latency["percentile"]["99.000000"] / 1000,
            "cpu_us_per_op": (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] * 1000
            / max(1, job[side]["total_ios"])}


def lay_raw(path, size):
    subprocess.run(["fio", "--name=lay", f"--filename={path}", "--rw=write", "--bs=1M",
                    "--iodepth=8", "--ioengine=io_uring", "--direct=1", f"--size={size}"],
                   check=True, capture_output=True, timeout=600)


def prepare(program, device, device_bytes, volume_bytes):
    subprocess.run([program, "prepare", "--file", device, "--bytes", str(device_bytes),
                    "--volume", str(volume_bytes)], check=True, timeout=1200)


def engine(program, path, arguments, seconds, extra):
    command = [program, "run", "--file", path, "--seconds", str(seconds), *arguments, *extra]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE,
                                     timeout=seconds + 300).stdout.splitlines()[-1])


def median(rows, key):
    return statistics.median(row[key] for row in rows)


def compare(options, name, raw, ours, least):
    """Calls raw() and ours() in turns; prints and returns the row of the table."""
    raw_rows, our_rows = [], []
    for _ in range(options.rounds):
        raw_rows.append(raw())
        our_rows.append(ours())
    ratios = [o["iops"] / r["iops"] for o, r in zip(our_rows, raw_rows)]
    row = {"case": name, "raw_iops": median(raw_rows, "iops"), "iops": median(our_rows, "iops"),
           "ratio": statistics.median(ratios), "least": least,
           "p50_us": median(our_rows, "p50_us"), "p99_us": median(our_rows, "p99_us"),
           "raw_p99_us": median(raw_rows, "p99_us"),
           "cpu_us_per_op": median(our_rows, "cpu_us_per_op")}
    print(f"| {name} | {row['raw_iops']:,.0f} | {row['iops']:,.0f} | {row['ratio']:.2f} "
          f"({min(ratios):.2f}-{max(ratios):.2f}) | {least or '-'} | {row['p50_us']:.0f} | "
          f"{row['p99_us']:.0f} ({row['raw_p99_us']:.0f}) | {row['cpu_us_per_op']:.1f} |",
          flush=True)
    return row


def is_wanted(options, name):
    return not options.only or name in options.only


def measure_engine(options, program, where):
    raw, device = os.path.join(where, "raw"), os.path.join(where, "device")
    size = options.gib << 30
    lay_raw(raw, size)
    prepare(program, device, size * 2 + (2 << 30), size)
    return [compare(options, name, lambda t=theirs: fio(raw, t, options.seconds),
                    lambda o=ours: engine(program, device, o, options.seconds,
                                          ["--volume", str(size)]), least)
            for name, ours, theirs, least in CASES if is_wanted(options, name)]


def measure_leaves(options, program, where):
    """The raw reads go to the device file itself, behind its ring: one file of this size is
    enough."""
    device = os.path.join(where, "large")
    size = options.large_gib << 30
    prepare(program, device, size + (3 << 30), size)
    raw = ["--rw=randread", "--bs=4k", "--iodepth=32", "--offset=2G", f"--size={size}",
           "--readonly"]
    rows = []
    for name, share, least in LEAF_CASES:
        if not is_wanted(options, name):
            continue
        cache = ["--volume", str(size), "--leaf-cache",
                 str(int(size / LEAF_SPAN * LEAF_BYTES * share))]
        rows.append(compare(options, name, lambda: fio(device, raw, options.seconds),
                            lambda c=cache: engine(program, device, READ_Q32, options.seconds, c),
                            least))
    return rows


def measure_sustained(options, program, where):
    raw, device = os.path.join(where, "raw"), os.path.join(where, "device")
    size = int(options.sustain_gib * (1 << 30)) & ~((1 << 20) - 1)
    lay_raw(raw, size)
    rows = []
    for name, share, overwrite, least in SUSTAINED:
        if not is_wanted(options, name):
            continue
        prepare(program, device, int(size / share) + RING_BYTES + (64 << 20), size)
        load = ["--op", "write", "--random", "--bs", "4096", "--qd", "32", "--with-drain",
                "--overwrite", str(overwrite), "--overlay", str(OVERLAY_BYTES)]
        extra = []

        def ours(into=extra, load=load):
            into.append(engine(program, device, load, options.sustain, ["--volume", str(size)]))
            return into[-1]

        once = argparse.Namespace(**{**vars(options), "rounds": 1})
        row = compare(once, name, lambda: fio(raw, ["--rw=randwrite", "--bs=4k", "--iodepth=32"],
                                              options.sustain), ours, least)
        out = extra[0]
        row.update(turns=out["written_bytes"] / (RING_BYTES + OVERLAY_BYTES),
                   full=out["stored_share"], drain_seconds=out["drain_seconds"],
                   write_amplification=out["storage_bytes"] / out["written_bytes"])
        print(f"  written {row['turns']:.1f} x (ring + overlay), the last drain took "
              f"{row['drain_seconds']:.1f} s, device {row['full']:.0%} live, write amplification "
              f"{row['write_amplification']:.2f}", flush=True)
        rows.append(row)
        os.unlink(device)
    return rows


def measure_attach(options, where):
    from attached import AttachedWorld, longest_pause
    raw = os.path.join(where, "raw")
    size = options.gib << 30
    lay_raw(raw, size)
    world = AttachedWorld(os.path.join(where, "log"), size * 2 + (2 << 30),
                          options.spin_us)
    rows = []
    try:
        folder = world.attach(size)
        pause, restart = longest_pause(world, folder)
        print(f"| kill-9-pause | longest write {pause:.2f} s | API back after {restart:.2f} s | "
              "wanted 2 s |", flush=True)
        rows.append({"case": "kill-9-pause", "pause_seconds": pause, "api_seconds": restart})
        device = world.bare_loop()
        lay_raw(device, size)
        for name, ours, theirs, least in ATTACH_CASES:
            if not is_wanted(options, name):
                continue
            rows.append(compare(options, name,
                                lambda o=ours, t=theirs: fio(raw, [*o, *t], options.seconds),
                                lambda o=ours: fio(device, o, options.seconds), least))
    finally:
        for problem in world.stop():
            print(f"left over: {problem}", file=sys.stderr)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", nargs="*", choices=["engine", "leaves", "sustained", "attach"],
                        default=["engine"])
    parser.add_argument("--dir", default=None, help="where the files go (default: a temporary one)")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gib", type=int, default=4, help="size of the volume and the raw file")
    parser.add_argument("--large-gib", type=int, default=16, help="the volume of the leaves suite")
    parser.add_argument("--sustain", type=int, default=60, help="seconds of a sustained case")
    parser.add_argument("--sustain-gib", type=float, default=4, help="size of its volume")
    parser.add_argument("--spin-us", type=int, default=0, help="core.spin_us of the attach suite")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--json", help="write the rows here as well")
    options = parser.parse_args()
    program = os.path.join(ROOT, "build/release/src/peplos-bench")
    if not os.path.exists(program):
        sys.exit(f"{program} is missing: cmake --preset release && ninja -C build/release")
    rows = []
    for suite in options.suite:
        where = tempfile.mkdtemp(prefix="peplos-bench-", dir=options.dir)
        try:
            print("| case | raw IOPS | Peplos IOPS | ratio (least-most) | wanted | p50 us | "
                  "p99 us (raw) | CPU us/op |\n|---|---:|---:|---:|---:|---:|---:|---:|",
                  flush=True)
            if suite == "engine":
                rows += measure_engine(options, program, where)
            elif suite == "leaves":
                rows += measure_leaves(options, program, where)
            elif suite == "sustained":
                rows += measure_sustained(options, program, where)
            else:
                rows += measure_attach(options, where)
        finally:
            shutil.rmtree(where, ignore_errors=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as out:
            json.dump(rows, out, indent=1)


if __name__ == "__main__":
    main()
