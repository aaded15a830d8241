"""Networks straight from the authors' files: recognised, read with the settings beside them, computed as theirs are."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import foreign
from tests.model import authors
from torch import Tensor

from headwork.errors import UserError
from headwork.model.adapter import Adapted
from headwork.model.artifacts import artifact, artifacts
from headwork.model.layouts import converter
from headwork.model.layouts.max_of_two import contents
from headwork.model.layouts.recognise import settings_beside
from headwork.model.sources import load, load_transformer, locate

DOUBLE = torch.float64


def write(folder: Path, name: str, state: Any, settings: dict[str, Any] | None = None, beside: str = "cfg.json") -> str:
    """A checkpoint file, with settings beside it if there are any; its path as a SPEC."""
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / name)
    if settings is not None:
        (folder / beside).write_text(json.dumps(settings))
    return str(folder / name)


def draws(vocab: int, length: int, batch: int = 5) -> Tensor:
    return torch.randint(0, vocab, (batch, length), generator=torch.Generator().manual_seed(0))


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


# --- Zhong -----------------------------------------------------------------------------------------------------------

PIZZAS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clock": ({}, {"modulus": 7}),
    "pizza": ({"attn_coeff": 0}, {"modulus": 7}),
    "between": ({"attn_coeff": 0.3, "act_fn": "GeLU"}, {"modulus": 7}),
    "two-layers": ({"attn_coeff": 0.3, "n_layers": 2}, {"modulus": 7}),
    "own-vocabularies": ({"diff_vocab": True}, {"modulus": 7, "second": 7}),
    "equals": ({"eqn_sign": 1}, {"modulus": 7, "equals": 7}),
    "both": ({"eqn_sign": True, "diff_vocab": 1}, {"modulus": 7, "second": 7, "equals": 14}),
    "other-modulus": ({"C": 5, "funcs": "lambda x: (x[0]+x[1])%5"}, {"modulus": 5}),
}


@pytest.mark.parametrize("name", PIZZAS)
def test_clock_and_pizza_networks_compute_the_same(tmp_path: Path, name: str) -> None:
    other, data = PIZZAS[name]
    config = authors.pizza_config(7, **other)
    vocab = config["C"] * (2 if config["diff_vocab"] else 1) + bool(config["eqn_sign"])
    ctx = 3 if config["eqn_sign"] else 2
    state = authors.pizza_state(vocab, ctx, config["n_layers"])
    spec = write(tmp_path, "model_abc.pt", state, config, "config_abc.json")
    model = load_transformer(spec, dtype=DOUBLE)
    tokens = draws(vocab, ctx)
    assert_same(model(tokens), authors.pizza_logits(state, config, tokens))
    assert model.card is not None
    assert model.card.data == {"generator": "modular-addition", **data}
    assert model.card.training["lr"] == 0.001
    assert model.card.inferred == ()


def test_a_network_of_another_function_has_no_task_on_its_card(tmp_path: Path) -> None:
    config = authors.pizza_config(7, funcs="lambda x: (x[0]*x[1])%7")
    spec = write(tmp_path, "model_abc.pt", authors.pizza_state(7, 2), config, "config_abc.json")
    assert load(spec).card.data is None


def test_settings_of_another_network_beside_it_are_not_taken(tmp_path: Path) -> None:
    spec = write(tmp_path, "model_abc.pt", authors.pizza_state(7, 2), authors.pizza_config(7), "config_abd.json")
    assert settings_beside(Path(spec)) is None
    with pytest.raises(UserError, match=r"lacks C, attn_coeff, .*: keep the authors' config_ID\.json beside model_ID"):
        load(spec)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"C": 8}, r"says d_vocab = 8, but its tensors have 7"),
        ({"n_heads": 4}, r"says num_heads = 4, but its tensors have 2"),
        ({"C": "seven"}, r"C = 'seven'; it must be a whole number"),
        ({"attn_coeff": 1.5}, r"attention_mix = 1\.5; it must be a number from 0 to 1"),
        ({"act_fn": "Tanh"}, r"Unknown act_type .* 'Tanh'"),
        ({"use_linear": True}, r"use_linear = true, a network without attention"),
        ({"eqn_sign": 1}, r"says d_vocab = 8, but its tensors have 7"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, other: dict[str, Any], says: str) -> None:
    config = authors.pizza_config(7, **other)
    with pytest.raises(UserError, match=says):
        load(write(tmp_path, "model_abc.pt", authors.pizza_state(7, 2), config, "config_abc.json"))


# --- Chughtai --------------------------------------------------------------------------------------------------------

GROUPS = [("CyclicGroup", 7, 7), ("DihedralGroup", 4, 8), ("SymmetricGroup", 3, 6), ("AlternatingGroup", 4, 12)]


@pytest.mark.parametrize(("group", "parameter", "order"), GROUPS)
def test_group_mlps_compute_the_same(tmp_path: Path, group: str, parameter: int, order: int) -> None:
    state = authors.pair_state(order)
    settings = {"group": group, "group_parameter": parameter, "seed": 3, "layers": {"embed_dim": 6}}
    model = load(write(tmp_path, "model.pt", state, settings), dtype=DOUBLE)
    pairs = draws(order, 2, 20)
    assert isinstance(model, Adapted)
    assert_same(model(pairs), authors.pair_logits(state, pairs))
    assert list(model.sites) == ["x_embed", "y_embed", "cat", "hidden_pre", "hidden", "logits"]
    assert model.card is not None
    name = group.removesuffix("Group").lower()
    assert model.card.data == {"generator": "group-composition", "group": name, "parameter": parameter}
    assert model.card.training["seed"] == 3
    for weight in ("W_x", "W_y", "W", "W_U"):
        assert torch.equal(getattr(model.module, weight), state[weight])


@pytest.mark.parametrize(("group", "parameter", "order"), GROUPS)
def test_group_transformers_compute_the_same(tmp_path: Path, group: str, parameter: int, order: int) -> None:
    state = foreign.lens_state(layers=1, vocab=order + 1, out=order, ctx=3, mlp=12)
    copies = {"x_embed": state["embed.W_E"] + 1, "y_embed": state["embed.W_E"] - 1}
    spec = write(tmp_path, "model.pt", state | copies, {"group": group, "group_parameter": parameter})
    model = load_transformer(spec, dtype=DOUBLE)
    tokens = draws(order + 1, 3)
    assert_same(model(tokens), foreign.lens_logits(state, tokens))
    assert model.card is not None
    assert model.card.inferred == ()
    assert model.card.data is not None
    assert model.card.data["equals"] == order


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (None, r"does not say which group .*: keep the authors' cfg\.json, with group and group_parameter, beside"),
        ({"group": "CyclicGroup"}, r"does not say which group"),
        ({"group": ["CyclicGroup"], "group_parameter": 7}, r"Unknown group .* \"\['CyclicGroup'\]\""),
        ({"group": "QuaternionGroup", "group_parameter": 8}, r"Unknown group .* 'QuaternionGroup'"),
        (
            {"group": "CyclicGroup", "group_parameter": 8},
            r"cyclic group with parameter 8, of 8 elements, but .* 7 inputs",
        ),
        ({"group": "CyclicGroup", "group_parameter": "7"}, r"group_parameter = '7'; it must be a whole number from 1"),
        ({"group": "SymmetricGroup", "group_parameter": 10**9}, r"group_parameter = 1000000000; it must be"),
    ],
)
def test_a_group_that_is_not_the_networks_is_refused(tmp_path: Path, settings: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(write(tmp_path, "model.pt", authors.pair_state(7), settings))


# --- Gross -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["npz", "coq"])
@pytest.mark.parametrize(("norm", "layers", "eps"), [(False, 1, 1e-5), (True, 1, 0.25), (True, 2, 1e-5)])
def test_maximum_networks_compute_the_same(tmp_path: Path, form: str, norm: bool, layers: int, eps: float) -> None:
    state = authors.max_state(norm=norm, layers=layers)
    if form == "npz":
        path, eps = authors.write_npz(tmp_path / "Max.npz", state), 1e-5
    else:
        path = authors.write_coq(tmp_path / "Parameters.v", state, eps)
    model = load_transformer(str(path), dtype=DOUBLE)
    tokens = draws(9, 3)
    assert_same(model(tokens), authors.max_logits(state, tokens, eps))
    assert model.card is not None
    assert model.card.data == {"generator": "max-of-k", "vocab": 9, "k": 3}
    unsaid = norm and form == "npz"
    assert [line.split(" = ")[0] for line in model.card.inferred] == (["norm_eps"] if unsaid else [])


def test_both_forms_of_a_maximum_network_have_the_same_contents(tmp_path: Path) -> None:
    state = authors.max_state()
    npz, coq = authors.write_npz(tmp_path / "a.npz", state), authors.write_coq(tmp_path / "a.v", state)
    assert contents(npz) == contents(coq)
    changed = state | {"b_U": state["b_U"] + 1}
    assert contents(authors.write_npz(tmp_path / "b.npz", changed)) != contents(npz)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Definition W_E := [[0x1p-1; 0x1p", r"defines no tensor"),
        ("Definition W_E := [[0x1p-1; 0x1p-2].", r"W_E is no list of numbers \(unbalanced brackets\)"),
        ("Definition W_E := [[0x1p-1; half]].", r"W_E is no list of numbers"),
        ("Definition W_E := [[0x1p-1; 0x1p-2]; [0x1p-1]].", r"W_E is no list of numbers"),
        ("Definition W_E := [[0x1p-1]; 0x1p-1].", r"W_E is no list of numbers"),
        ("Definition W_E := [0x1p-1; [0x1p-1]].", r"W_E is no list of numbers"),
        ("Definition W_E := [[0x1p99999]].", r"W_E is no list of numbers"),
        ("Theorem nothing : True.", r"defines no tensor; .*Definition W_E"),
        ("Definition W_E := [[0x1p-1]].", r"holds W_E, which is none of the authors' layouts"),
    ],
)
def test_damaged_coq_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "Parameters.v").write_text(text)
    with pytest.raises(UserError, match=says):
        load(str(tmp_path / "Parameters.v"))


# --- minGPT, Casper --------------------------------------------------------------------------------------------------


def test_sorters_of_letters_compute_the_same(tmp_path: Path) -> None:
    state = {k: v for k, v in foreign.gpt2_state().items() if not k.endswith("attn.bias") or v.dim() == 1}
    state["lm_head.weight"] = foreign.draw({"lm_head.weight": (11, 8)}, 3)["lm_head.weight"]
    path = authors.letters_file(tmp_path / "sorter.json", state)
    model = load_transformer(str(path), dtype=DOUBLE)
    tokens = draws(11, model.config.n_ctx)
    assert_same(model(tokens), foreign.gpt2_logits(state, tokens, eps=1e-5))
    assert model.card is not None
    assert model.card.data == {"generator": "sorting", "vocab": 11, "length": (model.config.n_ctx + 1) // 2}


@pytest.mark.parametrize("shape", [{}, {"side": 5, "a": 2, "b": 3}, {"colours": 2, "labels": 5}])
def test_cnns_compute_the_same(tmp_path: Path, shape: dict[str, int]) -> None:
    state = authors.cnn_state(**shape)
    model = load(write(tmp_path, "mnist_model.pt", state), dtype=DOUBLE)
    images = torch.rand(3, *model.example[0].shape[1:], dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    assert_same(model(images), authors.cnn_logits(state, images))
    assert model.traced


def test_the_images_of_a_cnn_have_the_size_that_its_weights_imply(tmp_path: Path) -> None:
    model = load(write(tmp_path, "mnist_model.pt", authors.cnn_state(side=5)))
    assert model.example[0].shape == (1, 1, 28, 28)


# --- What is not one of them, or damaged -----------------------------------------------------------------------------

FILES: dict[str, Callable[[Path], Path]] = {
    "pizza": lambda folder: Path(
        write(folder, "model_x.pt", authors.pizza_state(7, 2), authors.pizza_config(7), "config_x.json")
    ),
    "mlp": lambda folder: Path(
        write(folder, "model.pt", authors.pair_state(7), {"group": "CyclicGroup", "group_parameter": 7})
    ),
    "npz": lambda folder: authors.write_npz(folder / "Max.npz", authors.max_state()),
    "cnn": lambda folder: Path(write(folder, "cnn.pt", authors.cnn_state())),
    "nanda": lambda folder: Path(write(folder, "wd.pth", {"model": foreign.nanda_state()})),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_files_are_refused_in_a_sentence(tmp_path: Path, name: str, share: float) -> None:
    path = FILES[name](tmp_path)
    load(str(path))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"is truncated or corrupt|is not a checkpoint of plain tensors") as error:
        load(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("state", "tensor"),
    [
        (authors.pizza_state(7, 2), "blocks.0.attn.W_O"),
        (authors.pair_state(7), "W"),
        (authors.cnn_state(), "fc1.bias"),
    ],
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, state: foreign.State, tensor: str, value: float
) -> None:
    broken = {name: value_.clone() for name, value_ in state.items()}
    broken[tensor].view(-1)[3] = value
    settings = authors.pizza_config(7, group="CyclicGroup", group_parameter=7)
    with pytest.raises(UserError, match=rf"{tensor} has (NaN|infinite) entries"):
        load(write(tmp_path, "model.pt", broken, settings))


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"weight": torch.ones(2)}, r"holds weight, which is none of the authors' layouts; .*models import"),
        ({}, r"holds nothing, which is none"),
        ({**authors.pair_state(7), "extra": torch.ones(1)}, r"leaves no place for: extra"),
        ({**authors.pair_state(7), "W": torch.ones(3, 5)}, r"W has shape \[3, 5\], but \[12, 5\] is expected"),
        (
            {**authors.cnn_state(), "fc1.weight": torch.ones(6, 15)},
            r"tensors that do not fit each other: conv1\.weight",
        ),
        ({k: v for k, v in authors.cnn_state().items() if k != "fc1.bias"}, r"lacks the tensor fc1\.bias"),
    ],
)
def test_what_is_none_of_the_layouts_is_refused(tmp_path: Path, state: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        load(write(tmp_path, "model.pt", state, {"group": "CyclicGroup", "group_parameter": 7}))


def test_pickled_code_in_an_array_never_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"truncated or corrupt, or not a \.npz file of plain arrays"):
        load(str(authors.hostile_npz(tmp_path / "Max.npz")))
    assert "code ran" not in capsys.readouterr().out


def test_an_array_that_unpacks_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwork.model.layouts.max_of_two._LARGEST", 1000)
    with pytest.raises(UserError, match=r"unpacks to \d+ bytes; networks of this layout have at most 1000"):
        load(str(authors.write_npz(tmp_path / "Max.npz", authors.max_state())))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", r"holds a JSON list"),
        ("{", r"is not JSON"),
        ('{"a": 1}', r"is not an llm-viz network: a is no tensor with a shape and data"),
        ('{"a": {"shape": [2], "dtype": "torch.float32", "data": "AAAA"}}', r"a does not have the data"),
        ('{"a": {"shape": [2], "dtype": "torch.float32", "data": "*"}}', r"a does not have the data"),
        ('{"a": {"shape": [-1], "dtype": "torch.float32", "data": ""}}', r"a is no tensor"),
        ('{"a": {"shape": [1], "dtype": "torch.int8", "data": "AA=="}}', r"a is of type 'torch\.int8'"),
        ('{"transformer.wte.weight": {"shape": [0], "dtype": "torch.float32", "data": ""}}', r"none of the authors'"),
    ],
)
def test_json_files_that_are_no_network_are_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "sorter.json").write_text(content)
    with pytest.raises(UserError, match=says):
        load(str(tmp_path / "sorter.json"))


def test_networks_that_are_no_transformers_are_not_imported_nor_given_where_one_is_needed(tmp_path: Path) -> None:
    spec = str(FILES["cnn"](tmp_path))
    with pytest.raises(
        UserError, match=r"is no transformer, which this needs, but a DigitCNN with the sites conv1, relu"
    ):
        load_transformer(spec)
    with pytest.raises(UserError, match=r"layout casper-cnn is of networks that are no transformers"):
        converter("casper-cnn")


def test_a_file_is_located_by_its_hash_and_settings_without_torch(tmp_path: Path) -> None:
    spec = str(FILES["mlp"](tmp_path))
    before = locate(spec).identity()
    (tmp_path / "cfg.json").write_text(json.dumps({"group": "CyclicGroup", "group_parameter": 7, "seed": 9}))
    assert locate(spec).identity() != before
    assert locate(spec).kind == "file"


# --- The authors' files under names that say nothing -----------------------------------------------------------------


@pytest.mark.artifacts
@pytest.mark.parametrize("name", [name for name, entry in artifacts().items() if entry.data is None])
def test_the_authors_files_load_without_being_known_by_name(artifacts: Path, tmp_path: Path, name: str) -> None:
    wanted = artifact(name)
    original = artifacts / wanted.file
    path = tmp_path / f"model_x{original.suffix}"
    shutil.copy(original, path)
    for beside in wanted.beside:
        if beside.endswith(".json") and beside.startswith(("cfg", "config")):
            target = "config_x.json" if beside.startswith("config") else beside
            shutil.copy(original.with_name(beside), tmp_path / target)
    found, known = load(str(path)), load(f"artifact:{name}")
    inputs = torch.zeros(2, 2, dtype=torch.long) if not isinstance(known, Adapted) else known.example[0]
    assert torch.equal(found(inputs), known(inputs))
    if name != "nanda-mod113-no-wd":  # whose file does not say what it was trained on
        assert found.card is not None
        assert known.card is not None
        assert found.card.data == known.card.data


@pytest.mark.artifacts
@pytest.mark.parametrize("name", ["max-of-two", "max-of-two-layernorm", "max-of-two-undertrained"])
def test_the_tensors_of_the_maximum_networks_have_the_recorded_hash(artifacts: Path, name: str) -> None:
    assert contents(artifacts / artifact(name).file) == artifact(name).contents
