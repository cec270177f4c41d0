#!/usr/bin/env python3
"""Runs clang-tidy-19 (.clang-tidy: bugs and waste) over production sources and their headers.

lint.py [--build FOLDER] [--jobs N] [--since COMMIT] [FILE...]

Looks at what FOLDER's build compiles at once (a source, or a unity file of several): most of the
time goes into what all of them include. With --since only at what changed since that commit, or
includes what did; with FILE only at what holds one of these. What was clean is kept by content in
FOLDER/lint.json and not looked at again. FOLDER must be built as far as its compile_commands.json
and precompiled header.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import subprocess

import tree

TEST = re.compile(r"_test$|_fuzz$")
MEMBER = re.compile(r'^#include "(.*)"$', re.MULTILINE)


def changed_since(commit):
    listing = subprocess.run(["git", "-C", str(tree.ROOT), "diff", "--name-only", commit],
                             capture_output=True, text=True, check=True).stdout
    return {name.removeprefix("src/") for name in listing.splitlines()}


def members_of(compiled):
    """The sources that a compiled file holds: itself, or those of a unity file."""
    path = pathlib.Path(compiled)
    if "Unity" not in path.parts:
        return [path]
    return [pathlib.Path(name) for name in MEMBER.findall(path.read_text())]


def units_of(build):
    """Yields (compiled file, names of its sources below src/) of production code of this tree."""
    ours = set(tree.files())
    for entry in json.loads((build / "compile_commands.json").read_text()):
        names = [path.relative_to(tree.ROOT) for path in members_of(entry["file"])
                 if path.is_relative_to(tree.ROOT)]
        names = [str(name.relative_to("src")) for name in names
                 if name in ours and name.parts[0] == "src" and not TEST.search(name.stem) and
                 "asio_impl" not in name.parts]
        if names:
            yield entry["file"], names


def key_of(sources, known):
    digest = hashlib.sha256((tree.ROOT / ".clang-tidy").read_bytes())
    for name in sorted(set().union(*(tree.transitive_includes(source, known)
                                     for source in sources))):
        path = tree.ROOT / "src" / name
        digest.update(name.encode() + b"\0")
        digest.update(path.read_bytes() if path.is_file() else b"absent")
    return digest.hexdigest()


def lint(compiled, build):
    run = subprocess.run(["clang-tidy-19", "--quiet", "-p", str(build), compiled],
                         cwd=tree.ROOT, capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return []
    return [run.stdout.strip() or run.stderr.strip()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, default=tree.ROOT / "build/release")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--since", metavar="COMMIT")
    parser.add_argument("files", nargs="*", help="sources, as src/room/file.cc; all when none")
    options = parser.parse_args()
    build = options.build.resolve()
    known = {}
    units = dict(units_of(build))
    keys = {unit: key_of(sources, known) for unit, sources in units.items()}
    if options.files:
        units = {unit: sources for unit, sources in units.items()
                 if any(f"src/{source}" in options.files for source in sources)}
    if options.since:
        changed = changed_since(options.since)
        units = {unit: sources for unit, sources in units.items()
                 if any(known[source] & changed for source in sources)}
    store = build / "lint.json"
    passed = json.loads(store.read_text()) if store.exists() else {}
    due = [unit for unit in units if passed.get(unit) != keys[unit]]
    problems = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for unit, found in zip(due, pool.map(lambda name: lint(name, build), due)):
            problems += found
            if not found:
                passed[unit] = keys[unit]
                store.write_text(json.dumps(passed, indent=1))
    print(f"{len(units)} units of {sum(map(len, units.values()))} sources, "
          f"{len(due)} looked at now")
    tree.report({"lint": problems})


if __name__ == "__main__":
    main()
