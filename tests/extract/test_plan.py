from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from spared_fm.encoders.builder import Encoder, build
from spared_fm.encoders.spec import resolve
from spared_fm.errors import InputError
from spared_fm.extract.plan import array_key, make_plan, make_recipe
from spared_fm.slides.patches import PatchSpec
from spared_fm.study.api import Study

SLIDE = "synthetic_p1_s1"


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build(resolve("stain-bank"))


def test_the_default_recipe_has_the_plain_key_and_others_a_hash(encoder: Encoder):
    assert array_key(make_recipe(encoder, PatchSpec()), encoder.spec) == "stain-bank"
    keys = set()
    for patch, dtype in ((PatchSpec(um=224.0), "float16"), (PatchSpec(px=256), "float16"), (PatchSpec(), "float32")):
        recipe = make_recipe(encoder, patch, dtype)
        keys.add(key := array_key(recipe, encoder.spec))
        assert key == f"stain-bank@{recipe.id[:8]}"
    assert len(keys) == 3
    seeded = dataclasses.replace(encoder, spec=dataclasses.replace(encoder.spec, seed=1))
    assert "@" in array_key(make_recipe(encoder, PatchSpec()), seeded.spec)


def test_a_plan_lists_every_unfinished_chunk_once(make_study: Callable[..., Study], encoder: Encoder):
    study = make_study()
    plan = make_plan(study.layout, [SLIDE], [encoder], PatchSpec(), chunk_rows=10)
    n = study.slide(SLIDE).n_obs
    assert [task.chunk for task in plan.tasks] == list(range(-(-n // 10)))
    assert plan.patches == n
    assert plan.done == 0
    # another batch size or thread count is the same array: they are fixed when it is made
    again = make_plan(study.layout, [SLIDE], [encoder], PatchSpec(), chunk_rows=7, batch_size=3, threads=1)
    assert [task.chunk for task in again.tasks] == [task.chunk for task in plan.tasks]


def test_a_key_taken_by_another_recipe_is_refused_naming_a_free_one(make_study: Callable[..., Study], encoder: Encoder):
    study = make_study()
    make_plan(study.layout, [SLIDE], [encoder], PatchSpec(), keys=["mine"])
    with pytest.raises(InputError, match=r"another recipe \(patch_um, mpp\).*--key mine@[0-9a-f]{8}"):
        make_plan(study.layout, [SLIDE], [encoder], PatchSpec(um=200.0), keys=["mine"])


def test_coarse_images_are_warned_of(make_study: Callable[..., Study], encoder: Encoder):
    study = make_study()
    assert make_plan(study.layout, [SLIDE], [encoder], PatchSpec()).warnings == []
    plan = make_plan(study.layout, [SLIDE], [encoder], PatchSpec(um=50.0))
    assert len(plan.warnings) == 1
    assert "upsampled" in plan.warnings[0]


def test_an_image_that_is_gone_or_another_one(tmp_path: Path, synthetic_slides: Path, encoder: Encoder):
    import spared_fm

    source = shutil.copytree(synthetic_slides / SLIDE, tmp_path / SLIDE)
    study = spared_fm.open(tmp_path / "store", create=True)
    study.ingest(source)
    shutil.copy(synthetic_slides / "synthetic_p2_s3" / "image.jpg", source / "image.jpg")
    with pytest.raises(InputError, match="no longer the image"):
        make_plan(study.layout, [SLIDE], [encoder], PatchSpec())
    (source / "image.jpg").unlink()
    with pytest.raises(InputError, match="can't be read"):
        make_plan(study.layout, [SLIDE], [encoder], PatchSpec())
    assert study.layout.embeddings(SLIDE) == []


@pytest.mark.parametrize("setting", ["chunk_rows", "batch_size", "threads"])
def test_settings_below_one(make_study: Callable[..., Study], encoder: Encoder, setting: str):
    with pytest.raises(InputError, match="at least 1"):
        make_plan(make_study().layout, [SLIDE], [encoder], PatchSpec(), **{setting: 0})
