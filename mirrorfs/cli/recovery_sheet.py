"""The sheet with a recovery code: one page of text, in French and English, and the proof that it was kept.

It goes to standard output, so that it can be piped to a printer and touches no file; questions go to where
secrets are asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from datetime import date
from typing import Final

import segno

from mirrorfs.cli.unlock import Unlocked
from mirrorfs.errors import CannotAsk, UsageError
from mirrorfs.format.kdf import format_fingerprint
from mirrorfs.keys.prompts import check_code_askable, read_code
from mirrorfs.keys.question import SecretKind
from mirrorfs.keys.recovery_code import format_code

ATTEMPTS: Final = 3

_SHEET: Final = """\
MirrorFS - CODE DE SECOURS / RECOVERY CODE                           {today}

Volume:       {name}
              {volume}
Empreinte / fingerprint:
              {fingerprint}

    {first}
    {second}

{qr}
Ce code remplace une carte ou cle PERDUE. Il ne sert a rien sans le mot de
passe du volume, et il ne monte pas le volume. Gardez cette feuille dans un
coffre, ailleurs que le PC et les cartes, jamais avec le mot de passe.
  Restaurer:        mirrorfs restore --token recovery: --store URL DOSSIER
  Nouvelle carte:   mirrorfs attach VOLUME --token recovery: --store URL
                    mirrorfs key add VOLUME --token recovery: --new-token URI
Comparez l'empreinte affichee avec celle de cette feuille. Ensuite, faites
une nouvelle feuille: mirrorfs key recovery VOLUME

This code stands for a token that is LOST. It is worth nothing without the
volume password, and it does not mount the volume. Keep this sheet in a safe,
away from the PC and the tokens, and never together with the password.
  Restore:          mirrorfs restore --token recovery: --store URL DIRECTORY
  New token:        mirrorfs attach VOLUME --token recovery: --store URL
                    mirrorfs key add VOLUME --token recovery: --new-token URI
Compare the fingerprint that is shown with the one on this sheet. Afterwards
make a new sheet: mirrorfs key recovery VOLUME
"""


def sheet(name: str, unlocked: Unlocked, code: bytes, *, today: date) -> str:
    """The text, at most 80 columns and 60 lines. Its QR code holds the code as it is typed."""
    first, second = format_code(code).split("\n")
    return _SHEET.format(
        today=today.isoformat(),
        name=name,
        volume=unlocked.header.volume.hex(),
        fingerprint=format_fingerprint(unlocked.keys.fingerprint),
        first=first,
        second=second,
        qr=_drawn(f"{first}-{second}"),
    )


def _drawn(text: str) -> str:
    """A QR code in ink: each character is two modules, one above the other."""
    matrix = segno.make_qr(text, error="m").matrix
    rows = [*matrix, bytes(len(matrix[0]))]
    lines = [
        "".join(" ▀▄█"[top + 2 * bottom] for top, bottom in zip(upper, lower, strict=True))
        for upper, lower in zip(rows[::2], rows[1::2], strict=False)
    ]
    return "".join(f"    {line}\n" for line in lines)


def check_paper_askable(environment: Mapping[str, str]) -> None:
    """Raises: UsageError: nobody can be asked for the code of a new sheet, see `confirm_on_paper`."""
    check_code_askable(_without_code_file(environment))


def _without_code_file(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key != SecretKind.CODE.variable}


def _end_output() -> None:
    """Close standard output: a printer's program prints when its input has ended, and not before."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def confirm_on_paper(name: str, unlocked: Unlocked, code: bytes, *, environment: Mapping[str, str]) -> None:
    """Print the sheet, and have its code typed back.

    Args:
        environment: os.environ; a file with a code, which it may name, is not what was kept on paper.
    Raises: UsageError: nobody can be asked, or it was not typed right; nothing was enrolled. NotAnswered.
    """
    surroundings = _without_code_file(environment)
    check_code_askable(surroundings)
    print(sheet(name, unlocked, code, today=date.today()), flush=True)
    if not sys.stdout.isatty():
        _end_output()
    print("mirrorfs: Type the code back from the sheet, so that it is sure to be on it.", file=sys.stderr)
    wrong = ""
    for attempt in range(ATTEMPTS):
        try:
            if read_code(path=None, environment=surroundings, error=wrong) == code:
                return
            wrong = "That is a recovery code, but not this one."
        except CannotAsk:
            raise
        except UsageError as exc:
            if attempt == ATTEMPTS - 1:
                raise
            wrong = str(exc)
    raise UsageError("The code was not typed back; nothing was changed, and the sheet is void.")
