"""Anonymise: neutral names for slides and patients, and a page that holds no other."""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import html
import io
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from spared_fm.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from spared_fm.benchmark.matrix_answers import Finding
    from spared_fm.benchmark.matrix_page import Section
    from spared_fm.study.matrix_truth import Place

TELLING = 4
"""Names shorter than this are looked for where a page names slides and patients, not in all of its text: C3 is a gene, too."""
LEFT_OUT = "the reason is left out, since it may name files"
DATE = re.compile(
    r"(?<!\d)(?:(?:19|20)\d\d[-_./]?(?:0[1-9]|1[0-2])[-_./]?(?:0[1-9]|[12]\d|3[01])"
    r"|(?:0?[1-9]|[12]\d|3[01])[-_./](?:0?[1-9]|1[0-2])[-_./](?:19|20)\d\d)(?!\d)"
)
_MARKUP = re.compile(r"(<style>.*?</style>|<[^>]*>)", re.DOTALL)
_WORDS = re.compile(r"[^A-Za-z0-9]+")
_READ_OUT = re.compile(r'\b(aria-label|alt|title)="([^"]*)"')
_PICTURE = re.compile(r"data:image/[a-z]+;base64,([A-Za-z0-9+/=]+)")
_OF_FORMAT = {"jfif", "jfif_version", "jfif_unit", "jfif_density", "transparency"}
_FILE = re.compile(
    r"[\w.-]+\.(?:tiff?|svs|ndpi|mrxs|scn|bif|vsi|czi|jpe?g|png|webp|dcm|h5ad|h5|csv|tsv|json|toml|npy|npz|zarr)\b"
    r"|file://|/(?:home|users|data|mnt|media|srv|work|scratch|tmp|var)/",
    re.IGNORECASE,
)


class Names(NamedTuple):
    """What stands for each name: slides, patients, and the names a user chose (cohorts, the benchmark)."""

    slides: Mapping[str, str]
    patients: Mapping[str, str]
    chosen: Mapping[str, str]


def names(slides: Iterable[str], patients: Iterable[str | None], chosen: Iterable[str] = ()) -> Names:
    """Give slides and patients neutral names: the same ones whenever the same slides and patients are given.

    They are numbered by their digests, so that the numbers don't tell the order of the ids, which may be that of admission.

    Parameters
    ----------
    slides, patients
        Ids; the order and None don't matter.
    chosen
        Names that a user chose, of cohorts and the benchmark. One that holds an id, a word of a patient's, a date or
        a file becomes ``study 1``, others stay.

    Returns
    -------
    Names
        ``slide 1`` …, ``patient A`` … ``patient Z``, ``patient AA`` …, and the chosen names.
    """
    ids = sorted(set(slides), key=_digest)
    people = sorted({patient for patient in patients if patient is not None}, key=_digest)
    known = {*ids, *people, *(word for one in people for word in _WORDS.split(one) if len(word) >= TELLING)}
    telling = sorted({name for name in chosen if _tells(name, known)}, key=_digest)
    return Names(
        {name: f"slide {i}" for i, name in enumerate(ids, 1)},
        {name: f"patient {_letters(i)}" for i, name in enumerate(people)},
        {name: f"study {telling.index(name) + 1}" if name in telling else name for name in chosen},
    )


def names_of(places: Mapping[str, Place], benchmark: str) -> Names:
    """Give neutral names to all that the cohorts of a benchmark name."""
    records = [place.record for place in places.values()]
    return names(
        [slide for record in records for slide in record["split"]],
        [patient for record in records for patient in record["patients"].values()],
        [*places, benchmark],
    )


def neutral_place(place: Place, given: Names) -> Place:
    """Give a cohort neutral names where the page's notice and facts take them from; its spots stay."""
    found = copy.copy(place)
    letters = {old: new.removeprefix("patient ") for old, new in given.patients.items()}
    patients = {slide: None if one is None else letters[one] for slide, one in place.record["patients"].items()}
    panel = place.record["panel"]
    found.cohort = given.chosen[place.cohort]
    found.record = {
        **place.record,
        "patients": patients,
        "panel": panel if re.fullmatch("[a-z]+", str(panel)) else "a list",
    }
    return found


def neutral(page: Mapping[str, Any], given: Names) -> dict[str, Any]:
    """Replace names in what :func:`spared_fm.benchmark.matrix_page.write_matrix_page` takes.

    Parameters
    ----------
    page
        title, notice, facts, findings, sections, gates, missing. Reasons, which may name anything, are left out.
    given
        From :func:`names_of`.
    """

    def renamed(row: Mapping[str, Any]) -> dict[str, Any]:
        reasons = {key: LEFT_OUT for key in ("why", "reason", "error") if row.get(key)}
        return {**row, "cohort": given.chosen[row["cohort"]], **reasons}

    def finding(one: Finding) -> Finding:
        mean, *heads = (answer._replace(cohort=given.chosen[answer.cohort]) for answer in (one.mean, *one.heads))
        return one._replace(mean=mean, heads=heads)

    return {
        **page,
        "findings": [finding(one) for one in page["findings"]],
        "sections": [_section(section, given) for section in page["sections"]],
        "gates": [renamed(row) for row in page["gates"]],
        "missing": [renamed(row) for row in page["missing"]],
    }


def _section(section: Section, given: Names) -> Section:
    def unit(name: str) -> str:
        slide, slash, part = name.partition("/")
        return f"{given.slides[slide]}{slash}{part}"

    maps = [
        dataclasses.replace(one, overlay=dataclasses.replace(one.overlay, slide=given.slides[one.overlay.slide]))
        for one in section.maps
    ]
    return dataclasses.replace(
        section,
        cohort=given.chosen[section.cohort],
        results=[result._replace(cohort=given.chosen[result.cohort]) for result in section.results],
        by_slide=[{**row, "slide": unit(row["slide"])} for row in section.by_slide],
        maps=maps,
        unmapped=[f"A slide has no maps: {LEFT_OUT}."] if section.unmapped else [],
    )


def hidden(page: str, given: Names) -> str:
    """Replace what is left of the names in a page's text, and refuse one that still tells.

    Parameters
    ----------
    page
        HTML. Embedded images are not searched, but must carry no metadata.
    given
        From :func:`names`.

    Returns
    -------
    str
        The page with neutral names.

    Raises
    ------
    InputError
        A file, a path, or an image with metadata is left in the page.
    """
    instead: dict[str, str] = {}
    for kind in (given.chosen, given.patients, given.slides):
        instead |= {form: new for old, new in kind.items() if old != new for form in {old, html.escape(old)}}
    long = sorted(filter(_telling, instead), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, long)) or r"(?!)")

    def clean(text: str) -> str:
        text = pattern.sub(lambda found: instead[found[0]], text)
        if found := _FILE.search(text):
            raise InputError(f"the anonymised page would name {found[0]!r}; rename what holds it, or leave it out")
        return text

    for uri in _PICTURE.findall(page):
        _check_picture(uri)
    parts = _MARKUP.split(page)
    parts[::2] = map(clean, parts[::2])
    parts[1::2] = [_READ_OUT.sub(lambda found: f'{found[1]}="{clean(found[2])}"', tag) for tag in parts[1::2]]
    return "".join(parts)


def _tells(name: str, known: Iterable[str]) -> bool:
    """Whether a chosen name holds an id (a short one: as a word of it), a date or a file's name."""
    words = {name, *_WORDS.split(name)}
    held = any(one in words or (_telling(one) and one in name) for one in known)
    return held or bool(DATE.search(name) or _FILE.search(name))


def _telling(name: str) -> bool:
    """Whether a name found in a page can hardly be anything else."""
    return len(name) >= TELLING and not (name.isdigit() and len(name) < TELLING + 2)


def _check_picture(encoded: str) -> None:
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
        kept = sorted({*map(str, picture.info)} - _OF_FORMAT) + ["EXIF"] * bool(len(picture.getexif()))
    if kept:
        raise InputError(f"an image of the anonymised page carries {kept[0]}; draw it from pixels alone")


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def _letters(number: int) -> str:
    """Count in letters: A, B … Z, AA, AB and on."""
    found = ""
    number += 1
    while number:
        number, rest = divmod(number - 1, 26)
        found = chr(65 + rest) + found
    return found
