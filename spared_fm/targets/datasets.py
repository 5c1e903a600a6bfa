"""The 26 data sets of SpaRED by name, as data: slides, splits, settings and the known answers of ``datasets.toml``."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

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
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not TOML ({error}); mend it, or see {FILE.name} for the form") from error
    tables, parameters = data.pop("dataset", {}), data.pop("parameters", {})
    if data or not tables:
        raise InputError(f"{path}: expected [parameters] and [dataset.<name>] tables and nothing else")
    return {name: _parse(path, name, tables[name]) for name in sorted(tables)}, parameters


@functools.cache
def _read() -> tuple[dict[str, Dataset], dict[str, Any]]:
    return read_datasets(FILE)


def _parse(path: Path, name: str, table: dict[str, Any]) -> Dataset:
    where = f"{path}: data set {name!r}"
    unknown = sorted(table.keys() - _CHECKS.keys())
    if unknown:
        raise InputError(f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(_CHECKS)}")
    table = {**_DEFAULTS, **table}
    for field, (words, holds) in _CHECKS.items():
        if field not in table:
            raise InputError(f"{where}: field {field!r} is missing; give {words}")
        if not holds(table[field]):
            raise InputError(f"{where}: {field} is {table[field]!r}; expected {words}")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    found = Dataset(name=name, **values)
    repeated = [slide for slide in found.slides if found.slides.count(slide) > 1]
    if repeated:
        raise InputError(f"{where}: slide {repeated[0]} is listed twice; keep it in one split")
    if found.patients != (count := len(set(found.patient.values()))):
        raise InputError(
            f"{where}: patients is {found.patients}, but patient_from {found.patient_from!r} tells {count} apart"
        )
    return found


def _is_whole(least: int, most: int | None = None) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and value >= least and (most is None or value <= most)


def _is_one_of(*choices: object) -> Callable[[Any], bool]:
    return lambda value: value in choices


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_said(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_said, value))


_DEFAULTS: dict[str, Any] = {
    field.name: field.default for field in dataclasses.fields(Dataset) if field.default is not dataclasses.MISSING
}

_SAID = ("some text", _is_said)
_SLIDES = ("a list of at least one slide", lambda value: _is_texts(value) and value != [])
_COUNT, _PERCENT = ("a whole number, 1 or more", _is_whole(1)), ("a whole percentage", _is_whole(0, 100))

_CHECKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "abbreviation": _SAID,
    "organism": ("human or mouse", _is_one_of(*ORGANISMS)),
    "tissue": _SAID,
    "train": _SLIDES,
    "val": _SLIDES,
    "test": ("a list of slides, [] where there is no test split", _is_texts),
    "genes": _COUNT,
    "combat_key": ("patient or slide_id", _is_one_of("patient", "slide_id")),
    "cell_min_counts": _COUNT,
    "patients": _COUNT,
    "patient_from": (f"one of {', '.join(PATIENT_FROM)}", _is_one_of(*PATIENT_FROM)),
    "spots": _COUNT,
    "missing": _PERCENT,
    "missing_raw": _PERCENT,
    "incomplete_spots": _PERCENT,
    "sources": ("a list of at least one address", _SLIDES[1]),
    "counts": ("raw or normalised", _is_one_of("raw", "normalised")),
    "image_bits": ("8 or 16", _is_one_of(8, 16)),
    "note": ("text", _is_text),
}
