#!/usr/bin/env python3
"""Measures the engine beside fio on the raw file of the same disk, in one run, as ratios.

Each case is measured as raw, engine, raw, engine, ... so that what the machine does meanwhile hits
both alike; the table shows medians. Usage: bench/run.py [--dir DIR] [--seconds S] [--rounds N]
[--gib G] [--only NAME ...] [--json FILE].
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

# name, engine arguments, fio arguments, least ratio (docs/performance.md says why)
CASES = [
    ("write-4k-q1-durable", ["--op", "write", "--random", "--bs", "4096", "--qd", "1"],
     ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--sync=dsync"], 0.9),
    ("write-4k-q32-durable", ["--op", "write", "--random", "--bs", "4096", "--qd", "32"],
     ["--rw=randwrite", "--bs=4k", "--iodepth=32"], 0.6),
    ("read-4k-q1", ["--op", "read", "--random", "--bs", "4096", "--qd", "1"],
     ["--rw=randread", "--bs=4k", "--iodepth=1"], None),
    ("read-4k-q32", ["--op", "read", "--random", "--bs", "4096", "--qd", "32"],
     ["--rw=randread", "--bs=4k", "--iodepth=32"], 0.9),
    ("write-128k-q8-durable", ["--op", "write", "--bs", "131072", "--qd", "8"],
     ["--rw=write", "--bs=128k", "--iodepth=8", "--sync=dsync"], 0.8),
    ("read-128k-q8", ["--op", "read", "--bs", "131072", "--qd", "8"],
     ["--rw=read", "--bs=128k", "--iodepth=8"], 0.95),
]


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


def engine(program, path, arguments, seconds, extra):
    command = [program, "run", "--file", path, "--seconds", str(seconds), *arguments, *extra]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE,
                                     timeout=seconds + 300).stdout.splitlines()[-1])


def median(rows, key):
    return statistics.median(row[key] for row in rows)


def measure(options, program, raw, device):
    results = []
    for name, ours, theirs, least in CASES:
        if options.only and name not in options.only:
            continue
        raw_rows, our_rows = [], []
        for _ in range(options.rounds):
            raw_rows.append(fio(raw, theirs, options.seconds))
            our_rows.append(engine(program, device, ours, options.seconds,
                                   ["--volume", str(options.gib << 30)]))
        ratios = [o["iops"] / r["iops"] for o, r in zip(our_rows, raw_rows)]
        row = {"case": name, "raw_iops": median(raw_rows, "iops"),
               "iops": median(our_rows, "iops"), "ratio": statistics.median(ratios),
               "least": least, "p50_us": median(our_rows, "p50_us"),
               "p99_us": median(our_rows, "p99_us"), "raw_p99_us": median(raw_rows, "p99_us"),
               "cpu_us_per_op": median(our_rows, "cpu_us_per_op")}
        results.append(row)
        print(f"| {name} | {row['raw_iops']:,.0f} | {row['iops']:,.0f} | {row['ratio']:.2f} "
              f"({min(ratios):.2f}-{max(ratios):.2f}) | {least or '-'} | {row['p50_us']:.0f} | "
              f"{row['p99_us']:.0f} ({row['raw_p99_us']:.0f}) | {row['cpu_us_per_op']:.1f} |",
              flush=True)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default=None, help="where the files go (default: a temporary one)")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gib", type=int, default=4, help="size of the volume and the raw file")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--json", help="write the rows here as well")
    options = parser.parse_args()
    program = os.path.join(ROOT, "build/release/src/peplos-bench")
    if not os.path.exists(program):
        sys.exit(f"{program} is missing: cmake --preset release && ninja -C build/release")
    where = tempfile.mkdtemp(prefix="peplos-bench-", dir=options.dir)
    try:
        raw, device = os.path.join(where, "raw"), os.path.join(where, "device")
        size = options.gib << 30
        subprocess.run(["fio", "--name=lay", f"--filename={raw}", "--rw=write", "--bs=1M",
                        "--iodepth=8", "--ioengine=io_uring", "--direct=1", f"--size={size}"],
                       check=True, capture_output=True, timeout=600)
        subprocess.run([program, "prepare", "--file", device, "--bytes", str(size * 2 + (2 << 30)),
                        "--volume", str(size)], check=True, timeout=900)
        print("| case | raw IOPS | Peplos IOPS | ratio (least-most) | wanted | p50 us | "
              "p99 us (raw) | CPU us/op |\n|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
        rows = measure(options, program, raw, device)
        if options.json:
            with open(options.json, "w", encoding="utf-8") as out:
                json.dump(rows, out, indent=1)
    finally:
        shutil.rmtree(where, ignore_errors=True)


if __name__ == "__main__":
    main()
