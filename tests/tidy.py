#!/usr/bin/env python3
"""The house rules that a program can check, over the whole tree.

tidy.py [CHECK...]
  rooms    every #include agrees with src/rooms.txt; storage rooms see the world through the seams
  style    lengths of lines, functions and files; words and folder names that we do not use
  format   clang-format leaves every C++ file as it is
  docs     files that the documents name exist
"""

import re
import subprocess
import sys

import rooms
import tree

COLUMNS_MAX = 100
FUNCTION_LINES_MAX = 70
FILE_LINES_GOAL = 800
FILE_LINES_MAX = 1500
CODE = tree.CXX + (".py", ".sh", ".cmake")
FOLDERS_REFUSED = {"common", "util", "utils", "helper", "helpers", "manager", "managers", "misc"}
# Written apart so that this file does not find itself.
WORDS_REFUSED = re.compile(r"\b(" + "|".join(["TO" "DO", "FIX" "ME", "X" "XX", "HA" "CK"]) + r")\b")
MACHINE_PATH = re.compile(r"(?<![\w./-])/" + r"work/")
NOT_A_FUNCTION = re.compile(
    r"^\s*(template\s*<.*>\s*)?(inline\s+)?(typedef\s+)?"
    r"(namespace|class|struct|union|enum|extern\s*$)\b")
DOCUMENTS = re.compile(r"^(README|ARCHITECTURE|SECURITY|CONTRIBUTING)\.md$|^docs/.*\.md$")
NAMED_PATH = re.compile(
    r"^(\./)?((src|docs|tests|bench|deploy|web|cmake|\.ci)/[\w./+-]*|"
    r"[\w-]+/[\w./-]+\.(h|cc|md|py|sh|txt|toml|cmake))(:\d+)?$")


def functions(source):
    """Yields (first line, last line, name) of every function body at namespace or class level."""
    blank = tree.blanked(source)
    stack = []  # (opens a scope that may hold functions, first line or None, name)
    start = 0
    for found in re.finditer(r"[{};]|\b(?:public|private|protected):", blank):
        mark = found.group()
        if mark == "}":
            if stack:
                _, first, name = stack.pop()
                if first is not None:
                    yield first, tree.line_of(blank, found.start()), name
        elif mark == "{":
            head = blank[start:found.start()]
            outside = all(scope for scope, _, _ in stack)
            is_scope = bool(NOT_A_FUNCTION.match(head.strip())) or not head.strip()
            is_scope = is_scope or head.strip() == "extern"
            has_call = "(" in head and not head.rstrip().endswith("=")
            if outside and has_call and not is_scope:
                at = start + len(head) - len(head.lstrip())
                name = re.search(r"([\w:~]+)\s*\(", head)
                label = name.group(1) if name else "a function"
                stack.append((False, tree.line_of(blank, at), label))
            else:
                stack.append((outside and is_scope, None, ""))
        start = found.end()


def check_style(path, source):
    problems = []
    for number, line in enumerate(source.splitlines(), start=1):
        if path.suffix in CODE and len(line) > COLUMNS_MAX:
            problems.append(f"{path}:{number}: {len(line)} columns, at most {COLUMNS_MAX}")
        if found := WORDS_REFUSED.search(line):
            problems.append(f"{path}:{number}: '{found.group()}': finish it or file an issue")
        if MACHINE_PATH.search(line):
            problems.append(f"{path}:{number}: names a path of one machine")
    if path.suffix not in CODE:
        return problems
    lines = source.count("\n")
    if lines > FILE_LINES_MAX:
        problems.append(f"{path}:1: {lines} lines, at most {FILE_LINES_MAX}")
    elif lines > FILE_LINES_GOAL:
        print(f"note: {path} has {lines} lines, {FILE_LINES_GOAL} are enough")
    if path.suffix in tree.CXX:
        for first, last, name in functions(source):
            if last - first + 1 > FUNCTION_LINES_MAX:
                problems.append(f"{path}:{first}: {name} has {last - first + 1} lines, at most "
                                f"{FUNCTION_LINES_MAX}")
    if path.suffix == ".h" and "#pragma once" not in source:
        problems.append(f"{path}:1: a header begins with #pragma once")
    return problems


def style():
    problems = []
    for path in tree.files():
        refused = FOLDERS_REFUSED.intersection(part.lower() for part in path.parts[:-1])
        refused |= FOLDERS_REFUSED.intersection({path.stem.lower()})
        if refused:
            problems.append(f"{path}:1: '{refused.pop()}' says nothing: name its one purpose")
        source = tree.text(path)
        if source is not None and "corpus" not in path.parts:
            problems += check_style(path, source)
    return problems


def formatting():
    paths = [str(path) for path in tree.files() if path.suffix in tree.CXX]
    run = subprocess.run(["clang-format-19", "--dry-run", "-Werror", *paths], cwd=tree.ROOT,
                         capture_output=True, text=True, check=False)
    places = re.findall(r"^([^\s:]+:\d+):\d+: error", run.stderr, re.MULTILINE)
    problems = [f"{place}: clang-format-19 would change this" for place in places]
    if run.returncode != 0 and not problems:
        problems = [run.stderr.strip()]
    return problems


def exists(document, name):
    """Whether a named file is there: from the root, from src/, or beside the document."""
    name = name.removeprefix("./").split("#")[0].rstrip("/")
    name = re.sub(r":\d+$", "", name)
    places = [tree.ROOT / name, tree.ROOT / "src" / name, tree.ROOT / document.parent / name]
    return any(place.exists() for place in places)


def docs():
    problems = []
    for path in tree.files():
        if not DOCUMENTS.match(str(path)):
            continue
        source = tree.text(path)
        links = [(found.start(), found.group(1))
                 for found in re.finditer(r"\]\(([^)\s]+)\)", source)
                 if not re.match(r"[a-z]+:|#", found.group(1))]
        named = [(found.start(), found.group(1)) for found in re.finditer(r"`([^`\n]+)`", source)
                 if NAMED_PATH.match(found.group(1))]
        for offset, name in links + named:
            if not exists(path, name):
                line = tree.line_of(source, offset)
                problems.append(f"{path}:{line}: '{name}' does not exist")
    return problems


def main():
    checks = {"rooms": rooms.check, "style": style, "format": formatting, "docs": docs}
    chosen = sys.argv[1:] or list(checks)
    if not set(chosen) <= set(checks):
        sys.exit(__doc__)
    tree.report({name: checks[name]() for name in chosen})


if __name__ == "__main__":
    main()
