"""Where things lie in a store, how a store is made and recognised, and which names are allowed."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.store.claims import CLAIMS, LEASE_S, acquire
from spared_fm.store.files import STAGING, files_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from zarr.abc.store import Store

    from spared_fm.store.objects import StoreUrl

FORMAT = "spared-fm"
FORMAT_VERSION = 1
DATA = "data.zarr"
TOKENS = "tokens"
"""Keys of token grids begin with it: ``tokens/<key>`` lies in ``slides/<slide>.tokens/<key>``, outside the AnnData node."""
REVISION = f"{FORMAT}-revision"
"""Attribute beside ours that counts the changes of a node's record."""
UPDATE_LEASE_S = LEASE_S
"""Seconds after which a writer that died while it changed a record no longer keeps others from it."""
_POLL_S = (0.01, 0.5)  # between looks at a record that another writer is changing: at first, at most
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]*")  # an array of another recipe: <slug>@<8 hex>
GROUP = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}, indent=2).encode()


def check_name(name: str, what: str) -> str:
    """Return ``name`` if it may name a node on disk, else raise :class:`InputError`.

    Parameters
    ----------
    name
        Candidate name.
    what
        The kind of thing, for the message (``"slide"``, ``"cohort"`` …).
    """
    allowed = _KEY if what == "embedding" else _NAME
    if what == "slide" and name.endswith(f".{TOKENS}"):
        raise InputError(
            f"slide name {name!r} may not end with .{TOKENS}, where token grids lie: try {name[:-7] + '_' + TOKENS!r}"
        )
    if not allowed.fullmatch(name.removeprefix(f"{TOKENS}/") if what == "embedding" else name):
        suggestion = re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._-") or "x"
        raise InputError(
            f"{what} name {name!r} may only use A-Z a-z 0-9 . _ - and starts with a letter or digit: try {suggestion!r}"
        )
    return name


def slug(encoder: str) -> str:
    """Turn an encoder's name into an array key: no ``/``, no ``:``.

    >>> slug("timm:vit_small_patch16_224")
    'timm.vit_small_patch16_224'
    """
    return re.sub(r"[^A-Za-z0-9._@-]+", "_", encoder.replace(":", ".")).strip("._")


def key_name(encoder: str) -> str:
    """Turn an encoder's name, with ``tokens/`` before it for its token grid, into an array key.

    >>> key_name("tokens/timm:vit_small_patch16_224")
    'tokens/timm.vit_small_patch16_224'
    """
    grid = f"{TOKENS}/" if encoder.startswith(f"{TOKENS}/") else ""
    return grid + slug(encoder.removeprefix(grid))


class Layout:
    """Paths inside one store.

    Parameters
    ----------
    root
        The store's folder, or its URL (``s3://bucket/store``, ``memory://store``).

    Attributes
    ----------
    root
        Absolute path, or URL: joins with ``/`` and prints; ``str(root)`` opens the same store again.
    files
        The primitives of the place the store lies in.
    """

    def __init__(self, root: str | Path | StoreUrl) -> None:
        self.files = files_for(root)
        self.root = self.files.root

    @property
    def is_local(self) -> bool:
        """Whether the store is a folder of this machine's file systems, not an object store."""
        return isinstance(self.root, Path)

    @classmethod
    def open(cls, root: str | Path | StoreUrl, *, older: bool = False) -> Layout:
        """Open an existing store.

        Parameters
        ----------
        root
            Folder or URL.
        older
            Open a store of an older format too, to migrate it.

        Raises
        ------
        InputError
            There is no store at ``root``, or its format is newer than this version reads, or older.
        """
        layout = cls(root)
        try:
            marker = json.loads(layout.files.read(f"{DATA}/zarr.json"))["attributes"][FORMAT]
            version = int(marker["format_version"])
        except FileNotFoundError:
            shown = root if layout.is_local else layout.root
            raise InputError(f"{shown}: no store here; `spared-fm ingest … --store {shown}` makes one") from None
        except (NotADirectoryError, ValueError, KeyError, TypeError):
            raise InputError(
                f"{root}: {DATA}/zarr.json is not that of a spared-fm store; point --store elsewhere"
            ) from None
        if version > FORMAT_VERSION:
            raise InputError(
                f"{root}: store format {version} is newer than {FORMAT_VERSION}, the newest this version reads; upgrade spared-fm"
            )
        if version < FORMAT_VERSION and not older:
            raise InputError(
                f"{root}: store format {version} is an older one; `spared-fm migrate --store {root}` updates it"
            )
        return layout

    @classmethod
    def create(cls, root: str | Path | StoreUrl) -> Layout:
        """Open the store at ``root``, making an empty one where there is nothing.

        Raises
        ------
        InputError
            ``root`` is a file or a folder that holds something else.
        """
        layout = cls(root)
        if layout.files.exists(f"{DATA}/zarr.json"):
            return cls.open(root)
        if isinstance(layout.root, Path) and layout.root.exists() and not layout.root.is_dir():
            raise InputError(f"{root}: is a file, not a store; name a folder")
        if set(layout.files.list("")) - {STAGING, DATA}:
            raise InputError(f"{root}: is a folder with other things in it, not a store; name a new or an empty folder")
        attributes = {FORMAT: {"format_version": FORMAT_VERSION}}
        root_group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        for group in ("slides", "cohorts"):
            layout.files.put_if_absent(f"{DATA}/{group}/zarr.json", GROUP)
        # The marker comes last: before it there is no store, after it the store is whole.
        layout.files.put_if_absent(f"{DATA}/zarr.json", json.dumps(root_group, indent=2).encode())
        return cls.open(root)

    def slide(self, slide: str) -> str:
        """Key of a slide node."""
        return f"{DATA}/slides/{slide}"

    def cohort(self, cohort: str) -> str:
        """Key of a cohort node."""
        return f"{DATA}/cohorts/{cohort}"

    def embedding(self, slide: str, key: str) -> str:
        """Key of an embedding array, or of a token grid (``tokens/<key>``)."""
        if key.startswith(f"{TOKENS}/"):
            return f"{self.tokens(slide)}/{key.removeprefix(f'{TOKENS}/')}"
        return f"{self.slide(slide)}/obsm/{key}"

    def tokens(self, slide: str) -> str:
        """Key of the folder of a slide's token grids: beside the slide, since AnnData would load them with it."""
        return f"{self.slide(slide)}.{TOKENS}"

    def head(self, cohort: str, run: str) -> str:
        """Key of a fitted head's folder."""
        return f"heads/{cohort}/{run}"

    def zarr_store(self, node: str) -> Store:
        """Read-only zarr store of a node, for zarr and for plain ``anndata.read_zarr``."""
        return self.files.zarr_store(node)

    def attributes(self, node: str) -> dict[str, Any] | None:
        """Our attributes of a zarr node, or None when it is absent or not one of ours."""
        try:
            return json.loads(self.files.read(f"{node}/zarr.json"))["attributes"].get(FORMAT)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, KeyError, AttributeError) as error:
            raise InputError(
                f"{self.root / node}/zarr.json is damaged ({error}); restore it or remove the node"
            ) from error

    def update_attributes(self, node: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """Change our attributes of a zarr node; of several writers at once, in threads or on machines, none is lost.

        The record is read and changed, then written only if it is still the one that was read, else read and changed anew.
        That look and that write are one step for all who come this way: they need the claim on the record's revision, and
        every write begins a new revision. Within a revision no claim is deleted, so a claim on it has one owner; whoever
        finds the record changed after claiming came too late. A dead owner's claim is taken over: at once where its process
        is seen to be dead, else after ``UPDATE_LEASE_S``.

        Readers take no part: the record is one file that is replaced in one step, so :meth:`attributes` and zarr see it as
        it was before a change or after it. They see one node at one time; what a record tells of other files holds as long
        as writers put those first (a layer's values before its registration) and take them away last.

        What is not kept out is a writer that is frozen between its last look at its claim and its write for longer than the
        lease, and then goes on: its write undoes those of others meanwhile.

        Parameters
        ----------
        node
            Key of a zarr node.
        change
            Gives the new attributes for those it is handed, which it may change. It is called again when another writer was
            faster, so it should do nothing else.

        Returns
        -------
        dict
            The attributes as they are now.

        Raises
        ------
        FileNotFoundError
            No such node.
        """
        poll_s, longest_s = _POLL_S
        while True:
            seen = self.files.read(f"{node}/zarr.json")
            metadata = json.loads(seen)
            attributes = metadata["attributes"]
            known = attributes.get(FORMAT)
            changed = change(copy.deepcopy(known or {}))
            if changed == known:
                return changed
            revision = attributes.get(REVISION, 0)
            attributes |= {FORMAT: changed, REVISION: revision + 1}
            if self._swap(node, revision, seen, json.dumps(metadata, indent=2).encode()):
                return changed
            time.sleep(poll_s)
            poll_s = min(2 * poll_s, longest_s)

    def _swap(self, node: str, revision: int, seen: bytes, data: bytes) -> bool:
        """Replace a node's ``zarr.json`` if it is still ``seen``, which is of ``revision``; False when it may not be."""
        # Beside data.zarr: zarr warns of files in a group that are not its own.
        claim = acquire(
            self.files, CLAIMS, f"{hashlib.sha256(node.encode()).hexdigest()[:16]}-{revision}", UPDATE_LEASE_S
        )
        if claim is None:
            return False
        if self.files.read(f"{node}/zarr.json") != seen:
            claim.release()
            return False
        if not claim.renew():  # taken over; the claims of a revision stay until the next one has begun
            return False
        self.files.replace(f"{node}/zarr.json", data)
        claim.release()
        return True

    def slides(self) -> list[str]:
        """Ids of the slides in the store, sorted."""
        return self._nodes(f"{DATA}/slides")

    def cohorts(self) -> list[str]:
        """Names of the cohorts in the store, sorted."""
        return self._nodes(f"{DATA}/cohorts")

    def embeddings(self, slide: str) -> list[str]:
        """Keys of a slide's embedding arrays, sorted, then those of its token grids."""
        grids = [f"{TOKENS}/{name}" for name in self._nodes(self.tokens(slide))]
        return [*self._nodes(f"{self.slide(slide)}/obsm"), *grids]

    def _nodes(self, parent: str) -> list[str]:
        return [name for name in self.files.list(parent) if self.attributes(f"{parent}/{name}") is not None]
