"""A restore drill in words, French and English, and as JSON (docs/drill-json.md). It names no file."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from mirrorfs.cli.progress import format_bytes
from mirrorfs.cli.shown_times import timestamp
from mirrorfs.format.drill import DrillFault, DrillReport
from mirrorfs.format.ids import format_position

OBJECTS_SHOWN_MAX: Final = 20
_NS_PER_S: Final = 1_000_000_000

_HEAD: Final = """\
MirrorFS - EXERCICE DE RESTAURATION / RESTORE DRILL

Volume:                  {name}
                         {volume}
Dépôt / store:           {store}
                         {instance}
Date (UTC):              {started} - {ended}
Machine:                 {host}, MirrorFS {program}
Clé / key (drill):       {key}

Résultat / result:       {result}
"""

_FRENCH: Final = """\
À partir de ce dépôt seul, l'état du {time} (position {position}) a été
restauré: {names} noms, tous comparés avec leurs attributs; le contenu de
{drilled} fichiers sur {files} ({drilled_bytes} sur {size}), dont {compared}
comparés en entier avec une autre copie. Rien n'a été écrit en clair.
"""
_ENGLISH: Final = """\
From this store alone the state of {time} (position {position}) was
restored: {names} names, all compared with their attributes; the contents of
{drilled} files of {files} ({drilled_bytes} of {size}), {compared} of which
were compared whole with another copy. Nothing was written in the clear.
"""
_MISSING: Final = (
    "Il manque au dépôt les changements depuis {missing}.\n",
    "The store lacks the changes since {missing}.\n",
)
_OBJECTS: Final = (
    "Objets du dépôt abîmés, manquants ou laissés de côté: {count}.\n",
    "Objects of the store that are damaged, missing or were passed over: {count}.\n",
)

_FAULTS: Final[dict[DrillFault, tuple[str, str]]] = {
    DrillFault.HEADER: (
        "Le dépôt n'a pas le dernier en-tête du volume: sans un autre dépôt, la carte ne l'ouvre pas.",
        "The store lacks the volume's newest header: without another store the token may not open it.",
    ),
    DrillFault.NOTHING: (
        "Rien ne peut être restauré à partir de ce dépôt.",
        "Nothing can be restored from this store.",
    ),
    DrillFault.LOG: (
        "Le dépôt a des changements plus récents qui sont illisibles.",
        "The store has newer changes that cannot be read.",
    ),
    DrillFault.HISTORY: (
        "Le journal du dépôt n'est pas celui du volume.",
        "The log of the store is another than the volume's.",
    ),
    DrillFault.BEHIND: (
        "Des changements lui manquent depuis plus longtemps que la configuration ne le permet.",
        "It has lacked changes for longer than the configuration allows.",
    ),
    DrillFault.WENT_BACK: (
        "Un exercice précédent avait restauré un état plus récent: le dépôt a reculé.",
        "An earlier drill restored a later state: the store went back.",
    ),
    DrillFault.NAMES: (
        "Noms qui manquent, sont en trop ou ont d'autres attributs: {differing_names}.",
        "Names that are missing, too many, or have other attributes: {differing_names}.",
    ),
    DrillFault.DAMAGED: (
        "Fichiers incomplets, dont le dépôt n'a pas de bonne copie: {damaged_files}.",
        "Incomplete files, of which the store has no good copy: {damaged_files}.",
    ),
    DrillFault.CONTENTS: (
        "Fichiers dont le contenu n'est pas celui de l'autre copie: {differing_files}.",
        "Files with other contents than the other copy: {differing_files}.",
    ),
}


def as_text(report: DrillReport, *, volume: bytes, name: str, key: bytes) -> str:
    """A page for a person's files.

    Args:
        volume: UUID.
        name: of the volume on this machine; empty where it is not known.
        key: public key of the drill role, 32 bytes, under which the report verifies.
    """
    head = _HEAD.format(
        name=name or "-",
        volume=volume.hex(),
        store=report.store,
        instance=report.instance.hex(),
        started=_date(report.started_ns),
        ended=_date(report.ended_ns),
        host=report.host,
        program=report.program,
        key=key.hex(),
        result="RÉUSSI / PASSED" if report.passed else "ÉCHEC / FAILED",
    )
    parts = [head, _part(report, 0, _FRENCH), _part(report, 1, _ENGLISH)]
    if report.objects:
        shown = [f"  {one}\n" for one in report.objects[:OBJECTS_SHOWN_MAX]]
        more = report.object_count - len(shown)
        parts.append("".join(shown) + (f"  ... (+{more})\n" if more else ""))
    return "\n".join(parts)


def _part(report: DrillReport, language: int, account: str) -> str:
    lines = []
    if DrillFault.NOTHING not in report.faults:
        lines.append(
            account.format(
                time=_date(report.time_ns),
                position=format_position(report.position),
                names=report.names,
                drilled=report.drilled_files,
                files=report.files,
                drilled_bytes=format_bytes(report.drilled_bytes),
                size=format_bytes(report.size_bytes),
                compared=report.compared_files,
            )
        )
    for fault in report.faults:
        text = _FAULTS[fault][language].format(
            differing_names=report.differing_names,
            damaged_files=report.damaged_files,
            differing_files=report.differing_files,
        )
        lines.append(f"- {text}\n")
    if report.missing_since_ns:
        lines.append(_MISSING[language].format(missing=_date(report.missing_since_ns)))
    if report.object_count:
        lines.append(_OBJECTS[language].format(count=report.object_count))
    return "".join(lines)


def as_json(report: DrillReport, *, volume: bytes, key: bytes) -> dict[str, Any]:
    """The fields of a report (docs/drill-json.md)."""
    fields = report.to_body()
    times = {
        name.removesuffix("_ns"): timestamp(int(str(value))) if value else None
        for name, value in fields.items()
        if name.endswith("_ns")
    }
    rest = {name: value for name, value in fields.items() if not name.endswith("_ns")}
    return {
        "passed": report.passed,
        "volume": volume.hex(),
        "key": key.hex(),
        **times,
        **rest,
        "position": format_position(report.position),
    }


def _date(time_ns: int) -> str:
    return datetime.fromtimestamp(time_ns // _NS_PER_S, UTC).strftime("%Y-%m-%d %H:%M:%S")
