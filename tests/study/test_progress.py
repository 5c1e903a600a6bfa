from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from spared_fm.study import progress


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], io.StringIO]:
    """Give a screen, or a log file, in the place of standard error."""

    def make(terminal: bool) -> io.StringIO:
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=120)
        monkeypatch.setattr(progress, "Console", lambda **_: console)
        return out

    return make


def test_a_bar_has_its_rate_and_steps_have_their_figures(screen, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    out = screen(True)
    with progress.bar("encode", 4, "patches") as advance:
        advance(1)
        advance(2)
    assert "encode" in out.getvalue()
    assert "3/4" in out.getvalue()
    assert "patches/s" in out.getvalue()
    out = screen(True)
    with progress.steps("fitting ridge") as step:
        step(3, 50, {"loss": 0.123456, "rate": 1.0})
    assert "3/50" in out.getvalue()
    assert "loss 0.1235  rate 1" in out.getvalue()


@pytest.mark.parametrize(
    ("terminal", "patience", "show"), [(False, -1.0, True), (True, 60.0, True), (True, -1.0, False)]
)
def test_nothing_is_drawn_in_a_log_or_at_once_or_where_it_is_hidden(
    screen, monkeypatch: pytest.MonkeyPatch, terminal: bool, patience: float, show: bool
):
    monkeypatch.setattr(progress, "PATIENCE", patience)
    out = screen(terminal)
    assert list(progress.track([1, 2], "encode", 2, "slides", show=show)) == [1, 2]
    with progress.steps("fitting", show=show) as step:
        step(1, 2, {})
    assert out.getvalue() == ""
