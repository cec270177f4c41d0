#!/usr/bin/env python3
"""Compiles every header below src/ alone: whoever includes it first gets what it needs.

tidy_headers.py [--build FOLDER] [--jobs N]

Flags come from FOLDER/compile_commands.json, without the shared precompiled header, which would
hide what is missing. Headers that reach runtime/task.h begin from a precompiled task.h: it changes
nothing they see, and Boost.Asio is parsed once. Results are kept by content in FOLDER/headers.json.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import shlex
import subprocess

import tree

HEAVY = "runtime/task.h"
# What belongs to one translation unit, and the shared precompiled header.
DROPPED = {"-c", "-MD"}
DROPPED_WITH_VALUE = {"-o", "-MT", "-MF"}


def flags_of(build):
    """The flags of a file of the highest room that is built: they hold every room's."""
    commands = json.loads((build / "compile_commands.json").read_text())
    commands = [entry for entry in commands if "/src/" in entry["file"] and
                "_tests.dir" not in entry["command"] and
                not entry["file"].endswith((".hxx.cxx", "_test.cc"))]
    words = max((shlex.split(entry["command"]) for entry in commands), key=len)
    words = words[next(i for i, word in enumerate(words) if word.endswith("clang++-19")):]
    flags = []
    skip = 0
    for i, word in enumerate(words[:-1]):
        if skip:
            skip -= 1
        elif word in DROPPED:
            pass
        elif word in DROPPED_WITH_VALUE:
            skip = 1
        elif word == "-Xclang" and words[i + 1] in ("-include-pch", "-include"):
            skip = 3
        elif word != "-Winvalid-pch":
            flags.append(word)
    return flags


def key_of(header, flags, known):
    digest = hashlib.sha256("\0".join(flags).encode())
    for name in sorted(tree.transitive_includes(header, known)):
        path = tree.ROOT / "src" / name
        digest.update(name.encode() + b"\0")
        digest.update(path.read_bytes() if path.is_file() else b"absent")
    return digest.hexdigest()


def compile_alone(header, flags, precompiled):
    command = flags + ["-fsyntax-only", "-Wno-unused-function", "-x", "c++"]
    if precompiled:
        command += ["-include-pch", str(precompiled)]
    run = subprocess.run(command + ["-"], input=f'#include "{header}"\n', capture_output=True,
                         text=True, cwd=tree.ROOT, check=False)
    return "" if run.returncode == 0 else run.stderr.strip()


def precompile(build, flags):
    """The precompiled runtime/task.h, or None when it does not compile (the test then says so)."""
    target = build / "headers_task.pch"
    command = flags + ["-x", "c++-header", str(tree.ROOT / "src" / HEAVY), "-o", str(target)]
    run = subprocess.run(command, capture_output=True, cwd=tree.ROOT, check=False)
    return target if run.returncode == 0 else None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, default=tree.ROOT / "build/release")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    options = parser.parse_args()
    build = options.build.resolve()
    flags = flags_of(build)
    store = build / "headers.json"
    passed = json.loads(store.read_text()) if store.exists() else {}
    headers = [str(path.relative_to("src")) for path in tree.files()
               if path.parts[0] == "src" and path.suffix == ".h" and path.name != "pch.h"]
    known = {}
    keys = {header: key_of(header, flags, known) for header in headers}
    due = [header for header in headers if passed.get(header) != keys[header]]
    heavy = {header for header in due if HEAVY in known[header] and header != HEAVY}
    precompiled = precompile(build, flags) if heavy else None
    problems = []
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        runs = {header: pool.submit(compile_alone, header, flags,
                                    precompiled if header in heavy else None) for header in due}
        for header, run in runs.items():
            if run.result():
                problems.append(f"src/{header}:1: does not compile alone\n{run.result()}")
            else:
                passed[header] = keys[header]
    store.write_text(json.dumps({header: passed[header] for header in headers if header in passed},
                                indent=1))
    print(f"{len(headers)} headers, {len(due)} compiled now")
    tree.report({"headers": problems})


if __name__ == "__main__":
    main()
