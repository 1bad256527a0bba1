"""What it takes to look whether the token that opened a volume is still there; nothing of it is secret."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from mirrorfs.cli.config import TokenConfig
from mirrorfs.format.slot import Slot
from mirrorfs.format.slot_token import SlotKind, TokenFields, token_fields


@dataclass(frozen=True, slots=True)
class WatchedToken:
    """A slot's token, and the roads on which it may be reached."""

    fields: TokenFields
    roads: tuple[TokenConfig, ...]
    """Tokens of that kind, as the command line or the configuration names them."""

    @classmethod
    def of(cls, slot: Slot, tokens: Sequence[TokenConfig]) -> WatchedToken:
        """For the slot that was opened with one of these tokens."""
        kind = slot.kind.value
        roads = tuple(token for token in tokens if token.uri.partition(":")[0].lower() == kind)
        return cls(slot.token, roads)

    @property
    def kind(self) -> SlotKind:
        return self.fields.kind

    def to_text(self) -> str:
        """One line of JSON."""
        roads = [[road.uri, road.module_path] for road in self.roads]
        return json.dumps({"kind": self.kind, "fields": self.fields.to_body(), "roads": roads})

    @classmethod
    def from_text(cls, text: str) -> WatchedToken:
        """What `to_text` wrote, in another process of ours."""
        values = json.loads(text)
        fields = token_fields(SlotKind(values["kind"]), values["fields"])
        return cls(fields, tuple(TokenConfig(uri, module) for uri, module in values["roads"]))
