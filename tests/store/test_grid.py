from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from spared_fm.store.grid import INNER_ROWS, cut


@given(st.integers(1, 10_000), st.integers(1, 20_000))
def test_pieces_divide_chunks_and_chunks_are_no_larger_than_needed(n: int, chunk_rows: int):
    chunk, inner = cut(n, chunk_rows)
    assert chunk % inner == 0
    assert chunk <= chunk_rows
    assert chunk - inner < n
    if chunk_rows % INNER_ROWS == 0 and n >= INNER_ROWS:
        assert inner == INNER_ROWS


def test_the_usual_cuts():
    assert cut(100_000, 8192) == (8192, 256)
    assert cut(700, 1024) == (768, 256)
    assert cut(10, 1024) == (10, 10)
    assert cut(5000, 1021) == (1021, 1021)  # a prime has no pieces
