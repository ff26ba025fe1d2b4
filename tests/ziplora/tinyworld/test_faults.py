"""Every bad repository has its fault, and nothing else wrong."""

import hashlib
import json
import pickletools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, load_file
from torch import Tensor

from ziplora.tinyworld.faults import CANARY, write_faults
from ziplora.tinyworld.repository import AdapterFacts, TrainedLayer, split_file, write_repository

FACTS = AdapterFacts(
    name="robot",
    role="subject",
    trigger_prompt="a sks robot",
    licence="apache-2.0",
    base_model="ziplora/tinyworld-base",
    pictures=5,
    dialect="kohya",
)
CODES = {
    "dora": "UNSUPPORTED_ADAPTER",
    "lokr": "UNSUPPORTED_ADAPTER",
    "nan": "NON_FINITE",
    "truncated": "FILE_TRUNCATED",
    "wrong-base": "BASE_MISMATCH",
    "pickle": "PICKLE_REFUSED",
    "unknown-keys": "UNUSED_KEYS",
    "zero-delta": "ZERO_DELTA",
    "no-licence": "LICENCE_UNKNOWN",
    "no-derivatives": "LICENCE_NO_DERIVATIVES",
    "lfs-pointer": "NOT_SAFETENSORS",
    "duplicate-key": "DUPLICATE_KEY",
}
GOOD = "pytorch_lora_weights.safetensors"


def good_layers() -> dict[str, TrainedLayer]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"mid_block.attentions.0.transformer_blocks.0.{name}": TrainedLayer(
            torch.randn(4, inputs, generator=generator), torch.randn(128, 4, generator=generator), alpha=2.0
        )
        for name, inputs in (("attn1.to_q", 128), ("attn1.to_v", 128), ("attn2.to_k", 160), ("attn2.to_out.0", 128))
    }


@pytest.fixture(scope="module")
def drawer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawer")
    assert write_faults(folder, FACTS, good_layers()) == CODES
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The sound file that most bad ones were made from."""
    folder = tmp_path_factory.mktemp("good")
    facts = AdapterFacts(**{**vars(FACTS), "dialect": "diffusers"})
    return (write_repository(folder, facts, good_layers(), {}, []) / GOOD).read_bytes()


def card_of(repository: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((repository / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    return parsed


def all_finite(tensors: dict[str, Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors.values())


def test_there_is_one_small_repository_for_each_fault(drawer: Path) -> None:
    assert {path.name for path in drawer.iterdir()} == {f"{name}-lora" for name in CODES}
    assert sum(path.stat().st_size for path in drawer.rglob("*.*")) < 300_000


def test_every_card_claims_the_same_base_model(drawer: Path) -> None:
    assert {card_of(drawer / f"{name}-lora")["base_model"] for name in CODES} == {"ziplora/tinyworld-base"}


def test_only_the_licence_faults_have_another_licence(drawer: Path) -> None:
    licences = {name: card_of(drawer / f"{name}-lora").get("license") for name in CODES}
    assert licences.pop("no-licence") is None
    assert licences.pop("no-derivatives") == "cc-by-nd-4.0"
    assert set(licences.values()) == {"apache-2.0"}


@pytest.mark.parametrize("name", ["no-licence", "no-derivatives"])
def test_a_licence_fault_is_in_the_card_alone(name: str, drawer: Path, good: bytes) -> None:
    assert (drawer / f"{name}-lora" / GOOD).read_bytes() == good


def test_dora_has_a_magnitude_for_every_row_of_every_layer(drawer: Path) -> None:
    tensors = load_file(drawer / "dora-lora" / "dora.safetensors")
    ups = {key.split(".")[0]: tensor for key, tensor in tensors.items() if key.endswith(".lora_up.weight")}
    assert len(ups) == len(good_layers())
    assert all(tensors[f"{module}.dora_scale"].shape == (len(up), 1) for module, up in ups.items())


def test_lokr_factors_multiply_to_the_layers_shapes(drawer: Path) -> None:
    path = drawer / "lokr-lora" / "lokr.safetensors"
    tensors = load_file(path)
    assert {key.split(".")[1] for key in tensors} == {"lokr_w1", "lokr_w2", "alpha"}
    for name, layer in good_layers().items():
        module = f"lora_unet_{name.replace('.', '_')}"
        change = torch.kron(tensors[f"{module}.lokr_w1"], tensors[f"{module}.lokr_w2"])
        assert change.shape == (layer.up.shape[0], layer.down.shape[1])
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata()["ss_network_module"] == "lycoris.kohya"


def test_nan_is_one_number_in_one_tensor(drawer: Path) -> None:
    tensors = load_file(drawer / "nan-lora" / GOOD)
    assert sum(int(tensor.isnan().sum()) for tensor in tensors.values()) == 1


def test_zero_delta_changes_no_weight_although_down_is_trained(drawer: Path) -> None:
    tensors = load_file(drawer / "zero-delta-lora" / GOOD)
    assert all(bool(tensor.any()) == (".lora.down." in key) for key, tensor in tensors.items())


def test_unknown_keys_are_one_key_too_many(drawer: Path, good: bytes) -> None:
    header, _ = split_file((drawer / "unknown-keys-lora" / GOOD).read_bytes())
    strange = header.keys() - split_file(good)[0].keys()
    assert strange == {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.gate.weight"}


def test_the_wrong_base_is_stable_diffusion_1(drawer: Path) -> None:
    tensors = load_file(drawer / "wrong-base-lora" / GOOD)
    assert {tensor.shape[1] for key, tensor in tensors.items() if ".attn2.to_k.lora.down." in key} == {768}
    assert all_finite(tensors)


def test_safetensors_refuses_the_truncated_file(drawer: Path, good: bytes) -> None:
    path = drawer / "truncated-lora" / GOOD
    assert good.startswith(path.read_bytes())
    with pytest.raises(SafetensorError):
        load_file(path)


def test_the_lfs_pointer_names_the_good_file(drawer: Path, good: bytes) -> None:
    path = drawer / "lfs-pointer-lora" / GOOD
    version, oid, size = path.read_text(encoding="utf-8").splitlines()
    assert version == "version https://git-lfs.github.com/spec/v1"
    assert (oid, size) == (f"oid sha256:{hashlib.sha256(good).hexdigest()}", f"size {len(good)}")
    with pytest.raises(SafetensorError):
        load_file(path)


def test_the_duplicate_key_shows_two_readers_two_tensors(drawer: Path, good: bytes) -> None:
    path = drawer / "duplicate-key-lora" / GOOD
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    pairs: list[tuple[str, Any]] = json.loads(content[8:end], object_pairs_hook=list)
    names = [name for name, _ in pairs]
    (twice,) = {name for name in names if names.count(name) == 2}
    first, last = (dict(value)["data_offsets"] for name, value in pairs if name == twice)
    assert first == split_file(good)[0][twice]["data_offsets"] != last
    loaded, sound = load_file(path), load(good)
    assert loaded.keys() == sound.keys()
    assert not loaded[twice].equal(sound[twice])


def test_the_pickle_would_leave_a_canary_and_nobody_opened_it(drawer: Path) -> None:
    path = drawer / "pickle-lora" / GOOD
    steps = [(code.name, argument) for code, argument, _ in pickletools.genops(path.read_bytes())]
    assert steps == [
        ("PROTO", 2),
        ("GLOBAL", "builtins open"),
        ("MARK", None),
        ("UNICODE", CANARY),
        ("UNICODE", "w"),
        ("TUPLE", None),
        ("REDUCE", None),
        ("STOP", None),
    ]
    with pytest.raises(SafetensorError):
        load_file(path)
    assert not Path(CANARY).exists()


@pytest.mark.parametrize("name", ["dora", "lokr", "zero-delta", "unknown-keys", "wrong-base", "duplicate-key"])
def test_other_faults_hold_only_finite_numbers(name: str, drawer: Path) -> None:
    (weights,) = (drawer / f"{name}-lora").glob("*.safetensors")
    assert all_finite(load_file(weights))
