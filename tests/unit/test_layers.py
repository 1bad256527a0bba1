"""The layers of the architecture, walked import by import, and the sizes that keep modules readable.

The tables below are the rules; each rule is also run on a planted violation, so that it is known to be
able to fail. Imports under TYPE_CHECKING, inside functions and relative ones count like all others.
"""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = "mirrorfs"
REPOSITORY = Path(__file__).parents[2]
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
EVERYTHING = frozenset(sys.stdlib_module_names)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# No clock, entropy, file, socket, thread or log among these: pure layers compute from their arguments.
PURE = _names("""
    __future__ abc array base64 binascii bisect collections dataclasses datetime enum errno fnmatch
    fractions functools graphlib hashlib heapq hmac io ipaddress itertools json math operator re stat
    string struct types typing unicodedata urllib.parse zlib zoneinfo
""")
# The engine knows the world through ports only, or the simulator could not stand in for it.
WORLD = _names("""
    asyncio concurrent multiprocessing os pathlib random secrets shutil signal socket sqlite3 subprocess
    tempfile threading time
""")


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer may import: other layers, the standard library's modules, third parties."""

    layers: frozenset[str]
    stdlib: frozenset[str]
    third_party: frozenset[str] = frozenset()
    pure: bool = False


LAYERS = {
    "errors": Layer(_names(""), _names("__future__"), pure=True),
    # threading: zstd contexts must not be shared, so format keeps one per thread.
    "format": Layer(_names("errors"), PURE | {"threading"}, _names("cryptography zstandard"), pure=True),
    "core": Layer(_names("errors format"), PURE, pure=True),
    "ports": Layer(_names("errors format"), PURE | {"contextlib"}),
    "keys": Layer(
        _names("errors format ports"), EVERYTHING, _names("cryptography fido2 pkcs11 tpm2_pytss trio")
    ),
    "engine": Layer(_names("errors core format ports"), EVERYTHING - WORLD, _names("trio")),
    "drivers": Layer(_names("errors format ports"), EVERYTHING, _names("apsw boto3 botocore trio urllib3")),
    "fuse": Layer(_names("errors engine ports"), EVERYTHING, _names("pyfuse3 trio")),
    "cli": Layer(
        _names("errors format core ports keys engine drivers fuse cli"),
        EVERYTHING,
        _names("pyfuse3 segno trio"),
    ),
    "__main__": Layer(_names("cli"), _names("__future__ sys")),
    "": Layer(_names(""), _names("__future__")),  # mirrorfs/__init__.py
}
IMPURE_NAMES = _names("open print input")
IMPURE_METHODS = _names("now today utcnow generate generate_key urandom token_bytes")
EMPTY_NAMES = _names("util utils helper helpers manager managers misc common")


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed module of the package; `name` is dotted and starts with the package."""

    name: str
    is_package: bool
    tree: ast.Module
    lines: int

    @property
    def layer(self) -> str:
        """The first component below the package; empty for the package itself."""
        return layer_of(self.name)


def layer_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def load(root: Path) -> dict[str, Module]:
    """Every module below root/mirrorfs by its dotted name."""
    modules = {}
    for path in sorted((root / ROOT).rglob("*.py")):
        parts = list(path.relative_to(root).with_suffix("").parts)
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        text = path.read_text(encoding="utf-8")
        modules[name] = Module(name, is_package, ast.parse(text, str(path)), len(text.splitlines()))
    return modules


def imports(module: Module, modules: dict[str, Module]) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of what a module imports; a submodule taken by `from` is named in full."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = module.name.split(".")
                up = node.level - module.is_package
                source = ".".join([*package[: len(package) - up], *([source] if source else [])])
            for alias in node.names:
                full = f"{source}.{alias.name}"
                # A layer that is not there (yet) is still a layer, not a name in mirrorfs/__init__.py.
                is_module = full in modules or (source == ROOT and alias.name in LAYERS)
                yield node.lineno, full if is_module else source


def is_ours(name: str) -> bool:
    return name == ROOT or name.startswith(ROOT + ".")


def package_of(name: str, modules: dict[str, Module]) -> str:
    """The package that holds a module; a package holds itself."""
    is_file = name in modules and not modules[name].is_package
    return name.rpartition(".")[0] if is_file else name


def among(name: str, allowed: frozenset[str]) -> bool:
    """Whether a dotted name or one of its parents is allowed."""
    parts = name.split(".")
    return any(".".join(parts[:count]) in allowed for count in range(1, len(parts) + 1))


Problems = Iterator[str]


def unknown_layers(modules: dict[str, Module]) -> Problems:
    for module in modules.values():
        if module.layer not in LAYERS:
            yield f"{module.name}: there is no layer {module.layer!r}"


def upward_imports(modules: dict[str, Module]) -> Problems:
    """Between our layers; mirrorfs/__init__.py holds the version only and is open to all but errors."""
    for module in modules.values():
        if module.layer not in LAYERS:
            continue
        allowed = LAYERS[module.layer].layers | {module.layer} | ({""} if module.layer != "errors" else set())
        for line, name in imports(module, modules):
            if is_ours(name) and layer_of(name) not in allowed:
                yield f"{module.name}:{line}: imports {name}"


def foreign_imports(modules: dict[str, Module]) -> Problems:
    """The standard library and third parties, per layer."""
    for module in modules.values():
        if module.layer not in LAYERS:
            continue
        rule = LAYERS[module.layer]
        for line, name in imports(module, modules):
            top = name.split(".")[0]
            allowed = rule.stdlib if top in sys.stdlib_module_names else rule.third_party
            if not is_ours(name) and (top == "importlib" or not among(name, allowed)):
                yield f"{module.name}:{line}: imports {name}"


def impure_code(modules: dict[str, Module]) -> Problems:
    """Pure layers never await, print, open files, or ask for the time or for random bytes."""
    for module in modules.values():
        if module.layer not in LAYERS or not LAYERS[module.layer].pure:
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncWith | ast.AsyncFor):
                yield f"{module.name}:{node.lineno}: is async"
            elif isinstance(node, ast.Call):
                called = node.func
                if isinstance(called, ast.Name) and called.id in IMPURE_NAMES:
                    yield f"{module.name}:{node.lineno}: calls {called.id}"
                elif isinstance(called, ast.Attribute) and called.attr in IMPURE_METHODS:
                    yield f"{module.name}:{node.lineno}: calls {called.attr}"


def private_imports(modules: dict[str, Module]) -> Problems:
    """`_x`, be it a module or a name in one, is private to the package it lies in."""
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import):
                taken = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                taken = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in filter(is_ours, taken):
                parts = name.split(".")
                for count, part in enumerate(parts):
                    if not part.startswith("_") or part.startswith("__"):
                        continue
                    if package_of(".".join(parts[:count]), modules) != package_of(module.name, modules):
                        yield f"{module.name}:{node.lineno}: imports the private {name}"


def cycles(modules: dict[str, Module]) -> Problems:
    graph = {
        module.name: {name for _, name in imports(module, modules) if name in modules} - {module.name}
        for module in modules.values()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "imports go round: " + " -> ".join(error.args[1])


def empty_names(modules: dict[str, Module]) -> Problems:
    for module in modules.values():
        if module.name.rpartition(".")[2].strip("_") in EMPTY_NAMES:
            yield f"{module.name}: a name that says nothing"


def long_modules(modules: dict[str, Module]) -> Problems:
    for module in modules.values():
        if module.lines > MODULE_LINES_MAX:
            yield f"{module.name}: {module.lines} lines, at most {MODULE_LINES_MAX}"


def long_functions(modules: dict[str, Module]) -> Problems:
    for module in modules.values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    yield f"{module.name}:{node.lineno}: {node.name} has {lines} lines"


Rule = Callable[[dict[str, Module]], Problems]
RULES: list[Rule] = [
    unknown_layers,
    upward_imports,
    foreign_imports,
    impure_code,
    private_imports,
    cycles,
    empty_names,
    long_modules,
    long_functions,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_repository(rule: Rule) -> None:
    modules = load(REPOSITORY)
    assert "mirrorfs.errors" in modules
    assert list(rule(modules)) == []


def plant(root: Path, files: dict[str, str]) -> dict[str, Module]:
    for name, text in {"__init__.py": "", **files}.items():
        path = root / ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return load(root)


LAYER_VIOLATIONS = [
    ("core/a.py", "import mirrorfs.engine"),
    ("core/a.py", "from mirrorfs import ports"),
    ("core/a.py", "from .. import keys"),
    ("core/a.py", "from ..drivers.s3 import Store"),
    ("core/__init__.py", "from ..ports import Store"),
    ("core/deep/a.py", "from ...ports import Store"),
    ("errors.py", "from mirrorfs import __version__"),
    (
        "format/a.py",
        "if TYPE_CHECKING:\n    from mirrorfs.ports import Store",
    ),
    ("format/a.py", "def late() -> None:\n    from mirrorfs.core import replay"),
    ("engine/a.py", "from mirrorfs.drivers.directory import Store"),
    ("engine/a.py", "from mirrorfs.keys import slots"),
    ("fuse/a.py", "from mirrorfs.format.rows import InodeRow"),
    ("fuse/a.py", "from mirrorfs.drivers import clock"),
    ("keys/a.py", "from mirrorfs.drivers import clock"),
    ("drivers/a.py", "import mirrorfs.core.extents as extents"),
    ("ports.py", "from mirrorfs.keys import Slot"),
    ("__init__.py", "from mirrorfs.errors import MirrorfsError"),
]
FOREIGN_VIOLATIONS = [
    ("format/a.py", "import os"),
    ("format/a.py", "import json, secrets"),
    ("format/a.py", "from time import time_ns"),
    ("format/a.py", "import trio"),
    ("format/a.py", "import urllib.request"),
    ("core/a.py", "import random"),
    ("core/a.py", "import logging"),
    ("core/a.py", "import cryptography.hazmat"),
    ("core/a.py", "from zstandard import ZstdCompressor"),
    ("engine/a.py", "import boto3"),
    ("engine/a.py", "from apsw import Connection"),
    ("engine/a.py", "import pyfuse3"),
    ("engine/a.py", "import time"),
    ("engine/a.py", "import importlib"),
    ("drivers/a.py", "import pyfuse3"),
    ("drivers/a.py", "import pkcs11"),
    ("drivers/a.py", "import fido2"),
    ("cli/a.py", "from fido2 import hid"),
    ("fuse/a.py", "import boto3"),
    ("cli/a.py", "import boto3"),
    ("errors.py", "import enum"),
]
IMPURE_VIOLATIONS = [
    ("core/a.py", "async def work() -> None: ..."),
    ("core/a.py", "open('x')"),
    ("format/a.py", "import datetime\ndatetime.datetime.now()"),
    ("format/a.py", "Ed25519PrivateKey.generate()"),
]
ROUND_TRIP = {
    "core/a.py": "import mirrorfs.core.b",
    "core/b.py": "from mirrorfs.core import c",
    "core/c.py": "from .a import x",
}
LONG_FUNCTION = "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX
METHOD = "class A:\n    async def f(self):\n" + "        x = 1\n" * FUNCTION_LINES_MAX
VIOLATIONS: list[tuple[Rule, dict[str, str]]] = [
    *((upward_imports, {name: text}) for name, text in LAYER_VIOLATIONS),
    *((foreign_imports, {name: text}) for name, text in FOREIGN_VIOLATIONS),
    *((impure_code, {name: text}) for name, text in IMPURE_VIOLATIONS),
    (unknown_layers, {"extras/a.py": ""}),
    (private_imports, {"cli/a.py": "from mirrorfs.engine._queue import Queue", "engine/_queue.py": ""}),
    (private_imports, {"cli/a.py": "import mirrorfs.engine._queue"}),
    (private_imports, {"cli/a.py": "from mirrorfs.engine.queue import _Queue", "engine/queue.py": ""}),
    (cycles, ROUND_TRIP),
    (empty_names, {"core/utils.py": ""}),
    (empty_names, {"engine/_helpers.py": ""}),
    (long_modules, {"core/a.py": "x = 1\n" * (MODULE_LINES_MAX + 1)}),
    (long_functions, {"core/a.py": LONG_FUNCTION}),
    (long_functions, {"core/a.py": METHOD}),
]


@pytest.mark.parametrize(("rule", "files"), VIOLATIONS)
def test_planted_violation(rule: Rule, files: dict[str, str], tmp_path: Path) -> None:
    assert len(list(rule(plant(tmp_path, files)))) == 1


def test_what_is_allowed(tmp_path: Path) -> None:
    modules = plant(
        tmp_path,
        {
            "errors.py": "from __future__ import annotations",
            "format/a.py": "import struct, urllib.parse\nfrom mirrorfs.errors import X\nimport zstandard",
            "format/_b.py": "from cryptography.hazmat.primitives.ciphers.aead import AESGCM",
            "format/c.py": "from mirrorfs.format._b import _tag\nfrom mirrorfs.format.a import x",
            "core/a.py": "import collections.abc\nfrom mirrorfs.format.a import y",
            "ports.py": "from typing import Protocol\nfrom mirrorfs.format import a",
            "keys/a.py": "import pkcs11, subprocess\nfrom ..ports import Entropy",
            "engine/a.py": "from mirrorfs import __version__\nimport trio\nimport mirrorfs.core.a",
            "drivers/a.py": "import apsw, boto3, os, time, trio",
            "fuse/a.py": "import pyfuse3, trio\nfrom mirrorfs.engine.a import run",
            "cli/main.py": "import os\nfrom mirrorfs.drivers.a import b\nfrom mirrorfs import fuse, keys",
            "__main__.py": "from mirrorfs.cli.main import main",
            "core/exact.py": "x = 1\n" * MODULE_LINES_MAX,
            "core/long.py": "def f():\n" + "    x = 1\n" * (FUNCTION_LINES_MAX - 1),
        },
    )
    assert [problem for rule in RULES for problem in rule(modules)] == []


def test_table_points_down() -> None:
    order = graphlib.TopologicalSorter({name: rule.layers - {name} for name, rule in LAYERS.items()})
    assert set(order.static_order()) == set(LAYERS)
