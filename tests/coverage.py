#!/usr/bin/env python3
"""Branch coverage of the storage rooms, by clang's source-based coverage.

coverage.py [--seeds N] [--least PERCENT] [--files]   builds, runs, prints a table
coverage.py --missing FILE [...]                      what no run took, with its source lines
coverage.py --left-out                                what is not counted, with its source lines
  --again   reads the profiles of the last run instead of building and running

Builds the preset `coverage`, runs the unit tests of the rooms, then peplos-sim over the seeds of
every plan and every sequence of two operations. The table has both figures: that of the unit tests
alone, and that of everything.

A branch is one arm (true or false) of one condition at one place in the source: operands of && and
||, cases, and the error arm of every TRY count; instantiations of a template count as one. Not
counted, and printed by --left-out: conditions inside CHECK (its other arm ends the program), and
those inside FAULT, PROBE and PLANTED (null but in a simulator). Files that only tests reach are no
part of a room. Conditions that the compiler knows (while (true), if constexpr) have no arms.
"""
import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import tree

BUILD = tree.ROOT / "build/coverage"
PROFILES = BUILD / "profiles"
# The rooms with a goal come first.
ROOMS = ("format", "media", "volume", "replica", "keeper", "fabric", "control")
GOAL_ROOMS = ROOMS[:3]
UNIT_PROGRAMS = [f"{room}_tests" for room in ROOMS]
SIM_PROGRAMS = ["swarm_tests", "peplos-sim"]
PLANS = ("swarm", "crash", "disk", "sync", "damage")
LEFT_OUT_MACROS = {"CHECK", "FAULT", "PROBE", "PLANTED"}
TOOL = {name: shutil.which(name + "-19") or f"/usr/lib/llvm-19/bin/{name}"
        for name in ("llvm-profdata", "llvm-cov")}
EXPANSION = 1  # the kind of a region in llvm-cov's export


def is_test(name):
    return re.search(r"_(test|fuzz|main)\.cc$", name) is not None


def production_files():
    """Of each counted room: the files that some production source of any room reaches."""
    known = {}
    reached = set()
    for path in tree.files():
        if path.parts[0] != "src" or path.suffix != ".cc" or is_test(path.name):
            continue
        if path.parts[1] in ("sim", "swarm"):
            continue
        reached |= tree.transitive_includes("/".join(path.parts[1:]), known)
    return {path for path in reached
            if path.split("/")[0] in ROOMS and (tree.ROOT / "src" / path).is_file()}


def run(name, command):
    """Runs a program with a profile of its own. Gives its name and whether it ended well."""
    env = dict(os.environ, LLVM_PROFILE_FILE=str(PROFILES / f"{name}.profraw"))
    with open(PROFILES / f"{name}.log", "w", encoding="utf-8") as log:
        try:
            done = subprocess.run(command, env=env, stdout=log, stderr=log, timeout=1200)
        except subprocess.TimeoutExpired:
            return name, False
    return name, done.returncode == 0


def run_all(seeds):
    programs = UNIT_PROGRAMS + SIM_PROGRAMS
    subprocess.run(["cmake", "--preset", "coverage"], cwd=tree.ROOT, check=True,
                   stdout=subprocess.DEVNULL)
    subprocess.run(["ninja", "-C", str(BUILD), "-j", str(os.cpu_count()), *programs], check=True,
                   stdout=subprocess.DEVNULL)
    shutil.rmtree(PROFILES, ignore_errors=True)
    PROFILES.mkdir(parents=True)
    sim = str(BUILD / "src/peplos-sim")
    commands = {f"unit-{name}": [str(BUILD / "src" / name), "--gtest_brief=1"]
                for name in UNIT_PROGRAMS}
    commands["sim-swarm_tests"] = [str(BUILD / "src/swarm_tests"), "--gtest_brief=1"]
    for plan in PLANS:
        commands[f"sim-{plan}"] = [sim, "--config", plan, "--runs", str(seeds)]
    commands["sim-exhaustive"] = [sim, "--exhaustive", "2"]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        ended = list(pool.map(lambda item: run(*item), commands.items()))
    failed = [name for name, is_good in ended if not is_good]
    for name in failed:
        print(f"FAIL {name}: see {(PROFILES / name).relative_to(tree.ROOT)}.log")
    return not failed


def export(kind):
    """What llvm-cov says of each function, over the profiles whose names begin with `kind`."""
    merged = PROFILES / f"{kind or 'all'}.profdata"
    raw = sorted(str(path) for path in PROFILES.glob(f"{kind}*.profraw"))
    subprocess.run([TOOL["llvm-profdata"], "merge", "-sparse", "-o", str(merged), *raw], check=True)
    binaries = [str(BUILD / "src" / name) for name in UNIT_PROGRAMS + SIM_PROGRAMS]
    objects = [part for binary in binaries[1:] for part in ("-object", binary)]
    folders = [str(tree.ROOT / "src" / room) for room in ROOMS]
    done = subprocess.run([TOOL["llvm-cov"], "export", binaries[0], *objects,
                           f"-instr-profile={merged}", *folders],
                          check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout)["data"][0]["functions"]


class Sources:
    """Lines of source files, by their path below src/."""

    def __init__(self):
        self.known = {}

    def lines(self, path):
        if path not in self.known:
            self.known[path] = (tree.ROOT / "src" / path).read_text(encoding="utf-8").splitlines()
        return self.known[path]

    def text(self, path, begin, end):
        """What stands from (line, column) to (line, column), in one line."""
        lines = self.lines(path)[begin[0] - 1:end[0]]
        if not lines:
            return ""
        if len(lines) == 1:
            return lines[0][begin[1] - 1:end[1] - 1]
        lines = [lines[0][begin[1] - 1:], *lines[1:-1], lines[-1][:end[1] - 1]]
        return " ".join(line.strip() for line in lines)


class Function:
    """Resolves the places of one function's regions, which may lie in macros in macros."""

    def __init__(self, record, sources):
        root = str(tree.ROOT / "src") + os.sep
        self.files = [str(pathlib.Path(name).resolve()).removeprefix(root)
                      for name in record["filenames"]]
        self.sources = sources
        # Of a file that stands for an expansion: where that is.
        self.expansions = {region[6]: region for region in record["regions"]
                           if region[7] == EXPANSION}
        self.branches = record["branches"]

    def place(self, file):
        """(path, (line, column)) outside of all macros, and the names of those around it; the
        position is None where it is in none."""
        macros = []
        position = None
        while file in self.expansions:
            region = self.expansions[file]
            file = region[5]
            macros.append(self.sources.text(self.files[file], region[0:2], region[2:4])
                          if not self.files[file].startswith("/") else "")
            position = (region[0], region[1])
        return self.files[file], position, macros


def collect(functions, files, sources):
    """{(path, line, column, place in macro, number among equals): (text, macros, [arms taken])}"""
    found = {}
    for record in functions:
        function = Function(record, sources)
        counted = collections.Counter()
        for branch in function.branches:
            path, position, macros = function.place(branch[6])
            if path not in files:
                continue
            inside = (function.files[branch[6]], branch[0], branch[1]) if position else None
            at = position or (branch[0], branch[1])
            text = macros[-1] if macros else sources.text(path, at, branch[2:4])
            key = (path, *at, inside)
            counted[key] += 1
            entry = found.setdefault((*key, counted[key]), (text, macros, [0, 0]))
            entry[2][0] += branch[4]
            entry[2][1] += branch[5]
    return found


def is_left_out(entry):
    return any(macro in LEFT_OUT_MACROS for macro in entry[1])


def tally(branches, label_of):
    """{label: [arms, arms taken]} of what counts."""
    out = collections.defaultdict(lambda: [0, 0])
    for key, entry in branches.items():
        if is_left_out(entry):
            continue
        out[label_of(key[0])][0] += 2
        out[label_of(key[0])][1] += sum(count > 0 for count in entry[2])
    return out


def percent(arms, taken):
    return 100.0 * taken / arms if arms else 100.0


def print_table(unit, everything, with_files):
    def row(name, of_unit, of_all):
        print(f"{name:<34} {of_all[0]:>8} {of_unit[1]:>8} {percent(*of_unit):>6.1f} "
              f"{of_all[1]:>8} {percent(*of_all):>6.1f}")

    print(f"{'':<34} {'branches':>8} {'unit':>8} {'%':>6} {'all':>8} {'%':>6}")
    rooms = [tally(branches, lambda path: path.split("/")[0]) for branches in (unit, everything)]
    files = [tally(branches, lambda path: path) for branches in (unit, everything)]
    for room in ROOMS:
        row(room, rooms[0][room], rooms[1][room])
        for path in sorted(files[1]) if with_files else ():
            if path.startswith(room + "/"):
                row("  " + path, files[0][path], files[1][path])
    left_out = collections.Counter(next(name for name in entry[1] if name in LEFT_OUT_MACROS)
                                   for entry in everything.values() if is_left_out(entry))
    print("left out (conditions): " +
          ", ".join(f"{name} {count}" for name, count in sorted(left_out.items())))
    return rooms


def print_places(branches, sources, chosen):
    """chosen(key, entry) says why a condition is printed, or gives None."""
    for key in sorted(branches, key=lambda key: (key[0], key[1], key[2])):
        why = chosen(key, branches[key])
        if why is None:
            continue
        path, line, column = key[:3]
        print(f"src/{path}:{line}:{column}: {why}: {branches[key][0]}")
        print(f"    {sources.lines(path)[line - 1].strip()}")


def missing(entry):
    if is_left_out(entry):
        return None
    names = [name for name, count in zip(("true", "false"), entry[2]) if count == 0]
    return f"never {' or '.join(names)}" if names else None


def parse():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--seeds", type=int, default=40, help="of each plan of peplos-sim")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--files", action="store_true")
    parser.add_argument("--unit", action="store_true", help="--missing from the unit tests")
    parser.add_argument("--least", type=float, help="percent of format, media and volume")
    parser.add_argument("--missing", nargs="+", metavar="FILE", help="a file or a room, below src/")
    parser.add_argument("--left-out", action="store_true")
    return parser.parse_args()


def main():
    options = parse()
    is_good = options.again or run_all(options.seeds)
    sources = Sources()
    files = production_files()
    unit = collect(export("unit"), files, sources)
    everything = collect(export(""), files, sources)
    if options.missing:
        names = tuple(name.removeprefix("src/").rstrip("/") for name in options.missing)
        print_places(unit if options.unit else everything, sources,
                     lambda key, entry: missing(entry)
                     if key[0] in names or key[0].split("/")[0] in names else None)
    elif options.left_out:
        print_places(everything, sources, lambda key, entry:
                     "in " + entry[1][-1] if is_left_out(entry) else None)
    else:
        _, rooms = print_table(unit, everything, options.files)
        if options.least is not None:
            short = [room for room in GOAL_ROOMS if percent(*rooms[room]) < options.least]
            for room in short:
                print(f"FAIL {room}: below {options.least} %")
            is_good = is_good and not short
            print(f"{len(GOAL_ROOMS) - len(short)} passed, {len(short)} failed")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
