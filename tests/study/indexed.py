"""Indexes of the shared study, small enough for tests."""

from __future__ import annotations

import json
from typing import Any

from spared_fm.search import plan as plans
from spared_fm.study.api import Study
from spared_fm.study.index_open import INDEXES, read_card
from tests.study.conftest import ENCODER

SLIDES = ["synthetic_p1_s1", "synthetic_p1_s2", "synthetic_p2_s3"]
LISTS = 4


def small(rows: int, dim: int, *, memory: int | None = None, target_recall: float = 0.95) -> plans.Plan:
    """A plan with lists for a handful of rows, segments of at most 50."""
    return plans.Plan("ivf-sq", rows, dim, f"IVF{LISTS},SQfp16", LISTS, 120, 1, 1, 50, 1, 0)


def card_of(study: Study) -> dict[str, Any]:
    card = read_card(study.layout, ENCODER)
    assert card is not None
    return card


def rewrite(study: Study, **changes: Any) -> None:
    path = study.layout.files.path(f"{INDEXES}/{ENCODER}/card.json")
    path.write_text(json.dumps(card_of(study) | changes))
