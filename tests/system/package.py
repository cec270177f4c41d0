#!/usr/bin/env python3
"""Builds the Debian package from the release build and checks what is in it."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build/release"
WANTED = {
    "./usr/bin/peplos", "./usr/sbin/peplosd", "./usr/libexec/peplos/peplosd",
    "./usr/libexec/peplos/peplos-holder", "./usr/libexec/peplos/peplos-mounter",
    "./usr/lib/systemd/system/peplosd.service", "./usr/lib/systemd/system/peplos-holder.service",
    "./usr/lib/systemd/system/peplos-docker.socket",
    "./usr/lib/systemd/system/run-peplos-mnt-.mount.d/10-peplos.conf",
    "./usr/lib/systemd/system/docker-.scope.d/10-peplos.conf", "./usr/share/man/man1/peplos.1.gz",
    "./usr/share/man/man8/peplosd.8.gz", "./usr/share/man/man5/peplosd.toml.5.gz",
    "./usr/share/bash-completion/completions/peplos",
}


def run(*words, **options):
    return subprocess.run([str(word) for word in words], capture_output=True, text=True,
                          timeout=240, **options)


def check_content(deb):
    listing = run("dpkg-deb", "-c", deb).stdout
    names = {re.sub(r" -> .*", "", line.split(None, 5)[5]) for line in listing.splitlines()}
    missing = WANTED - names
    assert not missing, f"not in the package: {sorted(missing)}"
    owners = {line.split()[1] for line in listing.splitlines()}
    assert owners == {"root/root"}, f"owners: {owners}"


def check_control(deb):
    fields = run("dpkg-deb", "-f", deb).stdout
    for word in ("Package: peplos", "libc6", "libsqlite3-0", "e2fsprogs", "xfsprogs"):
        assert word in fields, f"{word} is not in the control fields:\n{fields}"


def check_programs(deb):
    with tempfile.TemporaryDirectory() as folder:
        assert run("dpkg-deb", "-x", deb, folder).returncode == 0, "dpkg-deb -x failed"
        for program in ("usr/bin/peplos", "usr/sbin/peplosd"):
            done = run(Path(folder) / program, "--version")
            assert done.returncode == 0 and "0." in done.stdout, f"{program}: {done}"
        done = run("bash", "-n", Path(folder) / "usr/share/bash-completion/completions/peplos")
        assert done.returncode == 0, done.stderr
        for page in ("man1/peplos.1.gz", "man8/peplosd.8.gz", "man5/peplosd.toml.5.gz"):
            done = run("man", "--warnings", "-l", Path(folder) / "usr/share/man" / page)
            assert done.returncode == 0 and "warning" not in done.stderr, f"{page}: {done.stderr}"


def check_units(_deb):
    units = sorted((REPOSITORY / "deploy/systemd").glob("peplos*"))
    # The programs are not installed here, so systemd-analyze is asked about copies without them.
    with tempfile.TemporaryDirectory() as folder:
        for unit in units:
            text = re.sub(r"^(Exec\w+)=\S+", r"\1=/bin/true", unit.read_text(), flags=re.M)
            (Path(folder) / unit.name).write_text(text)
        done = run("systemd-analyze", "verify", "--man=no",
                   *(Path(folder) / unit.name for unit in units))
        ours = [line for line in done.stderr.splitlines() if "peplos" in line]
        assert not ours, "\n".join(ours)


def main():
    packed = run("cpack", "-G", "DEB", "-B", BUILD / "package/out", cwd=BUILD)
    print(packed.stdout, packed.stderr)
    found = sorted((BUILD / "package/out").glob("peplos_*.deb"))
    if packed.returncode != 0 or not found:
        print("FAIL cpack\n0 passed, 1 failed")
        return 1
    passed = failed = 0
    for check in (check_content, check_control, check_programs, check_units):
        try:
            check(found[-1])
            passed += 1
            print("ok  ", check.__name__)
        except (AssertionError, subprocess.SubprocessError, OSError) as error:
            failed += 1
            print("FAIL", check.__name__, error)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
