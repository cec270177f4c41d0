#!/usr/bin/env python3
"""Runs clang-tidy-19 (.clang-tidy: bugs and waste) over production sources and their headers.

lint.py [--build FOLDER] [--jobs N] [--since COMMIT] [FILE...]

With --since only sources that changed, or include a header that changed, since that commit. Sources
that were clean are kept by content in FOLDER/lint.json and not looked at again. FOLDER must be
built as far as its compile_commands.json and precompiled header.
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


def changed_since(commit):
    listing = subprocess.run(["git", "-C", str(tree.ROOT), "diff", "--name-only", commit],
                             capture_output=True, text=True, check=True).stdout
    return {name.removeprefix("src/") for name in listing.splitlines()}


def key_of(source, known):
    digest = hashlib.sha256((tree.ROOT / ".clang-tidy").read_bytes())
    for name in sorted(tree.transitive_includes(source, known)):
        path = tree.ROOT / "src" / name
        digest.update(name.encode() + b"\0")
        digest.update(path.read_bytes() if path.is_file() else b"absent")
    return digest.hexdigest()


def lint(source, build):
    run = subprocess.run(["clang-tidy-19", "--quiet", "-p", str(build), f"src/{source}"],
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
    built = {entry["file"] for entry in json.loads((build / "compile_commands.json").read_text())}
    sources = [str(path.relative_to("src")) for path in tree.files()
               if path.parts[0] == "src" and path.suffix == ".cc" and not TEST.search(path.stem)
               and str(tree.ROOT / path) in built and "asio_impl" not in path.parts]
    known = {}
    keys = {source: key_of(source, known) for source in sources}
    if options.files:
        sources = [source for source in sources if f"src/{source}" in options.files]
    if options.since:
        changed = changed_since(options.since)
        sources = [source for source in sources if known[source] & changed]
    store = build / "lint.json"
    passed = json.loads(store.read_text()) if store.exists() else {}
    due = [source for source in sources if passed.get(source) != keys[source]]
    problems = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for source, found in zip(due, pool.map(lambda name: lint(name, build), due)):
            problems += found
            if not found:
                passed[source] = keys[source]
                store.write_text(json.dumps(passed, indent=1))
    print(f"{len(sources)} sources, {len(due)} looked at now")
    tree.report({"lint": problems})


if __name__ == "__main__":
    main()
