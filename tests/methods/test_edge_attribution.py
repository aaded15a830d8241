"""Edge attribution equals a slow twin in which every reader has an input of its own; and what theory says of sums."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import xarray
from tests.architectures import ARCHITECTURES, BATCH, LENGTH, network, prompts
from tests.methods.peak import Peak
from tests.methods.split_inputs import slow_edges, slow_edges_between_outputs
from tests.oracle import oracle_sites
from torch import Tensor

from headwork.engine.metrics import LogitDifference, Loss, Metric
from headwork.errors import UserError
from headwork.methods.edge_attribution import VARIANTS, Variant, bytes_per_pair, edge_attribution
from headwork.methods.graph import graph
from headwork.model.initialise import initialise
from headwork.model.transformer import Transformer

# Shares of the clean embeddings in the runs where the gradient is taken.
SHARES: dict[Variant, list[float]] = {"eap": [1.0], "inputs": [1 / 3, 2 / 3, 1.0], "clean-corrupt": [1.0, 0.0]}
WITHOUT_NORMS = [name for name, config in ARCHITECTURES.items() if config.norm == "none"]

POSITIONS, CORRECT, WRONG = torch.tensor([4, 2, 3]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])


def difference() -> LogitDifference:
    return LogitDifference(POSITIONS, CORRECT, WRONG)


def slow_difference(logits: Tensor) -> Tensor:
    rows = range(len(logits))
    return torch.stack([logits[i, POSITIONS[i], CORRECT[i]] - logits[i, POSITIONS[i], WRONG[i]] for i in rows])


def loss(outputs: int) -> Loss:
    where = torch.tensor([[0, 0, 1, 0, 1], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1]], dtype=torch.bool)
    return Loss(torch.arange(BATCH * LENGTH).view(BATCH, LENGTH) % outputs, where)


def slow_loss(logits: Tensor) -> Tensor:
    given = loss(logits.shape[-1])
    nats = -(logits - logits.exp().sum(-1, keepdim=True).log())
    chosen = torch.stack([nats[i].gather(1, given.targets[i][:, None])[:, 0] for i in range(len(logits))])
    return (chosen * given.where).sum(1) / given.where.sum(1)


def case(name: str) -> tuple[Transformer, Tensor, Tensor]:
    return network(name), prompts(name, 1), prompts(name, 2)


def equal(found: xarray.DataArray, expected: dict[tuple[str, str], Tensor]) -> None:
    """All edges of the twin are there with its scores, and no others."""
    assert int(found[0].notnull().sum()) == len(expected)
    for (writer, reader), scores in expected.items():
        here = found.sel(writer=writer, reader=reader).to_numpy()
        np.testing.assert_allclose(here, scores.numpy(), rtol=1e-9, atol=1e-9, err_msg=f"{writer} to {reader}")


@pytest.mark.parametrize("variant", SHARES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_equal_the_slow_twin(name: str, variant: Variant) -> None:
    model, clean, corrupt = case(name)
    found = edge_attribution(model, clean, corrupt, difference(), variant=variant, steps=3, per_example=True)
    expected = slow_edges(model, clean, corrupt, slow_difference, SHARES[variant])
    assert max(float(scores.abs().max()) for scores in expected.values()) > 1e-3
    equal(found, expected)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_between_outputs_equal_the_slow_twin(name: str) -> None:
    model, clean, corrupt = case(name)
    corrupt[0, 0] = clean[0, 0]
    found = edge_attribution(model, clean, corrupt, difference(), variant="activations", steps=3, per_example=True)
    equal(found, slow_edges_between_outputs(model, clean, corrupt, slow_difference, SHARES["inputs"]))


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama", "shortformer", "bidirectional-pad", "head-norm-learned"])
@pytest.mark.parametrize("shared", [1, 3, 4])
def test_prompts_that_begin_alike_and_losses_at_many_positions_equal_the_slow_twin(name: str, shared: int) -> None:
    model, clean, corrupt = case(name)
    corrupt[:, :shared] = clean[:, :shared]
    corrupt[:, 4] = clean[:, 4] % (model.config.d_vocab - 1) + 1
    if model.config.pad_token is not None:
        corrupt[clean == model.config.pad_token] = model.config.pad_token
        corrupt[1, 0] = clean[1, 0] % 10 + 1
    found = edge_attribution(
        model, clean, corrupt, loss(model.config.outputs), variant="inputs", steps=3, per_example=True
    )
    equal(found, slow_edges(model, clean, corrupt, slow_loss, SHARES["inputs"]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_without_gradients_give_the_same_scores(variant: Variant) -> None:
    model, clean, corrupt = case("gpt2")
    expected = edge_attribution(model, clean, corrupt, difference(), variant=variant)
    with torch.no_grad():
        inside = edge_attribution(model, clean, corrupt, difference(), variant=variant)
    xarray.testing.assert_identical(inside, expected)
    frozen = edge_attribution(model.requires_grad_(False), clean, corrupt, difference(), variant=variant)
    xarray.testing.assert_allclose(frozen, expected, rtol=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    model, clean, corrupt = case("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    edge_attribution(model, clean, corrupt, difference(), variant="inputs")
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", WITHOUT_NORMS)
def test_edges_into_the_logits_add_up_to_the_change_of_a_linear_metric(name: str) -> None:
    model, clean, corrupt = case(name)
    change = [slow_difference(oracle_sites(model, tokens)["logits"]) for tokens in (clean, corrupt)]
    found = edge_attribution(model, clean, corrupt, difference(), per_example=True)
    total = found.sel(reader="logits").sum("writer").to_numpy()
    np.testing.assert_allclose(total, (change[1] - change[0]).detach().numpy(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["attention-only-learned", "gpt2", "neox"])
def test_the_embeddings_edges_add_up_to_the_change_of_the_metric_as_steps_grow(name: str) -> None:
    """Integrated gradients are complete (Sundararajan et al. 2017); all the embedding's paths begin with its edges."""
    model, clean, corrupt = case(name)
    change = [slow_difference(oracle_sites(model, tokens)["logits"]) for tokens in (clean, corrupt)]
    expected = (change[1] - change[0]).detach().numpy()
    off = []
    for steps in (20, 200):
        found = edge_attribution(model, clean, corrupt, difference(), variant="inputs", steps=steps, per_example=True)
        off.append(np.abs(found.sel(writer="embed").sum("reader").to_numpy() - expected).max())
    assert off[1] < 0.15 * off[0]
    assert off[1] < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["llama", "one-kv-head"])
def test_one_step_is_plain_edge_attribution(name: str) -> None:
    model, clean, corrupt = case(name)
    one = edge_attribution(model, clean, corrupt, difference(), variant="inputs", steps=1)
    np.testing.assert_array_equal(one, edge_attribution(model, clean, corrupt, difference()))


def test_different_tokens_of_one_embedding_score_zero_on_every_edge() -> None:
    model, clean, corrupt = case("neox")
    with torch.no_grad():
        model.embed.weight[:] = model.embed.weight[0]
    found = edge_attribution(model, clean, corrupt, difference(), variant="clean-corrupt")
    assert int(found.notnull().sum()) == graph(model.config).edges
    assert float(np.abs(found).max()) == 0


@pytest.mark.parametrize("name", ["gpt2", "llama", "mix-bidirectional"])
def test_the_mean_over_prompts_is_labelled_and_blank_where_there_is_no_edge(name: str) -> None:
    model, clean, corrupt = case(name)
    edges = graph(model.config)
    each = edge_attribution(model, clean, corrupt, difference(), variant="inputs", per_example=True)
    mean = edge_attribution(model, clean, corrupt, difference(), variant="inputs")
    assert list(each["prompt"].values) == ["0", "1", "2"]
    assert each.dims == ("prompt", "writer", "reader")
    assert mean.dims == ("writer", "reader")
    assert list(mean["writer"].values) == [str(w) for w in edges.writers]
    assert list(mean["reader"].values) == [str(r) for r in edges.readers]
    np.testing.assert_array_equal(mean.notnull().to_numpy(), edges.visible)
    np.testing.assert_allclose(mean, each.mean("prompt"), rtol=1e-12)
    assert mean.attrs == {
        "variant": "inputs",
        "steps": 5,
        "metric": "LogitDifference",
        "prompts": BATCH,
        "direction": "corrupt − clean",
    }


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("name", ["gpt2", "llama", "causal-pad"])
def test_chunking_changes_nothing(name: str, pairs: int) -> None:
    model, clean, corrupt = case(name)
    metrics: list[Metric] = [difference(), loss(model.config.outputs)]
    for metric in metrics:
        done: list[int] = []
        whole = edge_attribution(model, clean, corrupt, metric, variant="inputs", steps=2)
        memory = pairs * bytes_per_pair(model, LENGTH)
        cut = edge_attribution(
            model, clean, corrupt, metric, variant="inputs", steps=2, memory=memory, progress=done.append
        )
        assert len(done) > 1
        assert sum(done) == BATCH
        xarray.testing.assert_allclose(cut, whole, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("variant", ["inputs", "activations"])
@pytest.mark.parametrize("start", [0, 60])
@pytest.mark.parametrize("name", ["attention-only-rotary-part", "gpt2", "neox", "llama", "shortformer", "mix-causal"])
def test_memory_stays_under_the_limit(name: str, start: int, variant: Variant) -> None:
    length = 64
    model = initialise(dataclasses.replace(ARCHITECTURES[name], n_ctx=length), 0).double()
    clean, corrupt = (torch.full((3, length), token) for token in (1, 2))
    corrupt[:, :start] = 1
    where = torch.arange(length).expand(3, -1) >= start
    metric = Loss(torch.ones_like(clean), where)
    need = bytes_per_pair(model, length, start if model.config.causal else 0, start)
    with Peak() as peak:
        edge_attribution(model, clean, corrupt, metric, variant=variant, steps=2, memory=need)
    assert peak.most < need
    assert need < 4 * peak.most


@dataclass
class _Own:
    """A metric of one's own, over the final stream."""

    value: float = 1.0

    def __call__(self, model: Transformer, resid: Tensor, start: int) -> Tensor:
        return resid[:, -1].sum(-1) * self.value

    def reads(self, length: int) -> int:
        return length - 1


class _Flat(_Own):
    def __call__(self, model: Transformer, resid: Tensor, start: int) -> Tensor:
        return resid.sum(-1) * self.value


class _Constant(_Own):
    def __call__(self, model: Transformer, resid: Tensor, start: int) -> Tensor:
        return torch.ones(len(resid))


class _Plain:
    """A metric that is no dataclass."""

    def __call__(self, model: Transformer, resid: Tensor, start: int) -> Tensor:
        return resid[:, -1].sum(-1)

    def reads(self, length: int) -> int:
        return length - 1


def test_a_metric_of_ones_own_is_taken_whole_but_cut_only_as_a_dataclass() -> None:
    model, clean, corrupt = case("gpt2")
    whole = edge_attribution(model, clean, corrupt, _Plain())
    one = bytes_per_pair(model, LENGTH)
    xarray.testing.assert_allclose(
        edge_attribution(model, clean, corrupt, _Own(), memory=one).drop_attrs(), whole.drop_attrs()
    )
    with pytest.raises(UserError, match="no dataclass"):
        edge_attribution(model, clean, corrupt, _Plain(), memory=one)


@pytest.mark.parametrize(
    "metric, message",
    [
        (_Flat(), r"The metric gave \[3, 5\] for 3 prompts"),
        (_Own(float("nan")), "The metric gave nan for prompt 0"),
        (_Constant(), "The metric has no gradient"),
    ],
)
def test_a_metric_that_cannot_be_used_is_named(metric: Metric, message: str) -> None:
    model, clean, corrupt = case("gpt2")
    clean[:, 0], corrupt[:, 0] = 1, 2
    with pytest.raises(UserError, match=message):
        edge_attribution(model, clean, corrupt, metric)


@pytest.mark.usefixtures("unchecked")
def test_pairs_that_are_none_are_named_before_any_work() -> None:
    model, clean, corrupt = case("bidirectional-pad")
    with pytest.raises(UserError, match=r"shape \[3, 5\], the corrupt ones \[3, 4\]"):
        edge_attribution(model, clean, corrupt[:, :4], difference())
    with pytest.raises(UserError, match=r"the same prompt in 1 of 3 pairs \(1\)"):
        edge_attribution(model, clean, torch.where(torch.arange(3)[:, None] == 1, clean, corrupt), difference())
    corrupt[0, 4] = 0
    with pytest.raises(UserError, match="padding"):
        edge_attribution(model, clean, corrupt, difference())


@pytest.mark.usefixtures("unchecked")
def test_variants_steps_metrics_and_limits_that_do_not_fit_are_named() -> None:
    model, clean, corrupt = case("gpt2")
    with pytest.raises(UserError, match="Unknown variant of edge attribution 'input': the nearest valid one is inputs"):
        edge_attribution(model, clean, corrupt, difference(), variant="input")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="steps = 0"):
        edge_attribution(model, clean, corrupt, difference(), variant="inputs", steps=0)
    with pytest.raises(UserError, match="one pair of 5 tokens needs"):
        edge_attribution(model, clean, corrupt, difference(), memory=1000)
    with pytest.raises(UserError, match="The logit difference is for 3 prompts, but there are 2"):
        edge_attribution(model, clean[:2], corrupt[:2], difference())
