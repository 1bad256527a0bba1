"""The command line: which command, and what its outcome is to the caller.

Exit codes: 0 done; 1 failed; 2 usage; 3 wrong password or token; 4 store unavailable; 5 data damaged;
6 in use elsewhere; 130 interrupted. Every error is one sentence on standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from mirrorfs import __version__
from mirrorfs.cli.failures import describe, report, sentence_of
from mirrorfs.errors import MirrorfsError

Run = Callable[[argparse.Namespace, Mapping[str, str], Sequence[str]], int]
"""Carries out a command, given its arguments, os.environ and the arguments as they were typed."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command; its module is imported only when it is the one that was asked for."""

    text: str
    load: Callable[[argparse.ArgumentParser], Run]
    """Adds the command's arguments to a parser."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Raises: SystemExit: from argparse, 2 for wrong usage, 0 for --help and --version. What nobody foresaw
        passes through; sys.excepthook is set to say one sentence about it.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    wanted = given[0] if given else ""
    parser, run = _parser(wanted)
    arguments = parser.parse_args(given)
    assert run is not None
    _say_one_sentence_at_the_end(debug=arguments.debug)
    try:
        return run(arguments, os.environ, given[1:])
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter must not complain about it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MirrorfsError, KeyboardInterrupt, BaseExceptionGroup) as error:
        return report(error, debug=arguments.debug)


def _say_one_sentence_at_the_end(*, debug: bool) -> None:
    """Replace the traceback of an unforeseen exception: it may show secrets or names of files."""

    def hook(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
        print(f"mirrorfs: {sentence_of(error)[0]}", file=sys.stderr)
        if debug:
            print(describe(error), file=sys.stderr)

    sys.excepthook = hook


def _parser(wanted: str) -> tuple[argparse.ArgumentParser, Run | None]:
    """The parser, and what carries out the wanted command; None when there is no such command."""
    parser = argparse.ArgumentParser(
        prog="mirrorfs",
        description="An encrypted filesystem whose log is mirrored on two stores.",
    )
    parser.add_argument("--version", action="version", version=f"mirrorfs {__version__}")
    chosen = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run: Run | None = None
    for name, command in COMMANDS.items():
        sub = chosen.add_parser(
            name, help=command.text, description=f"{command.text[:1].upper()}{command.text[1:]}."
        )
        if name == wanted:
            run = command.load(sub)
            sub.add_argument("--debug", action="store_true", help="say more when something fails")
    return parser, run


# --- the commands ----------------------------------------------------------------------------


def _init(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import init

    init.add_arguments(parser)
    return lambda arguments, environment, _: init.run(arguments, environment)


def _attach(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import attach

    attach.add_arguments(parser)
    return lambda arguments, environment, _: attach.run(arguments, environment)


def _mount(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import mount

    mount.add_arguments(parser)
    return mount.run


def _key(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import key

    key.add_arguments(parser)
    return lambda arguments, environment, _: key.run(arguments, environment)


def _status(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import status

    status.add_arguments(parser)
    return lambda arguments, environment, _: status.run(arguments, environment)


def _flush(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import flush

    flush.add_arguments(parser)
    return lambda arguments, environment, _: flush.run(arguments, environment)


def _umount(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import umount

    umount.add_arguments(parser)
    return lambda arguments, environment, _: umount.run(arguments, environment)


def _lock(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import lock

    lock.add_arguments(parser)
    return lambda arguments, environment, _: lock.run(arguments, environment)


def _alarm(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import alarm_clear

    alarm_clear.add_arguments(parser)
    return lambda arguments, environment, _: alarm_clear.run(arguments, environment)


def _restore(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli.restore import add_arguments, run_restore

    add_arguments(parser)
    return lambda arguments, _environment, _argv: run_restore(arguments)


def _log(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import log

    log.add_arguments(parser)
    return lambda arguments, environment, _: log.run(arguments, environment)


def _history(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import history

    history.add_arguments(parser)
    return lambda arguments, environment, _: history.run(arguments, environment)


def _ls(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import ls

    ls.add_arguments(parser, finds=False)
    return lambda arguments, environment, _: ls.run(arguments, environment)


def _find(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import ls

    ls.add_arguments(parser, finds=True)
    return lambda arguments, environment, _: ls.run(arguments, environment)


def _cat(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import cat

    cat.add_arguments(parser)
    return lambda arguments, environment, _: cat.run(arguments, environment)


def _diff(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import diff

    diff.add_arguments(parser)
    return lambda arguments, environment, _: diff.run(arguments, environment)


def _snapshot(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import snapshot

    snapshot.add_arguments(parser)
    return lambda arguments, environment, _: snapshot.run(arguments, environment)


def _store(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import store

    store.add_arguments(parser)
    return lambda arguments, environment, _: store.run(arguments, environment)


def _prune(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import prune

    prune.add_arguments(parser)
    return lambda arguments, environment, _: prune.run(arguments, environment)


def _verify(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import verify

    verify.add_arguments(parser, mends=False)
    return lambda arguments, environment, _: verify.run(arguments, environment)


def _repair(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import verify

    verify.add_arguments(parser, mends=True)
    return lambda arguments, environment, _: verify.run(arguments, environment)


def _drill(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import drill

    drill.add_arguments(parser)
    return lambda arguments, environment, _: drill.run(arguments, environment)


def _doctor(parser: argparse.ArgumentParser) -> Run:
    from mirrorfs.cli import doctor

    return lambda _arguments, environment, _: doctor.run(environment)


COMMANDS: Final = {
    "init": Command("make a volume on two or more stores", _init),
    "attach": Command("make a volume usable on this PC, from its stores", _attach),
    "mount": Command("mount a volume", _mount),
    "status": Command("show what is mounted and how safe it is", _status),
    "flush": Command("wait until every store holds everything written so far", _flush),
    "umount": Command("unmount a volume and wait for the stores", _umount),
    "lock": Command("take a volume away at once and forget its keys, waiting for no store", _lock),
    "alarm": Command("clear the alarm of files that were replaced by what looks encrypted", _alarm),
    "restore": Command("restore a volume from one store or more, without mounting it", _restore),
    "log": Command("show the moments that a volume can be returned to, and what changed in each", _log),
    "history": Command("show the versions of one file", _history),
    "ls": Command("list a directory as it is or was, without mounting the volume", _ls),
    "find": Command("list everything below a directory as it is or was", _find),
    "cat": Command("write a file as it is or was to standard output", _cat),
    "diff": Command("show what differs between two moments", _diff),
    "snapshot": Command("name moments that are to be kept, and show, hold and delete these", _snapshot),
    "key": Command("show and change what opens a volume: tokens, password, recovery code", _key),
    "store": Command("show, add, remove or replace the stores of a volume", _store),
    "prune": Command("do without what the retention policy does not keep", _prune),
    "verify": Command("look whether the stores and the local disk hold everything, whole", _verify),
    "repair": Command("mend what is bad in one place from a good copy in another", _repair),
    "drill": Command("try whether everything comes back from one store alone, and sign a report", _drill),
    "doctor": Command("check what this machine has and lacks", _doctor),
}
