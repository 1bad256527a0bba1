"""Database servers on the volume: load, a crash, recovery, their own integrity checks, a remount."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from scripts.compat_place import Check, CheckFailed, Place, environment, expect, run

PG = "/usr/lib/postgresql/15/bin"
JOURNALS = ("delete", "truncate", "persist", "memory", "wal", "off")
ROWS, WRITERS = 300, 4

_WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
db.execute("PRAGMA synchronous=FULL")
for number in range(int(sys.argv[3])):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO visit(who, note) VALUES (?, ?)", (int(sys.argv[2]), "note " * 50))
    db.execute("COMMIT")
"""


def sqlite(place: Place) -> str:
    """Every journal mode, several processes that write at once, mapped reads, VACUUM, backup."""
    for journal in JOURNALS:
        path = place.folder / f"{journal}.db"
        database = sqlite3.connect(path, isolation_level=None)
        found = database.execute(f"PRAGMA journal_mode={journal}").fetchone()[0]
        expect(found == journal, f"SQLite took journal mode {found} for {journal}.")
        database.execute("PRAGMA mmap_size=67108864")
        database.execute("CREATE TABLE visit (id INTEGER PRIMARY KEY, who INTEGER, note TEXT)")
        count = WRITERS if journal != "off" else 1
        writers = [
            subprocess.Popen([sys.executable, "-c", _WRITER, str(path), str(who), str(ROWS // count)])
            for who in range(count)
        ]
        expect([writer.wait(300) for writer in writers] == [0] * count, f"a writer in mode {journal} failed")
        expect(
            database.execute("SELECT count(*) FROM visit").fetchone() == (ROWS,), f"{journal}: rows are lost"
        )
        database.execute("DELETE FROM visit WHERE id % 2")
        database.execute("VACUUM")
        with sqlite3.connect(place.work / f"{journal}-copy.db") as copy:
            database.backup(copy)
            expect(
                copy.execute("PRAGMA integrity_check").fetchone() == ("ok",), f"{journal}: the backup is bad"
            )
        database.close()
    place.remount()
    for journal in JOURNALS:
        database = sqlite3.connect(place.folder / f"{journal}.db")
        expect(
            database.execute("PRAGMA integrity_check").fetchone() == ("ok",), f"{journal}: integrity_check"
        )
        expect(database.execute("SELECT count(*) FROM visit").fetchone() == (ROWS // 2,), f"{journal}: rows")
        database.close()
    return f"{', '.join(JOURNALS)}: {WRITERS} writers, VACUUM, backup, integrity_check, remount"


class Postgres:
    """A cluster on the volume, run as the user postgres."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.data = place.folder / "cluster"
        self._socket = place.work / "socket"
        for path in (self.data, self._socket):
            path.mkdir(mode=0o700)
            shutil.chown(path, "postgres", "postgres")

    def run(self, program: str, *arguments: str, stdin: str = "") -> str:
        """One of PostgreSQL's programs."""
        env = environment(self._place, PGHOST=str(self._socket), PGDATA=str(self.data), PGUSER="postgres")
        command = ["runuser", "-u", "postgres", "--", f"{PG}/{program}", *arguments]
        return run(self._place, *command, stdin=stdin, env=env, cwd=self._socket)

    def start(self) -> None:
        options = f"-k {self._socket} -c listen_addresses='' -c shared_buffers=32MB"
        log = self._socket / "log"
        try:
            self.run("pg_ctl", "start", "-w", "-o", options, "-l", str(log))
        except CheckFailed as error:
            raise CheckFailed(f"{error} Its log: {log.read_text(errors='replace')[-1000:]}") from error

    def crash(self) -> None:
        """SIGKILL the postmaster; its children end when they notice."""
        pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)  # it has become ours (adopt_orphans), and blocks a new one until it is reaped
        for _ in range(300):
            command = ["pgrep", "-u", "postgres", "-f", "^postgres:"]
            if subprocess.run(command, capture_output=True, check=False).returncode:
                return
            time.sleep(0.1)
        raise CheckFailed("The children of PostgreSQL did not end.")

    def dump(self) -> list[str]:
        """The database as SQL, without the lines that pg_dump draws at random."""
        lines = self.run("pg_dump", "--no-comments", "bench").splitlines()
        return [line for line in lines if not line.startswith(("\\restrict", "\\unrestrict"))]

    def stop_at_once(self) -> None:
        """Whatever state it is in."""
        as_postgres = ("runuser", "-u", "postgres", "--")
        command = (*as_postgres, f"{PG}/pg_ctl", "stop", "-D", self.data, "-m", "immediate")
        run(self._place, *command, allowed=(0, 1), cwd=self._socket)

    def balanced(self) -> None:
        """What every pgbench transaction keeps equal."""
        query = (
            "SELECT (SELECT sum(abalance) FROM pgbench_accounts) ="
            " (SELECT sum(bbalance) FROM pgbench_branches) AND (SELECT sum(tbalance) FROM pgbench_tellers) ="
            " (SELECT coalesce(sum(delta), 0) FROM pgbench_history);"
        )
        answer = self.run("psql", "-XAtq", "-d", "bench", stdin=query).strip()
        expect(answer == "t", f"the balances of pgbench differ: {answer}")


def postgresql(place: Place) -> str:
    """initdb, pgbench, SIGKILL and recovery, checksums, the same dump after a remount."""
    cluster = Postgres(place)
    cluster.run("initdb", "--data-checksums", "--auth=trust", "--encoding=UTF8", "--no-locale")
    cluster.start()
    try:
        cluster.run("createdb", "bench")
        cluster.run("pgbench", "-i", "-q", "-s", "2", "bench")
        cluster.run("pgbench", "-n", "-T", "5", "-c", "4", "bench")
        load = subprocess.Popen(
            ["runuser", "-u", "postgres", "--", f"{PG}/pgbench", "-h", str(place.work / "socket"),
             "-n", "-T", "60", "-c", "4", "bench"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(2)
        cluster.crash()
        load.wait(60)
        cluster.start()
        cluster.balanced()
        before = cluster.dump()
        cluster.run("pg_ctl", "stop", "-m", "fast", "-w")
        cluster.run("pg_checksums", "--check")
        place.remount()
        cluster.start()
        cluster.balanced()
        expect(cluster.dump() == before, "pg_dump differs after a remount")
        cluster.run("pg_amcheck", "--install-missing", "bench")
    finally:
        cluster.stop_at_once()
    return (
        "initdb, pgbench, SIGKILL under load, recovery, pg_checksums, pg_amcheck, equal dump after a remount"
    )


_FIREBIRD = """
CREATE TABLE visit (id INTEGER NOT NULL PRIMARY KEY, note VARCHAR(200));
COMMIT;
SET TERM ^;
EXECUTE BLOCK AS DECLARE n INTEGER = 0;
BEGIN
  WHILE (n < 20000) DO BEGIN
    INSERT INTO visit VALUES (:n, 'blood pressure 12/8, visit ' || :n);
    n = n + 1;
  END
END^
SET TERM ;^
COMMIT;
DELETE FROM visit WHERE MOD(id, 4) = 0;
ROLLBACK;
DELETE FROM visit WHERE MOD(id, 2) = 0;
COMMIT;
"""


def firebird(place: Place) -> str:
    """Tables and transactions through the embedded engine, gfix, gbak there and back."""
    env = environment(place, FIREBIRD_LOCK=str(place.work), FIREBIRD_TMP=str(place.work), ISC_USER="SYSDBA")
    database, restored = place.folder / "practice.fdb", place.folder / "restored.fdb"

    def count(path: Path) -> str:
        return " ".join(
            run(place, "isql-fb", "-q", path, stdin="SELECT count(*), sum(id) FROM visit;", env=env).split()[
                -2:
            ]
        )

    run(place, "isql-fb", "-q", stdin=f"CREATE DATABASE '{database}' PAGE_SIZE 8192;\n{_FIREBIRD}", env=env)
    expect(count(database) == "10000 100000000", f"Firebird counts {count(database)}")
    said = run(place, "gfix", "-v", "-full", database, env=env)
    expect(not said.strip(), f"gfix complains: {said}")
    run(place, "gbak", "-b", database, place.folder / "practice.fbk", env=env)
    place.remount()
    run(place, "gbak", "-c", place.folder / "practice.fbk", restored, env=env)
    expect(count(restored) == count(database), "the restored database differs")
    return "20,000 inserts, rollback, gfix -v -full, gbak there and back over a remount"


CHECKS = (
    Check(
        "SQLite",
        (),
        (sys.executable, "-c", "import sqlite3; print('SQLite', sqlite3.sqlite_version)"),
        sqlite,
    ),
    Check("PostgreSQL", (f"{PG}/initdb", "runuser"), (f"{PG}/postgres", "--version"), postgresql),
    Check(
        "Firebird",
        ("isql-fb", "gfix", "gbak"),
        ("dpkg-query", "-Wf", "Firebird ${Version}", "firebird3.0-utils"),
        firebird,
    ),
)
