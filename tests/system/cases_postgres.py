"""A real PostgreSQL on a Peplos volume: no transaction that was acknowledged is ever lost."""

import shutil
import subprocess
import time
from pathlib import Path

from case import case
from world import Failed, expect, run, wait_for

IMAGE = "peplos-test/postgres"
BINARIES = Path("/usr/lib/postgresql/15")


def libraries_of(program):
    out = run("ldd", program, check=False).stdout
    return [word for line in out.splitlines() for word in line.split() if word.startswith("/")]


def make_image(w):
    """An image of the host's PostgreSQL 15 packages, their libraries and busybox."""
    folder = w.root / "postgres"
    run("cp", "-a", w.root / "image", folder)
    wanted = set()
    programs = [p for p in (BINARIES / "bin").iterdir()
                if p.name in ("postgres", "initdb", "pg_ctl", "psql", "pgbench", "pg_isready")]
    for program in programs + list((BINARIES / "lib").glob("*.so")):
        wanted.update(libraries_of(program))
    for source in [str(BINARIES), "/usr/share/postgresql/15", "/usr/share/zoneinfo",
                   "/usr/share/postgresql-common", "/usr/lib/locale/C.utf8"]:
        if Path(source).exists():
            target = folder / source.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target, symlinks=False, ignore_dangling_symlinks=True,
                            dirs_exist_ok=True)
    for library in sorted(wanted):
        target = folder / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    (folder / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\npostgres:x:999:999::/:/bin/sh\n")
    (folder / "etc/group").write_text("root:x:0:\npostgres:x:999:\n")
    (folder / "etc/timezone").write_text("UTC\n")
    (folder / "tmp").chmod(0o1777)
    run("chown", "-R", "0:0", folder)
    w.import_image(folder, IMAGE)
    shutil.rmtree(folder)


START = f"""
PATH={BINARIES}/bin:$PATH
if [ ! -s /data/pg/PG_VERSION ]; then
    mkdir -p /data/pg && chown 999:999 /data/pg && chmod 700 /data/pg
    su postgres -c '{BINARIES}/bin/initdb -D /data/pg -A trust --no-locale -E UTF8' || exit 1
fi
exec su postgres -c 'exec {BINARIES}/bin/postgres -D /data/pg -k /tmp -c listen_addresses= \
    -c shared_buffers=32MB -c max_wal_size=128MB -c checkpoint_timeout=30s'
"""


class Postgres:
    def __init__(self, w):
        self.w = w

    def start(self):
        self.w.docker("rm", "-f", "pg", check=False)
        self.w.docker("run", "-d", "--name", "pg", "--network", "none", "--shm-size", "128m", "-v",
                      "pg:/data", IMAGE, "sh", "-c", START)
        wait_for("PostgreSQL", 90, lambda: self.run("pg_isready", "-h", "/tmp").returncode == 0,
                 0.3)

    def run(self, program, *words, seconds=60):
        return self.w.docker("exec", "-u", "999", "pg", f"{BINARIES}/bin/{program}", *words,
                             check=False, seconds=seconds)

    def query(self, sql):
        done = self.run("psql", "-h", "/tmp", "-U", "postgres", "-Atqc", sql)
        if done.returncode != 0:
            raise Failed(f"{sql}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def load(self, key, seconds):
        """pgbench in the background; each transaction that it counts was acknowledged."""
        return self.w.spawn(key, "docker", "-H", f"unix://{self.w.docker_socket}", "exec", "-u",
                            "999", "pg", f"{BINARIES}/bin/pgbench", "-h", "/tmp", "-U", "postgres",
                            "-c", "4", "-T", str(seconds), "-l", "--log-prefix=/tmp/log", "-n",
                            "postgres")

    def consistent(self):
        """TPC-B's invariant: the four sums are equal. And the history has no duplicate."""
        sums = self.query("select (select sum(abalance) from pgbench_accounts), "
                          "(select sum(bbalance) from pgbench_branches), "
                          "(select sum(tbalance) from pgbench_tellers), "
                          "(select coalesce(sum(delta), 0) from pgbench_history)").split("|")
        expect(len(set(sums)) == 1, f"sums differ: {sums}")
        self.query("set enable_indexscan = off; select count(*) from pgbench_accounts")
        return int(self.query("select count(*) from pgbench_history"))


def prepared(w, fs="ext4"):
    if not (BINARIES / "bin/postgres").exists():
        raise Failed("PostgreSQL 15 is not installed: ./test --only packages")
    w.start()
    make_image(w)
    w.create("pg", size="2GiB", fs=fs)
    postgres = Postgres(w)
    postgres.start()
    done = postgres.run("pgbench", "-h", "/tmp", "-U", "postgres", "-i", "-s", "2", "-q",
                        "postgres", seconds=120)
    expect(done.returncode == 0, f"pgbench -i: {done.stderr}")
    return postgres


def acknowledged(w, key):
    for line in (w.log_dir / f"{key}.log").read_text(errors="replace").splitlines():
        if line.startswith("number of transactions actually processed:"):
            return int(line.split(":")[1].split("/")[0])
    raise Failed(f"pgbench did not say how many transactions it did: see {key}.log")


def daemon_dies_under_pgbench(w, postgres, seconds, kills_min):
    """No error, and every acknowledged transaction is there."""
    before = postgres.consistent()
    load = postgres.load("pgbench", seconds)
    kills = 0
    while load.poll() is None and kills < kills_min + w.long_seconds // 10:
        time.sleep(4)  # the load between two kills is the point of the case
        if load.poll() is None:
            w.restart_daemon()
            kills += 1
    code = load.wait(seconds + 90)
    w.processes.pop("pgbench")
    expect(code == 0, f"pgbench saw an error ({code}): see pgbench.log")
    expect(kills >= kills_min, f"only {kills} kills while pgbench ran")
    count = acknowledged(w, "pgbench")
    after = postgres.consistent()
    expect(after - before == count, f"{count} acknowledged, {after - before} in the database")
    print(f"     {count} transactions, {kills} kills", flush=True)


def container_dies_under_pgbench(postgres, turn):
    """What was committed is there once PostgreSQL has recovered."""
    before = postgres.consistent()
    load = postgres.load(f"pgbench{turn}", 60)
    wait_for("transactions", 30, lambda: int(postgres.query(
        "select count(*) from pgbench_history")) > before + 50, 0.3)
    # What this reads was committed, so it must be there after the crash.
    seen = int(postgres.query("select count(*) from pgbench_history"))
    postgres.w.docker("kill", "-s", "KILL", "pg")
    try:
        load.wait(30)
    except subprocess.TimeoutExpired:
        load.kill()
    postgres.w.processes.pop(f"pgbench{turn}")
    postgres.start()
    after = postgres.consistent()
    expect(after >= seen, f"{seen} were committed, {after} are there")


@case(420)
def postgres_survives_kill_of_peplosd(w):
    """pgbench through repeated kill -9 of peplosd: no error, no lost transaction."""
    daemon_dies_under_pgbench(w, prepared(w), 30 + w.long_seconds, 3)


@case(420)
def postgres_survives_kill_of_the_container(w):
    """kill -9 of the container under pgbench: PostgreSQL recovers, no lost transaction."""
    postgres = prepared(w)
    for turn in range(3):
        container_dies_under_pgbench(postgres, turn)


@case(420)
def postgres_on_xfs(w):
    """Both on xfs: kill -9 of peplosd, then of the container."""
    postgres = prepared(w, "xfs")
    out = w.docker("exec", "pg", "grep", " /data ", "/proc/mounts").stdout
    expect(" xfs " in out, f"not xfs: {out}")
    daemon_dies_under_pgbench(w, postgres, 20 + w.long_seconds, 2)
    container_dies_under_pgbench(postgres, 0)
