"""Checked TOML tables: every wrong field gets one line that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from spared_fm.errors import InputError
from spared_fm.tables import check_fields, is_list, is_number, is_one_of, is_positive, is_said, is_whole, read_toml

CHECKS = {
    "name": ("some text", is_said),
    "size": ("a whole number, 1 to 9", is_whole(1, 9)),
    "scales": ("a list of numbers above 0", is_list(is_positive, empty=False)),
    "kind": ("a or b", is_one_of("a", "b")),
}
GOOD = {"name": "x", "size": 3, "scales": [1, 0.5], "kind": "a"}


def test_fields_come_back_with_defaults_and_lists_as_tuples():
    assert check_fields("f", {**GOOD}, CHECKS) == {**GOOD, "scales": (1, 0.5)}
    without = {key: value for key, value in GOOD.items() if key != "kind"}
    assert check_fields("f", without, CHECKS, {"kind": "b"})["kind"] == "b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": " "}, "f: name is ' '; expected some text"),
        ({"size": True}, "f: size is True; expected a whole number, 1 to 9"),
        ({"size": 10}, "f: size is 10"),
        ({"scales": []}, r"f: scales is \[\]"),
        ({"scales": [1, float("inf")]}, "f: scales is"),
        ({"kind": "c"}, "f: kind is 'c'; expected a or b"),
        ({"sise": 1}, "f: unknown field 'sise'; did you mean 'size'"),
        ({"zzz": 1}, "f: unknown field 'zzz'; the fields are name, size, scales, kind"),
    ],
)
def test_a_wrong_field_is_named(change: dict, message: str):
    with pytest.raises(InputError, match=message):
        check_fields("f", {**GOOD, **change}, CHECKS)


def test_a_missing_field_and_what_is_no_table():
    with pytest.raises(InputError, match="f: field 'name' is missing; give some text"):
        check_fields("f", {}, CHECKS)
    with pytest.raises(InputError, match="f: expected a table of fields"):
        check_fields("f", 3, CHECKS)


def test_numbers():
    assert is_number(0.5)
    assert is_number(-1)
    assert not is_number(True)
    assert not is_number(float("nan"))
    assert not is_number("1")


def test_files(tmp_path: Path):
    path = tmp_path / "a.toml"
    with pytest.raises(InputError, match=r"a\.toml: can't be read \(No such file"):
        read_toml(path, "the manual")
    path.write_bytes(b"a = \xff")
    with pytest.raises(InputError, match=r"a\.toml: not TOML .* see the manual"):
        read_toml(path, "the manual")
    path.write_text("a = 1")
    assert read_toml(path, "the manual") == {"a": 1}
