"""One task: read a chunk's patches, encode them, write the chunk.

It runs in a worker, again after a crash, or twice: the outcome is the same.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from spared_fm.encoders.builder import Encoder, build
from spared_fm.errors import InputError
from spared_fm.slides.fingerprint import fingerprint
from spared_fm.slides.images import open_image
from spared_fm.slides.patches import PatchReader, PatchSpec
from spared_fm.store.embeddings import EmbeddingArray, slide_record
from spared_fm.store.layout import Layout
from spared_fm.store.nodes import read_elem

if TYPE_CHECKING:
    from spared_fm.encoders.spec import EncoderSpec
    from spared_fm.extract.plan import Task
    from spared_fm.slides.images import ImageReader

_lock = threading.Lock()
_encoders: dict[tuple[EncoderSpec, str], Encoder] = {}


@dataclasses.dataclass(frozen=True)
class Done:
    """What a task reports: small, since dask keeps results of finished tasks.

    Attributes
    ----------
    patches
        Patches encoded by this call; 0 when the chunk was there already.
    seconds
        Stage name → seconds.
    """

    slide: str
    chunk: int
    patches: int
    seconds: dict[str, float]


def encode_chunk(task: Task) -> Done:
    """Encode one chunk unless its receipt is there.

    Raises
    ------
    InputError
        The encoder built here is not the recipe's (other weights), or its output is not finite.
    OverflowError
        An embedding does not fit the stored dtype.
    """
    layout = Layout(task.store)
    array = EmbeddingArray(layout, task.slide, task.key)
    if array.receipt(task.chunk) is not None:
        return Done(task.slide, task.chunk, 0, {})
    started = time.perf_counter()
    encoder = _encoder(task.spec, task.device)
    recipe = array.recipe
    if encoder.weights != recipe.weights:
        raise InputError(
            f"worker built {task.spec.name} with weights {encoder.weights}, the array has {recipe.weights}"
        )
    torch.set_num_threads(array.attributes["threads"])
    reader = _patch_reader(task.store, task.slide, recipe.patch_um, recipe.patch_px, recipe.resampling)
    rows = array.rows(task.chunk)
    xy = read_elem(layout, f"{layout.slide(task.slide)}/obsm/spatial")[rows.start : rows.stop]
    seconds = {"open": time.perf_counter() - started, "read": 0.0, "encode": 0.0}
    values = np.empty((len(rows), array.shape[1]), dtype=np.float32)
    batch = array.attributes["batch_size"]
    for first in range(0, len(rows), batch):
        started = time.perf_counter()
        patches = reader.read(xy[first : first + batch])
        seconds["read"] += time.perf_counter() - started
        started = time.perf_counter()
        values[first : first + batch] = encoder.encode(patches)
        seconds["encode"] += time.perf_counter() - started
    started = time.perf_counter()
    array.write_chunk(task.chunk, values, device=_device_name(task.device))
    seconds["write"] = time.perf_counter() - started
    return Done(task.slide, task.chunk, len(rows), seconds)


def keep(encoder: Encoder) -> None:
    """Let tasks of this process use ``encoder``, which the planner has built, instead of building it again."""
    with _lock:
        _encoders[encoder.spec, encoder.device] = encoder


def _encoder(spec: EncoderSpec, device: str) -> Encoder:
    with _lock:  # two threads of one worker must not build the same model twice
        if (spec, device) not in _encoders:
            _encoders.clear()  # one model at a time: a worker serves one run
            _encoders[spec, device] = build(spec, device=device)
        return _encoders[spec, device]


def _patch_reader(store: str, slide: str, um: float, px: int, resample: str) -> PatchReader:
    record = slide_record(Layout(store), slide)
    with _lock:
        image = _image(record["image"]["path"], record["fingerprint"])
    return PatchReader(image, record["mpp"], PatchSpec(um, px, resample), scale=record["image"]["scale"])


@functools.lru_cache(maxsize=1)  # an untiled image is held decoded; chunks of one slide follow each other
def _image(path: str, expected: str) -> ImageReader:
    if fingerprint(path) != expected:  # the path is only a hint; the fingerprint says whether it is our image
        raise InputError(f"{path} is no longer the image that was ingested; put that one back")
    return open_image(path)


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
