from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spared_fm.encoders.weights import fill, load_state_dict, weights_digest
from spared_fm.errors import InputError


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}]
)
def test_torch_files_are_read_however_they_are_wrapped(tmp_path: Path, wrap):
    source, target = net(1), net(2)
    torch.save(wrap(source.state_dict()), tmp_path / "w.pth")
    assert not same(source, target)
    fill(target, tmp_path / "w.pth")
    assert same(source, target)


def test_safetensors_and_ignored_classifier(tmp_path: Path):
    source, target = net(1), net(2)
    save_file({**source.state_dict(), "head.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"head\.weight"):
        fill(target, tmp_path / "w.safetensors")
    fill(target, tmp_path / "w.safetensors", ignore=("head",))
    assert same(source, target)


def test_the_digest_names_the_weights_not_the_file(tmp_path: Path):
    state = net(1).state_dict()
    torch.save(state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    digests = {weights_digest(load_state_dict(tmp_path / name)) for name in ("w.pth", "w.safetensors")}
    assert digests == {weights_digest(dict(reversed(state.items())))}
    changed = {k: v.clone() for k, v in state.items()}
    changed["0.weight"][0, 0] += 1e-6
    assert weights_digest(changed) not in digests
    assert weights_digest({**state, "0.weight": state["0.weight"].T.contiguous()}) not in digests


def test_a_missing_key_and_a_wrong_shape_are_named(tmp_path: Path):
    state = net(1).state_dict()
    torch.save({k: v for k, v in state.items() if k != "0.bias"}, tmp_path / "missing.pth")
    with pytest.raises(InputError, match=r"missing\.pth.*0\.bias is missing"):
        fill(net(), tmp_path / "missing.pth")
    torch.save({**state, "0.weight": torch.ones(5, 3)}, tmp_path / "shape.pth")
    with pytest.raises(InputError, match=r"shape\.pth.*0\.weight is \(5, 3\), expected \(4, 3\)"):
        fill(net(), tmp_path / "shape.pth")


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("bomb-went-off"),))


def test_a_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth", "plain.pkl"):
        with pytest.raises(InputError, match=f"{name}: (refused|not a readable)"):
            load_state_dict(tmp_path / name)
    assert not (tmp_path / "bomb-went-off").exists()


def test_the_digest_ignores_the_memory_format_and_takes_every_dtype():
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    assert weights_digest({"w": weight}) == weights_digest({"w": weight.to(memory_format=torch.channels_last)})
    dtypes = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
    assert len({weights_digest({"w": weight.to(dtype)}) for dtype in dtypes}) == len(dtypes)
    assert weights_digest({"w": torch.tensor(3)}) != weights_digest({"w": torch.tensor([3])})


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_damaged_files(tmp_path: Path, name: str):
    state = net(1).state_dict()
    if name.endswith("pth"):
        torch.save(state, tmp_path / name)
    else:
        save_file(state, tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for data in (b"", b"not weights", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            load_state_dict(tmp_path / name)


def test_a_file_of_something_else(tmp_path: Path):
    torch.save({"epoch": 3}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no state dict"):
        load_state_dict(tmp_path / "w.pth")
    with pytest.raises(InputError, match="no such weights file"):
        load_state_dict(tmp_path / "absent.pth")


def test_heads_of_self_distillation_are_left_out(tmp_path: Path):
    source, target = net(1), net(2)
    state = {f"backbone.{key}": value for key, value in source.state_dict().items()}
    torch.save(
        {"teacher": {**state, "dino_head.last": torch.ones(2), "ibot_head.0": torch.ones(1)}}, tmp_path / "t.pth"
    )
    fill(target, tmp_path / "t.pth")
    assert same(source, target)


def test_a_norms_counter_may_be_missing(tmp_path: Path):
    source, target = net(1), net(2)
    torch.save({k: v for k, v in source.state_dict().items() if "num_batches" not in k}, tmp_path / "old.pth")
    fill(target, tmp_path / "old.pth")
    assert same(source, target)


def test_other_names_are_converted_where_the_files_do_not_fit(tmp_path: Path):
    source, target = net(1), net(2)
    torch.save({f"old_{key}": value for key, value in source.state_dict().items()}, tmp_path / "w.pth")

    def convert(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key.removeprefix("old_"): value for key, value in state.items()}

    with pytest.raises(InputError, match=r"0\.weight, .* \(of \d\) is missing; old_0\.bias.* has no place"):
        fill(target, tmp_path / "w.pth")
    fill(target, tmp_path / "w.pth", convert=convert)
    assert same(source, target)
    torch.save({"old_0.weight": torch.ones(1)}, tmp_path / "few.pth")
    with pytest.raises(InputError, match=r"few\.pth: weights do not fit"):
        fill(target, tmp_path / "few.pth", convert=convert)
    with pytest.raises(InputError, match=r"few\.pth: weights do not fit"):
        fill(
            target, tmp_path / "few.pth", convert=lambda state: state["absent"]
        )  # it broke on weights of something else
    assert same(source, target)  # nothing is loaded by halves


def test_a_single_key_can_be_left_out(tmp_path: Path):
    torch.save({**net(1).state_dict(), "scale": torch.ones(1), "scaled": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="scaled has no place"):
        fill(net(), tmp_path / "w.pth", ignore=("scale",))
