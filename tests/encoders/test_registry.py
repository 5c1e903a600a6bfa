"""The registry's rows and what its reader refuses. Nothing here builds a model."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spared_fm.encoders import registry
from spared_fm.encoders.registry import BUILT_IN_FILE, Row, row, rows
from spared_fm.errors import InputError

ROWS = rows()

MINE = {
    "title": "Mine",
    "loader": "timm",
    "hub": "me/mine",
    "revision": "main",
    "architecture": "vit_tiny_patch16_224",
    "build": {"num_classes": 0},
    "pooling": "cls",
    "prefix_tokens": 1,
    "dim": 192,
    "token_dim": 192,
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "resize": 224,
    "crop": 224,
    "interpolation": "bicubic",
    "antialias": True,
    "px": 224,
    "mpp": [0.5],
    "compute_dtype": "float32",
    "licence": "MIT",
    "gated": False,
    "parameters": 0,
    "parameters_source": "not counted",
    "reference": "nobody 2024",
}


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def write(path: Path, name: str = "mine", without: str = "", **changes: Any) -> Path:
    fields = {key: value for key, value in {**MINE, **changes}.items() if key != without}
    lines = (f"{key} = {toml(value)}" for key, value in fields.items())
    path.write_text(f'[encoder."{name}"]\n' + "\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        rows(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


# ---- the rows of the package


@pytest.mark.parametrize(
    "wanted",
    [
        "stain-bank",
        "colour-stats",
        "uni",
        "uni2-h",
        "virchow",
        "virchow2",
        "prov-gigapath",
        "h-optimus-0",
        "h-optimus-1",
        "h0-mini",
        "phikon",
        "phikon-v2",
        "conch",
        "conch-v1.5",
        "ctranspath",
        "ctranspath-chief",
        "kaiko-s16",
        "kaiko-s8",
        "kaiko-b16",
        "kaiko-b8",
        "kaiko-l14",
        "hibou-b",
        "hibou-l",
        "lunit-s8",
        "lunit-s16",
        "gpfm",
        "midnight-12k",
        "musk",
        "openmidnight",
        "dinov2-s14",
        "dinov2-b14",
        "dinov2-l14",
        "dinov2-g14",
        "dinov3-s16",
        "dinov3-b16",
        "dinov3-l16",
        "clip-b16",
        "clip-l14",
        "resnet50-layer3-tv",
        "resnet50-a1",
        "densenet121",
        "shufflenetv2-x0.5",
        "vit-b16-imagenet",
    ],
)
def test_the_encoders_people_use_are_there(wanted: str):
    assert row(wanted).name == wanted


def test_no_row_has_the_name_that_means_two_things():
    assert "resnet50" not in ROWS
    with pytest.raises(InputError, match=r"unknown encoder 'resnet50'; did you mean .*resnet50-a1"):
        row("resnet50")


def facts_of_a_vector(row: Row) -> tuple[Any, ...]:
    """All that distinguishes one encoder's vectors from another's."""
    build = sorted((key, str(value)) for key, value in {**row.build, **row.head}.items())
    weights = row.hub or row.name
    return (weights, row.file, row.architecture, row.pooling, row.dim, *row.mean, *row.std, tuple(build))


def test_no_two_names_give_the_same_vector():
    seen: dict[tuple[Any, ...], str] = {}
    for name, found in ROWS.items():
        assert seen.setdefault(facts_of_a_vector(found), name) == name


@pytest.mark.parametrize("found", ROWS.values(), ids=lambda found: found.name)
def test_a_row_is_whole(found: Row):
    """What the reader does not ask of a user's own row."""
    assert found.hub == "" or found.revision
    assert found.note or found.unverified
    # No row scales its own patch, except by its published recipe.
    assert found.resize in (0, found.px) or found.name in ("conch-v1.5", "ctranspath-chief")
    assert found.crop == (found.resize or found.crop) or found.name == "prov-gigapath"
    if found.loader in ("timm", "transformers"):
        assert found.parameters > 0
        assert found.hub or "--weights" in found.note
    assert ("transformers" in found.requires) == (found.loader == "transformers")


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [  # the choices where tools disagree, as the notes defend them
        ("virchow2", "dim", 2560),
        ("virchow2-cls", "dim", 1280),
        ("virchow2", "prefix_tokens", 5),
        ("uni2-h", "prefix_tokens", 9),
        ("hibou-l", "prefix_tokens", 5),
        ("midnight-12k", "dim", 3072),
        ("midnight-12k", "mean", (0.5, 0.5, 0.5)),
        ("musk", "mean", (0.5, 0.5, 0.5)),
        ("h0-mini", "dim", 768),
        ("h-optimus-0", "mean", (0.707223, 0.578729, 0.703617)),
        ("prov-gigapath", "resize", 256),
        ("prov-gigapath", "crop", 224),
        ("conch", "mean", (0.48145466, 0.4578275, 0.40821073)),
        ("conch-v1.5", "mean", (0.485, 0.456, 0.406)),
        ("resnet50-layer3-tv", "dim", 1024),
        ("resnet50-a1", "dim", 2048),
    ],
)
def test_a_disputed_choice(name: str, field: str, value: Any):
    assert getattr(row(name), field) == value


def test_rows_are_frozen_hashable_and_not_shared():
    assert len({hash(found) for found in ROWS.values()}) == len(ROWS)
    rows().clear()
    assert rows() == ROWS


def test_every_field_is_checked():
    assert list(registry._CHECKS) == [field for field in Row.__annotations__ if field != "name"]


def test_a_name_is_checked_without_torch():
    code = "import sys; from spared_fm.encoders.registry import row; row('uni'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- a user's own file


def test_a_user_adds_an_encoder(tmp_path: Path):
    path = write(tmp_path / "my.toml")
    found = row("mine", path)
    assert (found.dim, found.build, found.mpp, found.head, found.requires) == (192, {"num_classes": 0}, (0.5,), {}, ())
    assert list(rows(path)) == [*ROWS, "mine"]
    assert "mine" not in rows()


def test_a_user_may_not_redefine_an_encoder(tmp_path: Path):
    assert "encoder 'uni' is in the package already" in refusal(write(tmp_path / "my.toml", "uni"))


def test_a_file_may_not_define_one_twice(tmp_path: Path):
    path = write(tmp_path / "my.toml")
    path.write_text(path.read_text() * 2)
    assert "not TOML" in refusal(path)


def test_unknown_names_get_close_ones(tmp_path: Path):
    with pytest.raises(InputError, match=r"unknown encoder 'UNI'; did you mean uni"):
        row("UNI")
    with pytest.raises(InputError, match=r"unknown encoder 'min'; did you mean .*mine"):
        row("min", write(tmp_path / "my.toml"))
    with pytest.raises(InputError, match=r"unknown encoder ''; `spared-fm encoders` lists them"):
        row("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder = [", "not TOML"),
        ("", r"expected [encoder.<name>] tables"),
        ("encoder = 3", r"expected [encoder.<name>] tables"),
        ("[encoders.mine]\ndim = 3", r"expected [encoder.<name>] tables"),
        ("[encoder]\nmine = 3", "encoder 'mine': expected a table of fields"),
    ],
)
def test_a_file_of_another_form(tmp_path: Path, text: str, message: str):
    path = tmp_path / "my.toml"
    path.write_text(text)
    assert message in refusal(path)


def test_files_that_cannot_be_read(tmp_path: Path):
    assert "can't be read" in refusal(tmp_path / "absent.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    assert "not TOML" in refusal(tmp_path / "bytes.toml")


@pytest.mark.parametrize("name", ["Mine", "my encoder", "timm:mine", "", "my_encoder"])
def test_a_bad_name(tmp_path: Path, name: str):
    assert "rename it" in refusal(write(tmp_path / "my.toml", name))


def test_an_unknown_field(tmp_path: Path):
    assert "unknown field 'licens'; did you mean 'licence'?" in refusal(write(tmp_path / "my.toml", licens="MIT"))
    assert "the fields are title, loader" in refusal(write(tmp_path / "my.toml", zzz=1))


@pytest.mark.parametrize("field", MINE)
def test_a_missing_field(tmp_path: Path, field: str):
    assert f"field '{field}' is missing; give" in refusal(write(tmp_path / "my.toml", without=field))


@pytest.mark.parametrize("field", [field for field in Row.__annotations__ if field != "name"])
def test_a_field_of_another_type(tmp_path: Path, field: str):
    """A float with a fraction is right nowhere by itself, and a list of lists neither."""
    for wrong in (0.25, [[]]):
        assert f"{field} is {wrong!r}; expected" in refusal(write(tmp_path / "my.toml", **{field: wrong}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loader", "magic"),
        ("pooling", "max"),
        ("interpolation", "nearest"),
        ("compute_dtype", "float64"),
        ("hub", "mine"),
        ("title", " "),
        ("dim", 0),
        ("dim", True),
        ("prefix_tokens", -1),
        ("std", [0.5, 0.0, 0.5]),
        ("std", [0.5, -0.1, 0.5]),
        ("std", [0.5, 0.5]),
        ("mean", [0.5, 0.5, 0.5, 0.5]),
        ("mean", [0.5, 0.5, True]),
        ("mpp", []),
        ("mpp", [0.5, 0.0]),
        ("antialias", False),
        ("gated", 1),
        ("requires", "transformers"),
    ],
)
def test_a_value_out_of_range(tmp_path: Path, field: str, value: Any):
    assert f"{field} is {value!r}; expected" in refusal(write(tmp_path / "my.toml", **{field: value}))


def test_numbers_must_be_finite(tmp_path: Path):
    path = write(tmp_path / "my.toml")
    path.write_text(path.read_text().replace("mean = [0.5,", "mean = [nan,"))
    assert "mean is [nan, 0.5, 0.5]; expected" in refusal(path)


@given(
    pooling=st.sampled_from(registry.POOLINGS),
    token_dim=st.integers(0, 2000),
    dim=st.integers(1, 4000),
    prefix=st.integers(0, 9),
)
def test_dim_agrees_with_the_pooling(
    tmp_path_factory: pytest.TempPathFactory, pooling: str, token_dim: int, dim: int, prefix: int
):
    path = tmp_path_factory.getbasetemp() / "pooling.toml"
    write(path, pooling=pooling, token_dim=token_dim, dim=dim, prefix_tokens=prefix)
    fits = {
        "cls": dim == token_dim and prefix > 0,
        "mean": dim == token_dim,
        "cls+mean": dim == 2 * token_dim and prefix > 0,
        "model": True,
    }[pooling]
    if fits:
        assert row("mine", path).dim == dim
    else:
        assert "pooling" in refusal(path)


@given(pooling=st.sampled_from(["cls", "mean", "cls+mean"]), token_dim=st.integers(1, 2000))
def test_a_dim_that_agrees_is_taken(tmp_path_factory: pytest.TempPathFactory, pooling: str, token_dim: int):
    path = tmp_path_factory.getbasetemp() / "agrees.toml"
    dim = token_dim * (1 + (pooling == "cls+mean"))
    assert row("mine", write(path, pooling=pooling, token_dim=token_dim, dim=dim)).dim == dim


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 256}, "crop is 256; the patch is resized to 224"),
        ({"resize": 0, "crop": 256}, "crop is 256; the patch is 224 pixels wide"),
        ({"architecture": ""}, "architecture is ''; loader 'builtin' has stain-bank, colour-stats"),
        ({"loader": "builtin"}, "architecture is 'vit_tiny_patch16_224'; loader 'builtin' has"),
        (
            {"loader": "package", "architecture": "musk"},
            "architecture is 'musk'; loader 'package' needs module:factory",
        ),
        ({"head": {"dim": 3}}, "head is {'dim': 3}; it needs a kind"),
    ],
)
def test_fields_that_contradict_each_other(tmp_path: Path, changes: dict[str, Any], message: str):
    assert message in refusal(write(tmp_path / "my.toml", **changes))


def test_the_file_says_in_order_what_the_row_holds():
    tables = tomllib.loads(BUILT_IN_FILE.read_text(encoding="utf-8"))["encoder"]
    assert list(tables) == list(ROWS)
    for table in tables.values():
        assert list(table) == list(registry._CHECKS)
