"""The source tree as the house tests see it: which files there are, and what they say."""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
CXX = (".h", ".cc", ".c")

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)


def files():
    """Every file of the project, relative to ROOT: tracked or new, never ignored ones."""
    listing = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, check=False)
    if listing.returncode == 0:
        names = sorted(name for name in listing.stdout.decode().split("\0") if name)
        return [pathlib.Path(name) for name in names if (ROOT / name).is_file()]
    # A source package has no repository: everything but what builds leave behind.
    found = []
    for path in sorted(ROOT.rglob("*")):
        relative = path.relative_to(ROOT)
        if path.is_file() and not re.match(r"build|out$|\.git$|\.cache$", relative.parts[0]):
            found.append(relative)
    return found


def text(path):
    """The file's text, or None when it is not text."""
    try:
        return (ROOT / path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def line_of(source, offset):
    return source.count("\n", 0, offset) + 1


def blanked(source):
    """`source` with comments, literals and directives as spaces, so that offsets stay right."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|R"(?P<mark>[^(\s]*)\(.*?\)(?P=mark)"|"(?:\\.|[^"\\\n])*"'
        r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'|^[ \t]*#(?:[^\n\\]|\\.|\\\n)*",
        re.DOTALL | re.MULTILINE)
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), source)


def transitive_includes(path, known):
    """The project's headers that `path` (below src/) reaches, itself included."""
    if path in known:
        return known[path]
    known[path] = {path}
    reached = {path}
    source = text(pathlib.Path("src") / path) if (ROOT / "src" / path).is_file() else ""
    for name in INCLUDE.findall(source or ""):
        reached |= transitive_includes(name, known)
    known[path] = reached
    return reached


def report(results):
    """Prints the problems of {check: [problem]}, a verdict for each check and the count of both,
    and ends the program: with 1 when there was any problem."""
    failed = 0
    for check, problems in results.items():
        for problem in problems:
            print(problem)
        count = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}"
        print(f"{'FAIL' if problems else 'ok'} {check}: {count}")
        failed += bool(problems)
    print(f"{len(results) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)
