from __future__ import annotations

from typing import Any

import pytest

from spared_fm.study.head_inputs import Block, UnfitError, make_fitting

VECTOR, OTHER = Block("a", 12, 0, 1), Block("b", 5, 0, 1)
GRID, VIEWS = Block("tokens/a", 18, 3, 1), Block("d", 16, 0, 8)


@pytest.mark.parametrize(
    ("head", "given", "blocks", "filled"),
    [
        ("ridge", {}, [VECTOR], {}),
        ("ridge", {}, [VECTOR, OTHER], {}),
        ("multi-encoder", {}, [VECTOR], {"blocks": None}),
        ("multi-encoder", {}, [VECTOR, OTHER], {"blocks": [12, 5]}),
        ("multi-encoder", {"blocks": [10, 7]}, [VECTOR, OTHER], {"blocks": [10, 7]}),
        ("pixnet", {}, [GRID], {"grid": 3}),
        ("pixnet", {"grid": 3}, [GRID], {"grid": 3}),
        ("pixnet", {"grid": 1}, [VECTOR], {"grid": 1}),
        ("egn", {}, [GRID], {"tokens": 9}),
        ("egn", {}, [VECTOR], {"tokens": 1}),
        ("triplex", {}, [GRID], {"grid": 3, "blocks": None}),
        ("triplex", {}, [GRID, OTHER], {"grid": 3, "blocks": [18, 5]}),
        ("triplex", {}, [VECTOR, OTHER], {"grid": 1, "blocks": [12, 5]}),
        ("spared-linear", {}, [VIEWS], {"views": 8}),
        ("spared-linear", {"views": 1}, [VIEWS], {"views": 1}),
        ("hist2st", {}, [VIEWS, VECTOR], {"views": 1}),
    ],
)
def test_the_form_of_the_features_is_filled_in(
    head: str, given: dict[str, Any], blocks: list[Block], filled: dict[str, Any]
):
    params = make_fitting(head, given, blocks).get_params()
    assert {key: params[key] for key in filled} == filled


@pytest.mark.parametrize(
    ("head", "given", "blocks", "message"),
    [
        ("ridge", {}, [GRID], "ridge reads one vector per spot, tokens/a is a grid of 3 × 3 tokens"),
        ("gene-mean", {}, [VECTOR, GRID], "one vector per spot"),
        ("pixnet", {}, [VECTOR], "pixnet reads token grids: encode with --tokens"),
        ("egn", {"tokens": 9}, [VECTOR], "egn reads token grids"),
        ("pixnet", {"grid": 4}, [GRID], "pixnet is to read 16 tokens, tokens/a has 3 × 3"),
        ("pixnet", {}, [GRID, VECTOR], "pixnet reads one token grid, alone"),
        ("triplex", {}, [VECTOR, GRID], "triplex reads one token grid, as its first encoder"),
        ("hist2st", {"views": 8}, [VECTOR], "needs an encoder of that many views"),
    ],
)
def test_a_head_that_cannot_take_the_features_says_what_it_takes(
    head: str, given: dict[str, Any], blocks: list[Block], message: str
):
    with pytest.raises(UnfitError, match=message):
        make_fitting(head, given, blocks)
