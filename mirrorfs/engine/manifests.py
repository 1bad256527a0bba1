"""The deletion manifests of a store: which of its objects the pruner has deleted, or was about to."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from mirrorfs.engine.versions import get_good
from mirrorfs.errors import DamagedError, LimitError, ObjectNotFound
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.manifest import MANIFEST_PREFIX, Manifest, open_manifest, parse_manifest_key
from mirrorfs.ports import LIST_PAGE_MAX, ObjectKey, Store

logger = logging.getLogger(__name__)


async def manifests_of(
    store: Store, keys: VolumeKeys, public_key: bytes, *, instance: bytes
) -> Sequence[Manifest]:
    """Those that verify, and are of this instance of a store, the oldest first; others count for nothing.

    Args:
        public_key: of the pruner role, 32 bytes.
        instance: the store's, 16 bytes.
    Raises: StoreError.
    """
    found: list[Manifest] = []
    after = ""
    while True:
        page = await store.list(MANIFEST_PREFIX, start_after=after)
        for info in page:
            key = info.key

            def check(data: bytes, key: str = key) -> Manifest:
                return open_manifest(data, key=key, keys=keys, public_key=public_key)

            try:
                parse_manifest_key(key)
                manifest = await get_good(store, ObjectKey(key), check, size_max=DOCUMENT_SIZE_MAX)
            except (DamagedError, LimitError, ObjectNotFound) as exc:
                # Of earlier keys, or somebody's who lacks the pruner's.
                logger.info("store %s, object %s counts for nothing: %s", store.name, key, exc)
                continue
            if manifest.instance == instance:
                found.append(manifest)
        if len(page) < LIST_PAGE_MAX:
            return found
        after = page[-1].key
