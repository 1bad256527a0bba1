"""Copiers, editors, office and sharing on the volume."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from scripts.compat_place import Check, Place, environment, expect, free_port, run, server, wait_for_port

MIB = 1024 * 1024
SMB_TESTS = (
    "smb2.rename",
    "smb2.dir",
    "smb2.lock",
    "smb2.read",
    "smb2.rw",
    "smb2.getinfo",
    "smb2.setinfo",
    "smb2.delete-on-close-perms",
    "smb2.compound",
    "smb2.streams",
)
"""Of smbtorture; judged are those that pass on ext4."""

SMB_CONF = """[global]
  workgroup = PRACTICE
  security = user
  map to guest = Bad User
  guest account = nobody
  interfaces = lo
  bind interfaces only = yes
  disable netbios = yes
  smb ports = {port}
  private dir = {state}
  lock directory = {state}
  state directory = {state}
  cache directory = {state}
  pid directory = {state}
  ncalrpc dir = {state}/ncalrpc
  log file = {state}/log
  load printers = no
  disable spoolss = yes
[patients]
  path = {path}
  read only = no
  guest ok = yes
  force user = root
  ea support = yes
  store dos attributes = yes
  map archive = no
  strict sync = yes
"""


def digests(folder: Path) -> dict[str, str]:
    """Relative path and digest of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def make_tree(folder: Path) -> None:
    """Files of several sizes, links of both kinds, a sparse file, attributes and an access list."""
    for number in range(60):
        directory = folder / f"patient {number % 6}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"lettre é {number}.txt").write_bytes(os.urandom(number * 997))
    first = folder / "patient 0" / "lettre é 6.txt"
    os.link(first, folder / "patient 1" / "hard link")
    (folder / "symbolic link").symlink_to("patient 0")
    with (folder / "sparse").open("wb") as file:
        file.truncate(32 * MIB)
        file.seek(16 * MIB)
        file.write(b"in the middle")
    os.setxattr(first, "user.note", b"value")
    subprocess.run(["setfacl", "-m", "u:nobody:r,g:nogroup:rw", str(first)], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:nobody:rx", str(folder / "patient 2")], check=True)


def rsync(place: Place) -> str:
    """-aHAX onto the volume and back; a dry run then finds nothing to do."""
    source, target, back = place.work / "source", place.folder / "target", place.work / "back"
    make_tree(source)
    run(place, "rsync", "-aHAXS", f"{source}/", f"{target}/")
    place.remount()
    run(place, "rsync", "-aHAXS", f"{target}/", f"{back}/")
    for one in (target, back):
        said = run(
            place,
            "rsync",
            "-aHAX",
            "--checksum",
            "--delete",
            "--itemize-changes",
            "--dry-run",
            f"{source}/",
            f"{one}/",
        )
        expect(not said.strip(), f"rsync finds differences: {said[:500]}")
    expect((target / "sparse").stat().st_blocks * 512 < MIB, "the sparse file was filled")
    return "hard links, ACLs, attributes, sparse files, there, remount and back"


def tar(place: Place) -> str:
    """--acls --xattrs --sparse, written and extracted on the volume."""
    source, target = place.folder / "source", place.folder / "target"
    make_tree(source)
    target.mkdir()
    run(place, "tar", "--acls", "--xattrs", "--sparse", "-C", source, "-cf", place.folder / "tree.tar", ".")
    run(place, "tar", "--acls", "--xattrs", "-C", target, "-xpf", place.folder / "tree.tar")
    said = run(
        place, "rsync", "-aHAX", "--checksum", "--itemize-changes", "--dry-run", f"{source}/", f"{target}/"
    )
    expect(not said.strip(), f"what tar extracted differs: {said[:500]}")
    return "ACLs, attributes, sparse files, hard links"


def editors(place: Place) -> str:
    """Saves by writing in place, by a new file and rename, and with a backup."""
    path = place.folder / "letter.txt"
    path.write_text("Dear Dr. Durand,\n" * 1000)
    run(place, "sed", "-i", "s/Durand/Dupont/", path)
    run(place, "ed", "-s", path, stdin="1,$s/Dear/Cher/\nw\nq\n")
    if shutil.which("vim"):
        run(place, "vim", "-Nu", "NONE", "-es", "-c", "%s/Cher/Chère/", "-c", "wq", path, allowed=(0, 1))
        expect(path.read_text() == "Chère Dr. Dupont,\n" * 1000, "vim saved something else")
    run(place, "install", "-b", "-m", "600", path, place.folder / "copy.txt")
    run(place, "cp", "--sparse=always", "--preserve=all", path, place.folder / "copy2.txt")
    expect((place.folder / "copy2.txt").read_bytes() == path.read_bytes(), "cp made another file")
    place.remount()
    expect("Dupont" in path.read_text(), "the saved text is gone")
    return "sed -i, ed, vim, install -b, cp --sparse --preserve=all"


def fio(place: Place) -> str:
    """Random writes, verified; through write(2), through a mapping, and with O_DIRECT."""
    for engine, more in (("psync", ("--fsync=64",)), ("mmap", ()), ("psync", ("--direct=1",))):
        run(
            place, "fio", "--name=verify", f"--directory={place.folder}", "--size=48M", "--rw=randwrite",
            "--bs=4k", f"--ioengine={engine}", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1",
            "--numjobs=2", "--group_reporting", *more,
        )  # fmt: skip
    return "2 jobs, 48 MiB each of random 4 KiB writes: psync + fsync, mmap, O_DIRECT; crc32c verified"


def loop_image(place: Place) -> str:
    """A disk image with ext4 in it, mounted from the volume."""
    image, inside = place.folder / "disk.img", place.work / "inside"
    inside.mkdir()
    run(place, "truncate", "-s", "96M", image)
    run(place, "mkfs.ext4", "-q", "-F", image)
    run(place, "mount", "-o", "loop", image, inside)
    try:
        make_tree(inside / "tree")
        before = digests(inside / "tree")
    finally:
        run(place, "umount", inside)
    place.remount()
    run(place, "fsck.ext4", "-fn", image)
    run(place, "mount", "-o", "loop,ro", image, inside)
    try:
        expect(digests(inside / "tree") == before, "files in the image differ")
    finally:
        run(place, "umount", inside)
    return "mkfs, mounted, filled, fsck -fn and the same files after a remount"


def libreoffice(place: Place) -> str:
    """Documents made, overwritten, converted and read again, with lock files beside them."""
    env = environment(place, HOME=str(place.work))
    office = ("soffice", f"-env:UserInstallation=file://{place.work}/profile", "--headless", "--norestore")
    letter = place.folder / "letter.txt"
    letter.write_text("Chère Madame Durand,\nvotre tension est de 12/8.\n" * 50)
    for _ in range(2):  # the second time it saves over what is there
        run(place, *office, "--convert-to", "odt", "--outdir", place.folder, letter, env=env)
    run(place, *office, "--convert-to", "pdf", "--outdir", place.folder, place.folder / "letter.odt", env=env)
    place.remount()
    run(
        place,
        *office,
        "--convert-to",
        "txt:Text (encoded):UTF8",
        "--outdir",
        place.work,
        place.folder / "letter.odt",
        env=env,
    )
    text = (place.work / "letter.txt").read_text("utf-8-sig")
    expect(text.split() == letter.read_text().split(), "the text of the document differs")
    expect((place.folder / "letter.pdf").read_bytes().startswith(b"%PDF"), "the PDF is none")
    return "txt to odt, saved over, pdf, the same text after a remount"


def smb_tests(place: Place, path: Path) -> dict[str, bool]:
    """Serve a directory, use it with smbclient, and run smbtorture's tests: test and whether it passed."""
    state = place.work / f"state-{path.name}"
    (state / "ncalrpc").mkdir(parents=True)
    port = free_port()
    configuration = state / "smb.conf"
    configuration.write_text(SMB_CONF.format(port=port, state=state, path=path))
    source, back = place.work / f"source-{path.name}", place.work / f"back-{path.name}"
    (source / "sub").mkdir(parents=True)
    back.mkdir()
    for number in range(40):
        (source / ("sub" if number % 2 else ".") / f"file {number}.bin").write_bytes(
            os.urandom(number * 4001)
        )
    client = ("smbclient", "//127.0.0.1/patients", "-p", str(port), "-N", "-s", configuration)
    with server(place, "smbd", "--foreground", "--no-process-group", "-s", configuration):
        wait_for_port(place, port)
        run(place, *client, "-c", f"prompt off; recurse on; lcd {source}; mput *")
        run(place, *client, "-c", f"prompt off; recurse on; lcd {source}; mput *")  # saved once more
        run(place, *client, "-c", 'rename "file 2.bin" moved.bin; mkdir new; del "file 4.bin"')
        run(place, *client, "-c", f"prompt off; recurse on; lcd {back}; mget *")
        passed = {}
        for test in SMB_TESTS:
            done = subprocess.run(
                ["smbtorture", "//127.0.0.1/patients", "-p", str(port), "-Unobody%",
                 f"--configfile={configuration}", test],
                cwd=place.work, capture_output=True, text=True, errors="replace", timeout=180, check=False,
            )  # fmt: skip
            passed[test] = done.returncode == 0
    expected = digests(source)
    expected["moved.bin"] = expected.pop("file 2.bin")
    del expected["file 4.bin"]
    found = {name: digest for name, digest in digests(back).items() if name in expected}
    expect(found == expected, "files that went over SMB and back differ")
    return passed


def samba(place: Place) -> str:
    """A share used by smbclient and smbtorture; the same on ext4, to know which tests can pass here."""
    plain = place.work / "plain"
    for path in (plain, place.folder / "share"):
        path.mkdir()
    able = {test for test, passed in smb_tests(place, plain).items() if passed}
    found = smb_tests(place, place.folder / "share")
    failed = sorted(test for test in able if not found[test])
    expect(not failed, f"smbtorture passes on ext4 and fails here: {', '.join(failed)}")
    return f"smbclient: put, overwrite, rename, delete, get; {len(able)} tests of smbtorture, as on ext4"


CHECKS = (
    Check("rsync", ("rsync", "setfacl"), ("rsync", "--version"), rsync),
    Check("tar", ("tar", "rsync", "setfacl"), ("tar", "--version"), tar),
    Check("editors", ("sed", "ed"), ("sed", "--version"), editors),
    Check("fio", ("fio",), ("fio", "--version"), fio),
    Check("loop image", ("mkfs.ext4", "fsck.ext4"), ("mount", "--version"), loop_image),
    Check("LibreOffice", ("soffice",), ("soffice", "--version"), libreoffice),
    Check("Samba", ("smbd", "smbclient", "smbtorture"), ("smbd", "--version"), samba),
)
