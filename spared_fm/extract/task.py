"""One task: read a chunk's patches once, encode them with every encoder that lacks the chunk, write the chunks.

It runs in a worker, again after a crash, or twice: the outcome is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import threading
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from spared_fm.encoders.builder import Encoder, build, forward_together, shares_forward, with_tokens
from spared_fm.errors import InputError
from spared_fm.extract.source import check_unchanged, patch_source
from spared_fm.extract.streams import ahead, pool, spread
from spared_fm.slides.patches import PatchSpec
from spared_fm.slides.resample import prepare
from spared_fm.slides.stopwatch import taken
from spared_fm.store.claims import hold
from spared_fm.store.embeddings import EmbeddingArray
from spared_fm.store.layout import Layout

if TYPE_CHECKING:
    from spared_fm.encoders.spec import EncoderSpec
    from spared_fm.extract.plan import Task
    from spared_fm.extract.source import Reader

_lock = threading.Lock()
_encoders: dict[tuple[EncoderSpec, str], Encoder] = {}
STAGES = ("open", "read", "decode", "resample", "transform", "forward", "wait", "write")
MOST_ENCODERS = 4
"""Encoders a worker keeps built: those of one run."""


class EmbeddingOverflowError(OverflowError):
    """An embedding does not fit the stored dtype; ``key`` names its array."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(key, message)  # both, so that it survives the way back from a worker
        self.key = key

    def __str__(self) -> str:
        return str(self.args[1])


@dataclasses.dataclass(frozen=True)
class Done:
    """What a task reports: small, since dask keeps results of finished tasks.

    Attributes
    ----------
    patches
        Patches read by this call; 0 when every chunk was there already.
    seconds
        Stage → seconds, summed over the streams of the worker: open (the image), read (its bytes), decode (tiles; with the
        reading, in scanners' formats), resample (cut the patches at their mpp), transform, forward, write, and wait (of a
        stream for a tile that another one decodes; on a GPU, of the forward pass for pixels).
    absent
        Spot row → reason, for patches that could not be read.
    busy
        What another writer has in hand: to be looked at again later.
    """

    slide: str
    chunk: int
    patches: int
    seconds: dict[str, float]
    absent: dict[int, str] = dataclasses.field(default_factory=dict)
    busy: Task | None = None


@dataclasses.dataclass
class _Output:
    """One encoder's share of a task."""

    array: EmbeddingArray
    encoder: Encoder
    values: np.ndarray


def encode_chunk(task: Task) -> Done:
    """Encode one chunk for the encoders whose receipt is missing.

    Raises
    ------
    InputError
        The encoder built here is not the recipe's (other weights), or its output is not finite.
    EmbeddingOverflowError
        An embedding does not fit the stored dtype.
    """
    with contextlib.ExitStack() as claims:
        outputs, busy = _outputs(task, claims)
        if not outputs:
            return Done(task.slide, task.chunk, 0, {}, busy=busy)
        return dataclasses.replace(_encode(task, outputs), busy=busy)


def _encode(task: Task, outputs: list[_Output]) -> Done:
    started = time.perf_counter()
    taken()  # what this thread read before is not ours
    if task.long_run:
        _compile_beside()
    first = outputs[0].array
    batch, threads = first.attributes["batch_size"], first.attributes["threads"]
    rows = first.rows(task.chunk)
    layout = first.layout
    spec = PatchSpec(first.recipe.patch_um, first.recipe.patch_px, first.recipe.resampling)
    reader, places = patch_source(layout, task.slide, spec, rows)
    seconds = dict.fromkeys(STAGES, 0.0)
    seconds |= taken()  # an image without tiles is decoded as a whole
    seconds["open"] = time.perf_counter() - started - sum(seconds.values())
    absent: dict[int, str] = {}
    together = _one_pass(outputs)

    def read(start: int) -> np.ndarray:
        taken()
        clock = time.perf_counter()
        patches, lost = read_block(reader, places[start : start + batch])
        elapsed, parts = time.perf_counter() - clock, taken()
        with _lock:
            for name, value in parts.items():
                seconds[name] += value
            seconds["resample"] += elapsed - sum(parts.values())
            absent.update({rows.start + start + row: reason for row, reason in lost.items()})
        return patches

    def transform(patches: np.ndarray) -> list[torch.Tensor]:
        clock = time.perf_counter()
        batches = [members[0].encoder.transform(patches) for members in together]
        with _lock:
            seconds["transform"] += time.perf_counter() - clock
        return batches

    def forward(start: int, batches: list[torch.Tensor]) -> None:
        clock = time.perf_counter()
        for members, pixels in zip(together, batches, strict=True):
            found = forward_together([output.encoder for output in members], pixels)
            for output, values in zip(members, found, strict=True):
                output.values[start : start + batch] = values
        with _lock:
            seconds["forward"] += time.perf_counter() - clock

    starts = range(0, len(rows), batch)
    if task.device == "cpu":
        streams = task.streams or max(1, cores() // threads)
        spread(pool(streams, threads), lambda start: forward(start, transform(read(start))), starts)
    else:
        streams = task.streams or max(1, cores() - 1)
        executor = pool(streams, 1)
        seconds["wait"] += ahead(executor, lambda start: transform(read(start)), forward, starts, depth=2 * streams)

    if absent:
        check_unchanged(layout, task.slide)  # an image that is being replaced has no bad patches
    started = time.perf_counter()
    for output in outputs:
        try:
            output.array.write_chunk(task.chunk, output.values, absent=absent, device=_device_name(task.device))
        except OverflowError as error:
            raise EmbeddingOverflowError(output.array.key, str(error)) from error
    seconds["write"] += time.perf_counter() - started
    return Done(task.slide, task.chunk, len(rows), seconds, absent)


def _one_pass(outputs: list[_Output]) -> list[list[_Output]]:
    """Group the outputs that one forward pass fills (an embedding and its token grid)."""
    groups: list[list[_Output]] = []
    for output in outputs:
        fitting = (members for members in groups if shares_forward(members[0].encoder, output.encoder))
        members = next(fitting, None)
        if members is None:
            groups.append([output])
        else:
            members.append(output)
    return groups


def read_block(reader: Reader, places: np.ndarray) -> tuple[np.ndarray, dict[int, str]]:
    """Read patches; one whose pixels can't be read is left blank, and its row and the reason are returned."""
    try:
        return reader.read(places), {}
    except InputError:
        patches = np.empty((len(places), reader.spec.px, reader.spec.px, 3), dtype=np.uint8)
        lost = {}
        for row in range(len(places)):
            try:
                patches[row] = reader.read(places[row : row + 1])[0]
            except InputError as error:
                patches[row], lost[row] = 255, str(error)
        return patches, lost


def keep(encoder: Encoder) -> None:
    """Let tasks of this process use ``encoder``, which the planner has built, instead of building it again."""
    with _lock:
        _encoders[encoder.spec, encoder.device] = encoder


def get(spec: EncoderSpec, device: str) -> Encoder:
    """Build an encoder, once per process; an encoder and its token grid share one network."""
    with _lock:  # two threads of one worker must not build the same model twice
        return _get(spec, device)


def _get(spec: EncoderSpec, device: str) -> Encoder:
    if (spec, device) not in _encoders:
        plain = dataclasses.replace(spec, tokens=0)
        encoder = with_tokens(_get(plain, device), spec.tokens) if spec.tokens else build(spec, device=device)
        while len(_encoders) >= MOST_ENCODERS:
            _encoders.pop(next(iter(_encoders)))
        _encoders[spec, device] = encoder
    return _encoders[spec, device]


def _outputs(task: Task, claims: contextlib.ExitStack) -> tuple[list[_Output], Task | None]:
    """Claim the arrays of the task that lack the chunk, with their encoders; what others are on is given back as a task."""
    layout = Layout(task.store)
    outputs, busy = [], []
    for key, spec in task.jobs:
        array = EmbeddingArray(layout, task.slide, key)
        if not claims.enter_context(hold(array, task.chunk)):
            if array.receipt(task.chunk) is None:
                busy.append((key, spec))
            continue
        encoder = get(spec, task.device)
        if encoder.weights != array.recipe.weights:
            raise InputError(
                f"worker built {spec.name} with weights {encoder.weights}, the array has {array.recipe.weights}"
            )
        values = np.empty((len(array.rows(task.chunk)), array.shape[1]), dtype=np.float32)
        outputs.append(_Output(array, encoder, values))
    return outputs, dataclasses.replace(task, jobs=tuple(busy)) if busy else None


@functools.cache
def _compile_beside() -> None:
    """Compile the resampling, once per process, while the first batches are on their way; pixels are the same without."""
    threading.Thread(target=prepare, name="spared-fm compile", daemon=True).start()


def cores() -> int:
    """Cores this process may use: its affinity and its control group's quota, or less by ``SPARED_FM_CORES``."""
    from dask.system import cpu_count

    limit = os.environ.get("SPARED_FM_CORES")
    return min(cpu_count(), int(limit)) if limit else cpu_count()


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
