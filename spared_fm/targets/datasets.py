"""The 26 data sets of SpaRED by name, as data: slides, splits, settings and the known answers of ``datasets.toml``."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError
from spared_fm.tables import check_fields, is_list, is_one_of, is_said, is_text, is_whole, read_toml

if TYPE_CHECKING:
    from spared_fm.tables import Check

FILE = Path(__file__).with_name("datasets.toml")

ORGANISMS = ("human", "mouse")
SPLITS = ("train", "val", "test")
PATIENT_FROM = {
    "prefix": lambda slide: slide.split("_")[0],
    "suffix": lambda slide: slide.split("_")[-1],
    "constant": lambda slide: "unique",  # SpaRED's word
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One data set of SpaRED.

    Attributes
    ----------
    name
        As SpaRED spells it, mistakes included.
    abbreviation
        As in its tables.
    organism
        ``human`` or ``mouse``.
    tissue
        In words.
    train, val, test
        Slide ids, in the order they are joined. An empty `test` means that the published figures fall on `val`, which chose
        the checkpoint too.
    genes
        How many genes Moran's I keeps.
    combat_key
        Column of ``obs`` whose values are ComBat's batches: ``patient`` or ``slide_id``.
    cell_min_counts
        Spots with this many counts or fewer are dropped.
    patients
        How many values ``obs['patient']`` has.
    patient_from
        How it is made from a slide id, a key of :data:`PATIENT_FROM`. A capture slide's serial number need not be a person.
    spots
        Of the processed file.
    missing, missing_raw
        Percent of its entries that are imputed; percent of zeros before any processing. Whole, as printed.
    incomplete_spots
        Percent of spots with an imputed entry.
    sources
        Web addresses.
    counts
        ``raw``, or ``normalised`` where what SpaRED takes for counts is not.
    image_bits
        Bits per channel of the source images.
    note
        What to know before trusting a figure on it.
    """

    name: str
    abbreviation: str
    organism: str
    tissue: str
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    genes: int
    combat_key: str
    cell_min_counts: int
    patients: int
    patient_from: str
    spots: int
    missing: int
    missing_raw: int
    incomplete_spots: int
    sources: tuple[str, ...]
    counts: str = "raw"
    image_bits: int = 8
    note: str = ""

    @property
    def slides(self) -> tuple[str, ...]:
        """Every slide: train, then val, then test."""
        return self.train + self.val + self.test

    @property
    def split(self) -> dict[str, str]:
        """Slide → ``train``, ``val`` or ``test``."""
        return {slide: split for split in SPLITS for slide in getattr(self, split)}

    @property
    def patient(self) -> dict[str, str]:
        """Slide → what SpaRED calls its patient."""
        return {slide: PATIENT_FROM[self.patient_from](slide) for slide in self.slides}

    @property
    def scored_on(self) -> str:
        """The split that published figures fall on: ``test`` where there is one, else ``val``."""
        return "test" if self.test else "val"

    @property
    def parameters(self) -> dict[str, Any]:
        """SpaRED's processing parameters under SpaRED's names, a fresh dict."""
        return {
            **_read()[1],
            "organism": self.organism,
            "cell_min_counts": self.cell_min_counts,
            "top_moran_genes": self.genes,
            "combat_key": self.combat_key,
        }


def datasets() -> dict[str, Dataset]:
    """Give the data sets by name, sorted."""
    return dict(_read()[0])


def dataset(name: str) -> Dataset:
    """Give the data set of a name or an abbreviation (``vicari_mouse_brain``, ``VMB``).

    Raises
    ------
    InputError
        There is none; close names are suggested.
    """
    known = _read()[0]
    wanted = name.lower()
    aliases = {found.abbreviation.lower(): found for found in known.values()}
    if wanted in known or wanted in aliases:
        return known.get(wanted) or aliases[wanted]
    close = difflib.get_close_matches(wanted, [*known, *aliases], n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(close)}?" if close else "`spared-fm datasets` lists the 26"
    raise InputError(f"no SpaRED data set is called {name!r}; {hint}")


def same_slides(name: str) -> dict[str, tuple[str, ...]]:
    """Find the other data sets that hold slides of this one: never train on the one and score on the other.

    Capture slides carry several samples, so only whole ids (serial number and area) count as the same slide.

    Returns
    -------
    dict
        Data set → the slides shared, in this one's order; empty where none are.
    """
    own = dataset(name)
    shared = {
        other.name: tuple(slide for slide in own.slides if slide in other.slides)
        for other in _read()[0].values()
        if other.name != own.name
    }
    return {other: slides for other, slides in shared.items() if slides}


def read_datasets(path: Path) -> tuple[dict[str, Dataset], dict[str, Any]]:
    """Read a file like ``datasets.toml``: the data sets by name, and the parameters that all of them share.

    Raises
    ------
    InputError
        The file can't be read, or a field is missing, unknown, of the wrong kind or at odds with another.
    """
    data = read_toml(path, FILE.name)
    tables, parameters = data.pop("dataset", {}), data.pop("parameters", {})
    if data or not tables:
        raise InputError(f"{path}: expected [parameters] and [dataset.<name>] tables and nothing else")
    return {name: _parse(path, name, tables[name]) for name in sorted(tables)}, parameters


@functools.cache
def _read() -> tuple[dict[str, Dataset], dict[str, Any]]:
    return read_datasets(FILE)


def _parse(path: Path, name: str, table: dict[str, Any]) -> Dataset:
    where = f"{path}: data set {name!r}"
    found = Dataset(name=name, **check_fields(where, table, _CHECKS, _DEFAULTS))
    repeated = [slide for slide in found.slides if found.slides.count(slide) > 1]
    if repeated:
        raise InputError(f"{where}: slide {repeated[0]} is listed twice; keep it in one split")
    if found.patients != (count := len(set(found.patient.values()))):
        raise InputError(
            f"{where}: patients is {found.patients}, but patient_from {found.patient_from!r} tells {count} apart"
        )
    return found


_DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(Dataset) if field.default is not dataclasses.MISSING
}

_SAID = ("some text", is_said)
_SLIDES = ("a list of at least one slide", is_list(is_said, empty=False))
_COUNT, _PERCENT = ("a whole number, 1 or more", is_whole(1)), ("a whole percentage", is_whole(0, 100))

_CHECKS: dict[str, Check] = {
    "abbreviation": _SAID,
    "organism": ("human or mouse", is_one_of(*ORGANISMS)),
    "tissue": _SAID,
    "train": _SLIDES,
    "val": _SLIDES,
    "test": ("a list of slides, [] where there is no test split", is_list(is_said)),
    "genes": _COUNT,
    "combat_key": ("patient or slide_id", is_one_of("patient", "slide_id")),
    "cell_min_counts": _COUNT,
    "patients": _COUNT,
    "patient_from": (f"one of {', '.join(PATIENT_FROM)}", is_one_of(*PATIENT_FROM)),
    "spots": _COUNT,
    "missing": _PERCENT,
    "missing_raw": _PERCENT,
    "incomplete_spots": _PERCENT,
    "sources": ("a list of at least one address", _SLIDES[1]),
    "counts": ("raw or normalised", is_one_of("raw", "normalised")),
    "image_bits": ("8 or 16", is_one_of(8, 16)),
    "note": ("text", is_text),
}
