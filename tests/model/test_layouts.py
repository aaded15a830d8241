"""Other people's checkpoints: each converter against a slow forward pass written for the foreign layout, in float64."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests import foreign
from torch import Tensor

from headwork.errors import UserError
from headwork.model.card import ModelCard
from headwork.model.checkpoints import assemble, check_weights, load
from headwork.model.importing import import_checkpoint
from headwork.model.layouts import LAYOUTS, MODULES, converter
from headwork.model.layouts.converted import Converted
from headwork.store.source import source_closure

TOKENS = torch.randint(0, 11, (3, 6), generator=torch.Generator().manual_seed(0))


def convert(layout: str, state: dict[str, Any], config: dict[str, Any] | None = None) -> Converted:
    return converter(layout)(state, config or {})


def logits(found: Converted, tokens: Tensor = TOKENS) -> Tensor:
    check_weights(found.state, found.architecture, "converted")
    with torch.no_grad():
        return assemble(found.architecture, found.state, ModelCard(name="x"), torch.float64)(tokens)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 * float(expected.abs().max()))


# --- TransformerLens -------------------------------------------------------------------------------------------------

# What the file has; what its configuration says; what the oracle is told.
LENS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "attention-only": ({}, {}, {}),
    "three-layers-other-outputs": ({"layers": 3, "out": 4}, {}, {}),
    "layer-norm": ({"norm": "LN"}, {}, {"norm": "LN"}),
    "eps": ({"norm": "LN"}, {"eps": 0.3}, {"norm": "LN", "eps": 0.3}),
    "mlp": ({"mlp": 12}, {}, {}),
    "mlp-layer-norm": ({"mlp": 12, "norm": "LN"}, {"act_fn": "gelu_new"}, {"norm": "LN", "act": "gelu_new"}),
    "exact-gelu": ({"mlp": 12}, {"act_fn": "gelu"}, {"act": "gelu"}),
    "folded-layer-norm": ({"mlp": 12}, {"normalization_type": "LNPre"}, {"norm": "LNPre"}),
    "folded-rms-norm": ({"mlp": 12}, {"normalization_type": "RMSPre"}, {"norm": "RMSPre"}),
    "no-norm-stated": ({}, {"normalization_type": None}, {}),
    "bidirectional": ({}, {"attention_dir": "bidirectional"}, {"causal": False}),
    "unscaled": ({}, {"use_attn_scale": False}, {"divisor": 1.0}),
    "other-scale": ({}, {"attn_scale": 3.0}, {"divisor": 3.0}),
    "shortformer": ({}, {"positional_embedding_type": "shortformer"}, {"shortformer": True}),
    "shortformer-layer-norm": (
        {"norm": "LN", "mlp": 12},
        {"positional_embedding_type": "shortformer"},
        {"norm": "LN", "shortformer": True},
    ),
    "parallel": ({"norm": "LN", "mlp": 12}, {"parallel_attn_mlp": True}, {"norm": "LN", "parallel": True}),
    "rotary": ({"table": False, "rotary": (4, 10000.0, False)}, {}, {"rotary": (4, 10000.0, False)}),
    "rotary-part-adjacent": (
        {"table": False, "d_head": 8, "rotary": (4, 500.0, True)},
        {},
        {"rotary": (4, 500.0, True)},
    ),
    "llama": (
        {"table": False, "heads": 4, "kv": 2, "mlp": 12, "gated": True, "norm": "RMS", "rotary": (4, 10000.0, False)},
        {"act_fn": "silu"},
        {"norm": "RMS", "act": "silu", "rotary": (4, 10000.0, False)},
    ),
    "solu": ({"mlp": 12, "norm": "LN"}, {"act_fn": "solu"}, {"act": "solu", "norm": "LN"}),
    "solu-ln": (
        {"mlp": 12, "norm": "LN", "neuron_norm": True},
        {"act_fn": "solu_ln", "eps": 0.1},
        {"act": "solu_ln", "norm": "LN", "eps": 0.1},
    ),
    "solu-ln-unstated": ({"mlp": 12, "norm": "LN", "neuron_norm": True}, {}, {"act": "solu_ln", "norm": "LN"}),
    "solu-ln-folded": (
        {"mlp": 12},
        {"act_fn": "solu_ln", "normalization_type": "LNPre"},
        {"act": "solu_ln", "norm": "LNPre"},
    ),
    "older-names": (
        {"norm": "LN"},
        {"normalization": "LN", "shortformer_pos": True},
        {"norm": "LN", "shortformer": True},
    ),
    "older-names-standard": ({}, {"normalization": None, "shortformer_pos": False}, {}),
    "local": (
        {"layers": 3},
        {"use_local_attn": True, "window_size": 2, "attn_types": ["global", "local", "global", "local"]},
        {"windows": (9, 2, 9)},
    ),
    "qwen3": (
        {"table": False, "norm": "RMS", "qk_norm": True, "rotary": (4, 10000.0, False)},
        {"final_rms": True, "use_qk_norm": True},
        {"norm": "RMS", "rotary": (4, 10000.0, False)},
    ),
    "no-positions": ({"table": False}, {}, {}),
    "our-names": (
        {"mlp": 12, "norm": "LN"},
        {"activation": "silu", "norm_eps": 0.1, "causal": False, "attention_scale": 0.25},
        {"act": "silu", "norm": "LN", "eps": 0.1, "causal": False, "divisor": 4.0},
    ),
}


@pytest.mark.parametrize("name", LENS)
def test_transformer_lens_networks_compute_the_same(name: str) -> None:
    has, config, told = LENS[name]
    state = foreign.lens_state(**has)
    assert_same(logits(convert("transformer-lens", state, config)), foreign.lens_logits(state, TOKENS, **told))


def test_a_full_transformer_lens_configuration_leaves_nothing_to_infer() -> None:
    config = {
        "n_layers": 2,
        "d_model": 8,
        "n_ctx": 7,
        "d_head": 4,
        "n_heads": 2,
        "d_mlp": 12,
        "d_vocab": 11,
        "d_vocab_out": 11,
        "act_fn": "relu",
        "eps": 1e-5,
        "normalization_type": "LN",
        "attention_dir": "causal",
        "positional_embedding_type": "standard",
        "parallel_attn_mlp": False,
        "use_attn_scale": True,
        "attn_scale": -1.0,
        "seed": 7,
    }
    found = convert("transformer-lens", foreign.lens_state(mlp=12, norm="LN"), config)
    assert found.inferred == ()
    assert found.training == {"seed": 7}


def test_what_the_file_does_not_say_is_listed_as_inferred() -> None:
    found = convert("transformer-lens", foreign.lens_state(mlp=12, norm="LN"))
    assert [re.split(" = |: ", line)[0] for line in found.inferred] == [
        "positions",
        "norm_eps",
        "activation",
        "parallel",
        "causal",
        "attention_scale",
    ]


@pytest.mark.parametrize("base", [10_000.0, 500_000.0, 100.0])
@pytest.mark.parametrize("adjacent", [True, False])
def test_rotary_settings_are_read_off_the_tables(base: float, adjacent: bool) -> None:
    state = foreign.lens_state(table=False, d_head=16, rotary=(12, base, adjacent), ctx=30)
    c = convert("transformer-lens", state).architecture
    assert (c.rotary_dim, c.rotary_base, c.rotary_style) == (12, base, "adjacent" if adjacent else "half")


def test_rotary_tables_of_another_form_are_refused() -> None:
    state = foreign.lens_state(table=False, d_head=16, rotary=(12, 10000.0, False))
    state["blocks.0.attn.rotary_sin"] = foreign.rotary_tables(7, 12, 10000.0, False)[0] ** 3
    with pytest.raises(UserError, match=r"rotary tables are not of the form"):
        convert("transformer-lens", state)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "config", "says"),
    [
        (lambda s: s.pop("blocks.1.attn.W_O"), {}, r"TransformerLens checkpoint lacks the tensor blocks\.1\.attn\.W_O"),
        (lambda s: s.update(x_embed=torch.zeros(2)), {}, r"leaves no place for: x_embed"),
        (lambda s: s.update({"blocks.0.ln1.w": torch.ones(8)}), {}, r"leaves no place for: blocks\.0\.ln1\.w"),
        (lambda s: s.update({"embed.W_E": torch.zeros(11)}), {}, r"embed\.W_E has shape \[11\], but 2 axes belong"),
        (
            lambda s: s.update({"blocks.1.attn.W_V": torch.zeros(2, 8, 3)}),
            {},
            r"blocks\.1\.attn\.W_V has shape \[2, 8, 3\], but \[2, 8, 4\] is expected",
        ),
        (lambda s: s["blocks.1.attn.W_V"].view(-1)[5:6].fill_(math.nan), {}, r"blocks\.1\.attn\.W_V has NaN entries"),
        (lambda s: s.update({"embed.W_E": s["embed.W_E"].long()}), {}, r"embed\.W_E is of type torch\.int64"),
        (lambda s: s.update(epoch=3), {}, r"has epoch, a int, where tensors belong"),
        (lambda s: s.clear(), {}, r"lacks the tensor embed\.W_E; it holds none"),
        (lambda s: None, {"d_model": 16}, r"says d_model = 16, but its tensors have 8"),
        (lambda s: None, {"act_fn": "selu"}, r"Unknown act_fn in the checkpoint's configuration: 'selu'"),
        (
            lambda s: s.update({"blocks.0.mlp.ln.w": torch.ones(12)}),
            {"act_fn": "relu"},
            r"no place for: blocks\.0\.mlp\.ln",
        ),
        (lambda s: None, {"normalization_type": "BN"}, r"Unknown normalization_type .* 'BN'"),
        (lambda s: None, {"attention_dir": "casual"}, r"Unknown attention_dir .* 'casual': .* causal"),
        (lambda s: None, {"positional_embedding_type": "alibi"}, r"Unknown positional_embedding_type .* 'alibi'"),
        (
            lambda s: None,
            {"use_local_attn": True, "attn_types": ["local"]},
            r"attn_types = \['local'\]; one of 'global'",
        ),
        (lambda s: None, {"final_rms": True}, r"final_rms = True, which is not supported"),
        (lambda s: None, {"num_experts": 8}, r"num_experts = 8, which is not supported"),
        (lambda s: None, {"eps": "small"}, r"norm_eps = 'small'; it must be a number"),
        (lambda s: None, {"attn_scale": "big"}, r"attn_scale = 'big'"),
        (lambda s: None, {"attn_scale": 0}, r"attn_scale = 0"),
        (lambda s: None, {"positions": "rotary"}, r"leaves no place for: pos_embed"),
        (
            lambda s: None,
            {"positions": "rotary", "rotary_base": "x"},
            r"rotary_base = 'x'; it must be a number above 0",
        ),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_is_not_this_layout_is_refused(change: Change, config: dict[str, Any], says: str) -> None:
    state: dict[str, Any] = foreign.lens_state(mlp=12)
    change(state)
    with pytest.raises(UserError, match=says):
        convert("transformer-lens", state, {"normalization_type": None, **config})


def test_positions_without_a_trace_in_the_file_have_to_be_stated() -> None:
    state = {k: v for k, v in foreign.lens_state(table=False).items() if not k.endswith((".mask", ".IGNORE"))}
    with pytest.raises(UserError, match="give a configuration with n_ctx"):
        convert("transformer-lens", state)
    assert convert("transformer-lens", state, {"n_ctx": 9}).architecture.n_ctx == 9


# --- Nanda -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mlp", "prefix"), [(12, "blocks"), (0, "attn_blocks")])
def test_nanda_networks_compute_the_same(mlp: int, prefix: str) -> None:
    state = foreign.nanda_state(mlp=mlp, prefix=prefix)
    expected = foreign.nanda_logits(state, TOKENS, prefix)
    assert_same(logits(convert("nanda", {"model": state})), expected)
    assert_same(logits(convert("nanda", state)), expected)


def test_nanda_networks_with_gelu_compute_the_same() -> None:
    state = foreign.nanda_state()
    checkpoint = {"model": state, "model_config": {"act_type": "GeLU"}}
    assert_same(logits(convert("nanda", checkpoint)), foreign.nanda_logits(state, TOKENS, act="gelu"))


def test_nanda_settings_tell_training_and_data() -> None:
    data = {"seq_len": 7, "subseq_len": 2, "num_repeats": 3, "vocab_size": 11, "batch_size": 4}
    checkpoint = {
        "model": foreign.nanda_state(mlp=0, prefix="attn_blocks"),
        "optimizer": {"state": {}},
        "train_losses": [3.0, 2.0],
        "test_loss": torch.tensor(2.5),
        "data_config": data,
        "optim_config": {"lr": 0.1},
        "model_config": {"num_layers": 2, "d_model": 8, "num_heads": 2, "n_ctx": 7, "act_type": "ReLU", "seed": 5},
    }
    found = convert("nanda", checkpoint)
    assert found.data == {
        "generator": "repeated-sequences",
        "vocab": 11,
        "length": 7,
        "segment": [2, 2],
        "copies": 3,
        "placement": "scattered",
    }
    assert {
        "lr": 0.1,
        "seed": 5,
        "steps": 2,
        "loss": 2.0,
        "test_loss": 2.5,
        "batch_size": 4,
    }.items() <= found.training.items()
    assert found.inferred == ()


def test_nanda_modular_addition_is_recognised() -> None:
    found = convert("nanda", {"model": foreign.nanda_state(), "config": {"p": 10, "fn_name": "add"}})
    assert found.data == {"generator": "modular-addition", "modulus": 10, "equals": 10}


def test_nanda_settings_that_contradict_the_tensors_are_refused() -> None:
    with pytest.raises(UserError, match=r"says num_layers = 3, but its tensors have 2"):
        convert("nanda", {"model": foreign.nanda_state(), "model_config": {"num_layers": 3}})
    with pytest.raises(UserError, match=r"'Tanh'"):
        convert("nanda", {"model": foreign.nanda_state(), "model_config": {"act_type": "Tanh"}})
    with pytest.raises(UserError, match=r"has a list under 'model'"):
        convert("nanda", {"model": [1]})
    with pytest.raises(UserError, match=r"lacks the tensor blocks\.0\.attn\.W_Q"):
        convert("nanda", {"embed.W_E": torch.zeros(8, 11)})


# --- GPT-2 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("act", ["gelu_new", "relu"])
def test_gpt2_networks_compute_the_same(prefix: str, act: str) -> None:
    state = foreign.gpt2_state(prefix=prefix)
    config = foreign.GPT2_CONFIG | {"activation_function": act}
    found = convert("gpt2", state, config)
    assert_same(logits(found), foreign.gpt2_logits(state, TOKENS, act=act))
    assert found.architecture.tied
    assert found.inferred == ()


def test_gpt2_networks_with_an_unembedding_of_their_own_compute_the_same() -> None:
    state = foreign.gpt2_state() | {"lm_head.weight": foreign.gpt2_state(seed=1)["wte.weight"]}
    found = convert("gpt2", state, foreign.GPT2_CONFIG | {"tie_word_embeddings": False})
    assert_same(logits(found), foreign.gpt2_logits(state, TOKENS))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"n_head": 3}, r"n_head = 3; it must be a divisor of n_embd = 8"),
        ({"n_head": None}, r"n_head = None"),
        ({"n_layer": 3}, r"says n_layer = 3, but its tensors have 2"),
        ({"activation_function": "tanh"}, r"Unknown activation_function .* 'tanh'"),
        ({"scale_attn_by_inverse_layer_idx": True}, r"which is not supported"),
    ],
)
def test_gpt2_settings_that_do_not_fit_are_refused(config: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        convert("gpt2", foreign.gpt2_state(), foreign.GPT2_CONFIG | config)


# --- Files -----------------------------------------------------------------------------------------------------------


def test_an_imported_checkpoint_is_a_model_folder(tmp_path: Path) -> None:
    state = foreign.lens_state(mlp=12, norm="LN")
    torch.save(state, tmp_path / "theirs.pt")
    (tmp_path / "config.json").write_text(json.dumps({"act_fn": "silu", "lr": 0.1}))
    data = {"generator": "mine"}
    folder = import_checkpoint(
        tmp_path / "theirs.pt", "transformer-lens", tmp_path / "ours", tmp_path / "config.json", data
    )
    model = load(folder, dtype=torch.float64)
    assert_same(model(TOKENS).detach(), foreign.lens_logits(state, TOKENS, act="silu", norm="LN"))
    assert model.card is not None
    assert model.card.name == "theirs"
    assert model.card.training == {"lr": 0.1}
    assert model.card.data == data
    assert any(line.startswith("norm_eps = 1e-05") for line in model.card.inferred)


def test_importing_again_changes_nothing(tmp_path: Path) -> None:
    torch.save({"model": foreign.nanda_state()}, tmp_path / "theirs.pth")
    folder = import_checkpoint(tmp_path / "theirs.pth", "nanda", tmp_path / "ours")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    import_checkpoint(tmp_path / "theirs.pth", "nanda", tmp_path / "ours")
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_the_hub_is_imported(tmp_path: Path, weights: str) -> None:
    write_hub_folder(tmp_path / "theirs", weights)
    folder = import_checkpoint(tmp_path / "theirs", "gpt2", tmp_path / "ours")
    expected = foreign.gpt2_logits(foreign.gpt2_state(), TOKENS)
    assert_same(load(folder, dtype=torch.float64)(TOKENS).detach(), expected)


def write_hub_folder(folder: Path, weights: str = "model.safetensors") -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(foreign.GPT2_CONFIG))
    if weights.endswith("safetensors"):
        save_file(foreign.gpt2_state(), folder / weights)
    else:
        torch.save(foreign.gpt2_state(), folder / weights)


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("how", ["torch", "bare", "model"])
def test_pickled_code_never_runs(tmp_path: Path, how: str) -> None:
    mark, path = tmp_path / "exploded", tmp_path / "theirs.pt"
    match how:
        case "torch":
            torch.save(foreign.lens_state() | {"embed.W_E": Bomb(mark)}, path)
        case "bare":
            path.write_bytes(pickle.dumps(Bomb(mark)))
        case "model":
            torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(
        UserError, match=r"holds pickled code, which Headwork never runs; save the network's state_dict"
    ):
        import_checkpoint(path, "transformer-lens", tmp_path / "ours")
    assert not mark.exists()
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (lambda whole: whole[:-200], r"theirs\.pt is truncated or corrupt"),
        (lambda whole: whole[: len(whole) // 2], r"theirs\.pt is truncated or corrupt"),
        (lambda whole: whole[:30], r"theirs\.pt is truncated or corrupt"),
        (lambda whole: b"", r"theirs\.pt is truncated or corrupt"),
        (lambda whole: b"hello, world", r"theirs\.pt is"),
        (lambda whole: b"\x80\x02]q\x00.", r"theirs\.pt is"),
    ],
)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, content: Callable[[bytes], bytes], says: str) -> None:
    path = tmp_path / "theirs.pt"
    torch.save(foreign.lens_state(), path)
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(UserError, match=says) as error:
        import_checkpoint(path, "transformer-lens", tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(UserError, match=r"holds a list; a mapping of names to tensors is expected"):
        import_checkpoint(tmp_path / "list.pt", "nanda", tmp_path / "ours")
    with pytest.raises(UserError, match=re.escape(f"There is no file {tmp_path / 'nowhere.pt'}.")):
        import_checkpoint(tmp_path / "nowhere.pt", "nanda", tmp_path / "ours")
    with pytest.raises(UserError, match=r"Unknown checkpoint layout 'nada': .* nanda"):
        import_checkpoint(tmp_path / "list.pt", "nada", tmp_path / "ours")
    with pytest.raises(UserError, match=r"has no weights: neither model\.safetensors nor .* nor pytorch_model"):
        import_checkpoint(tmp_path, "gpt2", tmp_path / "ours")
    torch.save({"model": foreign.nanda_state()}, tmp_path / "good.pt")
    with pytest.raises(UserError, match=r"There is no file .*settings\.json"):
        import_checkpoint(tmp_path / "good.pt", "nanda", tmp_path / "ours", tmp_path / "settings.json")
    assert not (tmp_path / "ours").exists()


def test_a_result_depends_on_the_source_of_every_layout() -> None:
    seen = source_closure("headwork.model.sources")
    found = {converter(layout).__module__ for layout in LAYOUTS} | {make().__module__ for make in MODULES.values()}
    assert found <= seen.keys()


# --- The authors' own networks ---------------------------------------------------------------------------------------


@pytest.mark.artifacts
@pytest.mark.parametrize("name", ["wd_10-1_mod_addition_loss_curve", "mod_addition_no_wd"])
def test_both_modular_addition_networks_answer_every_pair(artifacts: Path, tmp_path: Path, name: str) -> None:
    model = load(import_checkpoint(artifacts / "nanda-grokking" / f"{name}.pth", "nanda", tmp_path / "m"))
    a, b = torch.cartesian_prod(torch.arange(113), torch.arange(113)).T
    tokens = torch.stack([a, b, torch.full_like(a, 113)], 1)
    with torch.no_grad():
        answers = model(tokens)[:, -1].argmax(-1)
    assert torch.equal(answers, (a + b) % 113)


@pytest.mark.artifacts
@pytest.mark.parametrize("name", ["induction_head_infinite", "induction_head_finite"])
def test_induction_networks_equal_the_slow_forward_pass(artifacts: Path, name: str) -> None:
    path = artifacts / "nanda-grokking" / f"{name}.pth"
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    state = {key: tensor.double() for key, tensor in checkpoint["model"].items()}
    tokens = torch.randint(0, 128, (4, 85), generator=torch.Generator().manual_seed(0))
    found = convert("nanda", checkpoint)
    assert_same(logits(found, tokens), foreign.nanda_logits(state, tokens, "attn_blocks"))
    assert found.data == {
        "generator": "repeated-sequences",
        "vocab": 128,
        "length": 85,
        "segment": [16, 16],
        "copies": 3,
        "placement": "scattered",
    }


@pytest.mark.artifacts
def test_a_bracket_classifier_reads_brackets(artifacts: Path) -> None:
    """TransformerLens's layout, attention in both directions: start 0, pad 1, end 2."""
    state = torch.load(artifacts / "arena" / "brackets_model_state_dict.pt", map_location="cpu", weights_only=True)
    found = convert("transformer-lens", state, {"act_fn": "relu", "pad_token": 1, "attention_dir": "bidirectional"})
    examples = json.loads((artifacts / "arena" / "brackets_data.json").read_text())[:500]
    tokens = torch.ones(len(examples), 42, dtype=torch.long)
    for row, (text, _) in zip(tokens, examples):
        ids = [0, *(3 if symbol == "(" else 4 for symbol in text), 2]
        row[: len(ids)] = torch.tensor(ids)
    balanced = logits(found, tokens)[:, 0].argmax(-1).bool()
    assert balanced.tolist() == [bool(label) for _, label in examples]
