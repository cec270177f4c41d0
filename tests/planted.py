#!/usr/bin/env python3
"""Has peplos-sim make each mistake that it knows (src/swarm/planted.h), which it must find.

planted.py [--program FILE] [--trials N] [--seeds N] [--only NAME ...]
Each trial begins at a seed of its own and ends with the first seed that fails. Prints how many
seeds that took, the median over the trials, then "N passed, M failed".
"""
import argparse
import concurrent.futures
import os
import re
import statistics
import subprocess
import sys

import tree


def mistakes(program):
    out = subprocess.run([program, "--list-planted"], check=True, stdout=subprocess.PIPE, text=True)
    return {name: (config, what) for name, config, what in
            (line.split("\t") for line in out.stdout.splitlines())}


def seeds_needed(options, name, config, trial):
    """The number of seeds up to the first that fails, or what ran out before one did."""
    first = 1 + trial * 100_000
    command = [options.program, "--plant", name, "--config", config, "--seed", str(first),
               "--runs", str(options.seeds)]
    # A mistake may also end in an abort or run into the bound of time: both are noticed.
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              errors="replace", timeout=options.seconds)
    except subprocess.TimeoutExpired:
        return f"{options.seconds} s"
    found = re.search(r"^FAIL seed (\d+)", done.stdout, re.M)
    return int(found[1]) - first + 1 if found else f"{options.seeds} seeds"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", default=str(tree.ROOT / "build/release/src/peplos-sim"))
    parser.add_argument("--trials", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=60, help="in a trial, at most")
    parser.add_argument("--seconds", type=int, default=300, help="for a trial, at most")
    parser.add_argument("--only", nargs="+")
    options = parser.parse_args()
    known = mistakes(options.program)
    names = options.only or list(known)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        trials = {name: [pool.submit(seeds_needed, options, name, known[name][0], trial)
                         for trial in range(options.trials)]
                  for name in names}
        for name, running in trials.items():
            needed = [trial.result() for trial in running]
            if unfound := [bound for bound in needed if isinstance(bound, str)]:
                failed += 1
                print(f"FAIL {name}: {known[name][1]}: not found within {', '.join(unfound)}",
                      flush=True)
                continue
            print(f"ok {name}: seeds {needed}, median {statistics.median(needed):g}", flush=True)
    print(f"{len(names) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
