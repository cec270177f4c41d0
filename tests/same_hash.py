#!/usr/bin/env python3
"""The same seed is the same run in every build: compares the event hashes of peplos-sim.

same_hash.py [--seeds N] BUILD...    build folders, as build/release build/asan build/dev
"""
import argparse
import pathlib
import re
import subprocess
import sys

CONFIGS = ("swarm", "crash", "disk", "sync", "damage", "cluster")


def hashes(build, config, seeds):
    done = subprocess.run([str(build / "src/peplos-sim"), "--config", config, "--runs", str(seeds),
                           "--verbose"], stdout=subprocess.PIPE, text=True, check=True)
    return re.findall(r"^ok seed (\d+) hash (\w+)$", done.stdout, re.M)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=4, help="of each config")
    parser.add_argument("builds", nargs="+", type=pathlib.Path)
    options = parser.parse_args()
    failed = 0
    for config in CONFIGS:
        found = {str(build): hashes(build, config, options.seeds) for build in options.builds}
        first = next(iter(found.values()))
        is_same = len(first) == options.seeds and all(one == first for one in found.values())
        print(f"{'ok' if is_same else 'FAIL'} {config}: {found if not is_same else first}")
        failed += not is_same
    print(f"{len(CONFIGS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
