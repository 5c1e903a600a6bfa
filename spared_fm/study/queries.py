"""Queries of a search: spots, image files, regions of slides and plain vectors, as vectors of one encoder."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from zipfile import BadZipFile

import numpy as np

from spared_fm.errors import InputError
from spared_fm.store.embeddings import EmbeddingArray

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spared_fm.encoders.builder import Encoder
    from spared_fm.slides.patches import PatchSpec
    from spared_fm.study.search_columns import Spot, Tables

COMBINE = ("mean", "any")
BATCH = 32
"""Patches encoded at a time."""
_NUMBER = r"[-+]?\d+(?:\.\d*)?"
_REGION = re.compile(
    rf"(?P<slide>[^:]+):(?P<x>{_NUMBER}),(?P<y>{_NUMBER})(?P<unit>px|um|µm)?(?:,(?P<side>\d+(?:\.\d*)?)(?:um|µm))?"
)


@dataclasses.dataclass
class Query:
    """One query.

    Attributes
    ----------
    name
        What its results are filed under.
    vectors
        float32 (m, dim). With several, what is similar to any of them is found.
    slides
        Slides it comes from.
    own
        Spots it is made of, which are never among its results.
    patches
        uint8 (n, px, px, 3), where it was made from pixels.
    """

    name: str
    vectors: np.ndarray
    slides: tuple[str, ...] = ()
    own: tuple[Spot, ...] = ()
    patches: np.ndarray | None = None


class Region(NamedTuple):
    """A square of a slide.

    Attributes
    ----------
    slide
        Slide id.
    x, y
        Its centre, in the pixels of the spots' coordinates, or in µm from their origin.
    unit
        ``px`` or ``um``.
    side_um
        Its side, µm; by default one patch.
    """

    slide: str
    x: float
    y: float
    unit: str = "px"
    side_um: float | None = None

    @classmethod
    def parse(cls, text: str) -> Region:
        """Read ``SLIDE:X,Y[um][,SIDEum]``.

        >>> Region.parse("s1:812.5,930um,500um")
        Region(slide='s1', x=812.5, y=930.0, unit='um', side_um=500.0)
        """
        match = _REGION.fullmatch(text)
        if match is None:
            raise InputError(
                f"--region {text!r} is not SLIDE:X,Y[um][,SIDEum], e.g. s1:1200,3400 or s1:812,930um,500um"
            )
        unit = "um" if match["unit"] in ("um", "µm") else "px"
        side = float(match["side"]) if match["side"] else None
        return cls(match["slide"], float(match["x"]), float(match["y"]), unit, side)

    def __str__(self) -> str:
        side = f",{self.side_um:g}um" if self.side_um else ""
        return f"{self.slide}:{self.x:g},{self.y:g}{'um' if self.unit == 'um' else ''}{side}"


class Maker:
    """Makes queries for the embeddings of one key.

    Parameters
    ----------
    tables
        Tables of the store.
    array
        Any slide's array of the key, for its recipe.
    metric
        What is compared; for ``cosine`` a mean is one of directions.
    weights
        Weights file of the encoder, when the array was made with one.
    scaled
        Applied to vectors (n, dim) of embeddings.
    """

    def __init__(
        self,
        tables: Tables,
        array: EmbeddingArray,
        metric: str,
        weights: str | Path | None = None,
        scaled: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    ) -> None:
        self.tables, self.array, self.metric, self.weights, self.scaled = tables, array, metric, weights, scaled
        self._encoder: Encoder | None = None

    def spots(self, spots: Sequence[str], combine: str | None) -> list[Query]:
        """One query per spot ``SLIDE/BARCODE``; with `combine`, one of them all."""
        made = []
        for name in spots:
            slide, row = self.tables.row(name)
            array = EmbeddingArray(self.tables.layout, slide, self.array.key)
            array.check_current()
            vector = array.read(np.array([row])).astype(np.float32)
            if not np.isfinite(vector).all():
                raise InputError(
                    f"spot {name} has no embedding: {array.absent().get(row, 'its patch could not be read')}"
                )
            made.append(Query(name, self.scaled(vector), (slide,), ((slide, row),)))
        if combine is None or len(made) < 2:
            return made
        whole = Query(
            f"{combine} of {len(made)} spots",
            self.combined(np.concatenate([query.vectors for query in made]), combine),
            tuple(dict.fromkeys(query.slides[0] for query in made)),
            tuple(query.own[0] for query in made),
        )
        return [whole]

    def images(self, images: Sequence[str | Path], mpp: float | None) -> list[Query]:
        """One query per image file: one patch, with `mpp` (µm per pixel) cut from its middle at the recipe's scale."""
        from spared_fm.slides.images import open_image
        from spared_fm.slides.patches import PatchReader

        made = []
        for path in map(Path, images):
            spec = self._spec("--image")
            with open_image(path) as image:
                level = image.levels[0]
                side = min(level.width, level.height)
                if mpp is not None and side * mpp < spec.um:
                    raise InputError(
                        f"{path}: {side} px at {mpp} µm/px is smaller than a patch ({spec.um:g} µm); crop a larger region"
                    )
                if mpp is None and side < spec.px:
                    raise InputError(
                        f"{path}: {side} px is smaller than a patch ({spec.px} px); crop a larger region, or say how many µm a "
                        "pixel has (--mpp)"
                    )
                reader = PatchReader(image, mpp or spec.um / side, spec)
                patch = reader.read_one(level.width / 2 - 0.5, level.height / 2 - 0.5)[None]
            made.append(Query(str(path), self._encode(patch), patches=patch))
        return made

    def regions(self, regions: Sequence[str | Region], combine: str | None) -> list[Query]:
        """One query per region of a slide's image; one larger than a patch is the mean, or any, of the patches that tile it."""
        from spared_fm.extract.source import patch_source

        made = []
        for asked in regions:
            region = Region.parse(asked) if isinstance(asked, str) else Region(*asked)
            spec = self._spec("--region")
            record = self.tables.record(region.slide)
            image = record["image"]
            if image is None or image["kind"] == "patches":
                raise InputError(
                    f"slide {region.slide} has no image to cut {region} from; query with --spot or --image"
                )
            mpp = record["mpp"]
            scale = 1 / mpp if region.unit == "um" else 1.0
            x, y = region.x * scale, region.y * scale
            for at, size, axis in ((x, image["width"], "x"), (y, image["height"], "y")):
                if not 0 <= at < size / image["scale"]:
                    raise InputError(
                        f"--region {region}: {axis} is outside the image of slide {region.slide}, which has "
                        f"{size / image['scale']:.0f} px ({size / image['scale'] * mpp:.0f} µm) along {axis}"
                    )
            tiles = (region.side_um or spec.um) / spec.um
            if tiles < 1 - 1e-6:
                raise InputError(
                    f"--region {region} is smaller than a patch ({spec.um:g} µm); give a larger side, or none"
                )
            steps = (np.arange(int(tiles + 1e-6)) - (int(tiles + 1e-6) - 1) / 2) * spec.um / mpp
            places = np.stack(np.meshgrid(x + steps, y + steps), axis=-1).reshape(-1, 2)
            reader, _ = patch_source(self.tables.layout, region.slide, spec, range(0))
            patches = reader.read(places)
            vectors = self.combined(self._encode(patches), combine or "mean")
            made.append(Query(str(region), vectors, (region.slide,), patches=patches))
        return made

    def vectors(self, vectors: Sequence[str | Path | np.ndarray]) -> list[Query]:
        """One query per row of vectors (dim,) or (n, dim), or of ``.npy`` files of such."""
        made = []
        for given in vectors:
            name = str(given) if isinstance(given, str | Path) else "vector"
            values = _load(Path(given)) if isinstance(given, str | Path) else np.asarray(given)
            rows = np.atleast_2d(values)
            if rows.ndim != 2 or rows.dtype.kind not in "fiu":
                raise InputError(
                    f"{name}: has shape {values.shape} and dtype {values.dtype}; give numbers (dim,) or (n, dim)"
                )
            if rows.shape[1] != self.array.shape[1]:
                raise InputError(
                    f"{name}: has {rows.shape[1]} dimensions, embeddings {self.array.key!r} have {self.array.shape[1]}; "
                    "query with a vector of the same encoder"
                )
            with np.errstate(over="ignore"):
                rows = rows.astype(np.float32)
            if not np.isfinite(rows).all():
                raise InputError(f"{name}: holds NaN or infinite values; give finite ones")
            several = values.ndim == 2 and len(values) > 1
            made += [Query(f"{name}[{i}]" if several else name, self.scaled(row[None])) for i, row in enumerate(rows)]
        return made

    def combined(self, vectors: np.ndarray, combine: str) -> np.ndarray:
        """Give (1, dim) for ``mean``, the vectors for ``any``."""
        if combine == "any" or len(vectors) == 1:
            return vectors
        values = vectors.astype(np.float64)
        if self.metric == "cosine":  # long vectors would outvote short ones
            norms = np.linalg.norm(values, axis=1, keepdims=True)
            values /= np.where(norms > 0, norms, 1.0)
        return values.mean(axis=0, keepdims=True).astype(np.float32)

    def _spec(self, option: str) -> PatchSpec:
        from spared_fm.slides.patches import PatchSpec

        recipe = self.array.recipe
        if recipe.transform.get("unverified"):
            raise InputError(
                f"{self.array.key!r} were imported, so pixels can't be encoded the same way ({option}); query with --spot"
            )
        return PatchSpec(recipe.patch_um, recipe.patch_px, recipe.resampling)

    def _encode(self, patches: np.ndarray) -> np.ndarray:
        from spared_fm.encoders.builder import build
        from spared_fm.encoders.spec import from_settings

        if self._encoder is None:
            encoder = build(from_settings(self.array.attributes, self.weights))
            if encoder.weights != self.array.recipe.weights:
                raise InputError(
                    f"{self.array.key!r} was made with other weights than the encoder has now; give them with --weights FILE"
                )
            self._encoder = encoder
        parts = [self._encoder.encode(patches[at : at + BATCH]) for at in range(0, len(patches), BATCH)]
        vectors = np.concatenate(parts).astype(self.array.dtype).astype(np.float32)
        if vectors.shape[1] != self.array.shape[1]:
            raise InputError(
                f"encoder {self._encoder.spec.name} gives {vectors.shape[1]} dimensions, embeddings {self.array.key!r} "
                f"have {self.array.shape[1]}; query with --spot"
            )
        return self.scaled(vectors)


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # numpy leaves it open when it is a broken archive
            values = np.load(file, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise InputError(
            f"{path}: is not a .npy file of numbers ({type(error).__name__}); write it with numpy.save"
        ) from error
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path}: is an archive of arrays, not a .npy file of numbers; write it with numpy.save")
    return values
