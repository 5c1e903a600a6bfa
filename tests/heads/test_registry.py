from __future__ import annotations

import numpy as np
import pytest

from spared_fm.errors import InputError
from spared_fm.heads.base import Head, StreamingHead
from spared_fm.heads.registry import HEADS, make


@pytest.mark.parametrize("name", sorted(HEADS))
def test_every_head_keeps_the_protocol(name):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(40, 5)), rng.normal(size=(40, 3))
    groups = np.repeat(["a", "b"], 20)
    head = make(name)
    assert isinstance(head, Head)
    assert isinstance(head, StreamingHead)
    assert head.name == name
    assert head.fit(X, y, groups=groups) is head
    found = head.predict(X, groups=groups)
    assert found.shape == (40, 3)
    assert found.dtype == np.float32
    again = type(head).from_state(head.get_params(), head.state())
    np.testing.assert_array_equal(again.predict(X, groups=groups), found)
    assert make(name, **head.get_params()).get_params() == head.get_params()
    with pytest.raises(InputError, match="not fitted"):
        make(name).state()


def test_unknown_head_and_parameter():
    with pytest.raises(InputError, match="gene-mean, ridge"):
        make("rigde")
    with pytest.raises(InputError, match="depth"):
        make("ridge", depth=3)
