#!/usr/bin/env python3
"""Runs the system tests: real peplosd, real dockerd, real kill -9. Ends with "N passed, N failed".

    run.py [--list] [--log-dir DIR] [--long SECONDS] [CASE...]

Each case has a world of its own (world.py) and a bound on its time.
"""

import argparse
import dataclasses
import importlib
import os
import pkgutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import leftovers  # noqa: E402
from world import BIN, Failed, World  # noqa: E402


class Late(BaseException):
    """The time of a case is over."""


def find_cases():
    """name -> function, from every cases_*.py, in the order of the files and of their lines."""
    cases = {}
    for module in sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)])):
        if module.startswith("cases_"):
            loaded = importlib.import_module(module)
            for name, function in vars(loaded).items():
                if hasattr(function, "case_seconds"):
                    cases[name] = function
    return cases


def on_alarm(_signal, _frame):
    raise Late()


def on_stop(_signal, _frame):
    raise KeyboardInterrupt()


def run_case(name, function, log_dir, long_seconds):
    """None when it passed, else what went wrong. The world is gone afterwards in any case."""
    world = World(name.replace("_", "-"), log_dir / name, device=function.device)
    world.long_seconds = long_seconds
    problem = None
    limit = function.case_seconds + 2 * long_seconds
    signal.alarm(int(limit))
    try:
        function(world)
    except Late:
        problem = f"not done after {limit} s"
    except Failed as error:
        problem = str(error)
    except Exception:
        problem = traceback.format_exc()
    finally:
        signal.alarm(0)
        if problem is not None:
            problem = "\n".join([problem, *world.deaths()])
        ended = end_world(world)
    # A case that failed may have left its world in any state; one that passed may not.
    if problem is None and ended.problems:
        problem = "; ".join(ended.problems)
    if ended.left:
        problem = "\n".join(([problem] if problem else []) + [f"left: {x}" for x in ended.left])
    return problem


@dataclasses.dataclass
class Ended:
    problems: list  # with its end
    left: list      # on the host, after its end


def end_world(world):
    """Stops it and looks what is left on the host. Whatever that is, it is gone afterwards."""
    signal.alarm(150)
    try:
        ended = Ended(world.stop(), world.left())
    except Late:
        ended = Ended(["cleaning up took longer than 150 s"], leftovers.find(world.paths))
    signal.alarm(60)
    try:
        if ended.left:
            leftovers.sweep(world.paths, world.fuse_connections, world.containers)
    except Late:
        ended.problems.append("sweeping up took longer than 60 s")
    signal.alarm(0)
    return ended


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--log-dir", default="/tmp/peplos-test-logs")
    parser.add_argument("--long", type=int, default=0)
    parser.add_argument("cases", nargs="*")
    arguments = parser.parse_args()
    cases = find_cases()
    if arguments.list:
        print("\n".join(cases))
        return 0
    unknown = [name for name in arguments.cases if name not in cases]
    if unknown:
        print(f"error: no case {', '.join(unknown)}; known: {', '.join(cases)}")
        return 2
    if os.getuid() != 0:
        print("error: system tests need root")
        return 2
    for program in ("peplosd", "peplos", "peplos-holder", "peplos-mounter"):
        if not (BIN / program).exists():
            print(f"error: {BIN / program} is missing; build it first: ./test --only release")
            print("0 passed, 1 failed")
            return 1
    signal.signal(signal.SIGALRM, on_alarm)
    signal.signal(signal.SIGTERM, on_stop)
    if not os.path.ismount(leftovers.CONNECTIONS):
        subprocess.run(["mount", "-t", "fusectl", "none", leftovers.CONNECTIONS], check=False)
    leftovers.sweep_dead_runs()
    passed, failed = 0, []
    for name in arguments.cases or cases:
        began = time.monotonic()
        try:
            problem = run_case(name, cases[name], Path(arguments.log_dir), arguments.long)
        except KeyboardInterrupt:
            print("interrupted")
            failed.append(name)
            break
        seconds = time.monotonic() - began
        if problem is None:
            passed += 1
            print(f"ok   {name} ({seconds:.1f} s)", flush=True)
        else:
            failed.append(name)
            print(f"FAIL {name} ({seconds:.1f} s), logs: {arguments.log_dir}/{name}", flush=True)
            print("\n".join("     " + line for line in problem.splitlines()), flush=True)
    print(f"{passed} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
