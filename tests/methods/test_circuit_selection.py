"""Circuits chosen from scores: the best edges, ties in the graph's order, and a set grown from the logits."""

from __future__ import annotations

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.architectures import ARCHITECTURES

from headwork.errors import UserError
from headwork.methods.circuit import Circuit
from headwork.methods.circuit_selection import Order, greedy, node_scores, random_paths, selected, top_n
from headwork.methods.graph import graph

ORDERS: tuple[Order, ...] = ("absolute", "highest", "lowest")
GPT2 = ARCHITECTURES["gpt2"]


def labelled(name: str, values: np.ndarray) -> xarray.DataArray:
    known = graph(ARCHITECTURES[name])
    return xarray.DataArray(
        np.where(known.visible, values, np.nan),
        dims=("writer", "reader"),
        coords={"writer": list(map(str, known.writers)), "reader": list(map(str, known.readers))},
    )


def scores(name: str, seed: int, levels: int = 5) -> xarray.DataArray:
    """Scores with many ties."""
    shape = graph(ARCHITECTURES[name]).visible.shape
    return labelled(name, np.random.default_rng(seed).integers(-levels, levels + 1, shape).astype(float))


def better(score: float, order: Order) -> float:
    return {"absolute": abs(score), "highest": score, "lowest": -score}[order]


def slow_top(name: str, found: xarray.DataArray, n: int, order: Order) -> set[str]:
    names = Circuit.whole(ARCHITECTURES[name]).names
    value = {edge: float(found.sel(writer=edge.split("->")[0], reader=edge.split("->")[1])) for edge in names}
    # Python's sort is stable and the names are in the graph's order.
    return set(sorted(names, key=lambda edge: -better(value[edge], order))[:n])


def slow_greedy(name: str, found: xarray.DataArray, n: int, order: Order) -> set[str]:
    """Look at every edge again at every step."""
    config = ARCHITECTURES[name]
    group, names = config.n_heads // config.kv_heads, Circuit.whole(config).names
    inside, chosen = {"logits"}, []

    def reads_for(reader: str) -> set[str]:
        head, _, slot = reader.partition("<")
        if slot not in ("k>", "v>"):
            return {head}
        layer, index = map(int, head.split("."))
        return {f"{layer}.{index * group + i}" for i in range(group)}

    for _ in range(n):
        best, best_value = "", -np.inf
        for edge in names:
            writer, reader = edge.split("->")
            value = better(float(found.sel(writer=writer, reader=reader)), order)
            if edge not in chosen and reads_for(reader) & inside and value > best_value:
                best, best_value = edge, value
        chosen.append(best)
        inside.add(best.split("->")[0])
    return set(chosen)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["gpt2", "neox", "llama"])
def test_both_ways_equal_their_slow_twins(name: str, order: Order) -> None:
    found = scores(name, len(order))
    for n in (0, 1, 5, 12):
        assert set(top_n(ARCHITECTURES[name], found, n, order=order).names) == slow_top(name, found, n, order)
        assert set(greedy(ARCHITECTURES[name], found, n, order=order).names) == slow_greedy(name, found, n, order)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["gpt2", "llama", "no-layers"]), st.integers(0, 99), st.sampled_from(ORDERS), st.floats(0, 1))
def test_circuits_grow_and_end_with_everything(name: str, seed: int, order: Order, share: float) -> None:
    config, found = ARCHITECTURES[name], scores(name, seed)
    total = graph(config).edges
    n = int(share * total)
    for choose in (top_n, greedy):
        small, large = choose(config, found, n, order=order), choose(config, found, min(n + 1, total), order=order)
        assert len(small) == n
        assert not small - large
        assert choose(config, found, total, order=order) == Circuit.whole(config)
    grown = greedy(config, found, n, order=order)
    # Every edge leads on to the logits; only what the embedding does not reach may be pruned.
    reached = grown | Circuit(config, graph(config).visible & (np.arange(len(grown.edges)) == 0)[:, None])
    assert not grown - reached.prune()


def test_equal_scores_go_in_the_graphs_order_and_labels_may_come_in_any() -> None:
    found = labelled("gpt2", np.zeros(graph(GPT2).visible.shape))
    assert top_n(GPT2, found, 3).names == ("embed->0.0<q>", "embed->0.1<q>", "embed->0.0<k>")
    mixed = scores("gpt2", 3)
    turned = mixed.isel(writer=slice(None, None, -1), reader=slice(None, None, -1)).transpose()
    assert top_n(GPT2, turned, 9) == top_n(GPT2, mixed, 9)


def test_a_fraction_is_rounded_down() -> None:
    found, total = scores("gpt2", 0), graph(GPT2).edges
    for share in (0, 0.001, 0.1, 0.29, 1):
        assert len(top_n(GPT2, found, fraction=share)) == int(share * total + 1e-9)
    assert len(top_n(GPT2, found, fraction=17 / total)) == 17


def test_node_scores_give_node_circuits() -> None:
    heads = xarray.DataArray([[1.0, -5.0], [3.0, 0.5]], dims=("layer", "head"))
    found = node_scores(GPT2, heads, xarray.DataArray([0.1, -4.0], dims="layer"))
    assert list(found["node"].values) == ["0.0", "0.1", "m0", "1.0", "1.1", "m1"]
    assert top_n(GPT2, found, 2) == Circuit.from_nodes(GPT2, ["0.1", "m1"])
    assert top_n(GPT2, found, 2, order="highest") == Circuit.from_nodes(GPT2, ["1.0", "0.0"])
    assert top_n(GPT2, found, fraction=0.5, order="lowest").nodes == ("0.1", "m0", "m1")
    bare = ARCHITECTURES["attention-only-learned"]
    assert top_n(bare, node_scores(bare, heads), 1).nodes == ("0.1",)
    assert selected(GPT2, found, 1, "top-n", "absolute").nodes == ("0.1",)


@pytest.mark.usefixtures("unchecked")
def test_scores_and_sizes_that_do_not_fit_are_named() -> None:
    found = scores("gpt2", 0)
    total = graph(GPT2).edges
    missing = found.copy()
    missing.loc["embed", "m0"] = np.nan
    heads, mlps = xarray.DataArray(np.zeros((2, 2)), dims=("layer", "head")), xarray.DataArray([0.0, 0.0], dims="layer")
    wrong = [
        (lambda: top_n(GPT2, found), "give one of the two"),
        (lambda: top_n(GPT2, found, 3, fraction=0.1), "give one of the two"),
        (lambda: top_n(GPT2, found, total + 1), f"of {total + 1} edges was asked for; this network has {total}"),
        (lambda: top_n(GPT2, found, -1), "-1 edges"),
        (lambda: top_n(GPT2, found, fraction=1.5), "from 0 to 1"),
        (lambda: top_n(GPT2, found, fraction=float("nan")), "from 0 to 1"),
        (lambda: top_n(GPT2, found, 3, order="high"), "the nearest valid one is highest"),  # type: ignore[arg-type]
        (lambda: top_n(GPT2, missing, 3), "The score of embed->m0 is NaN"),
        (lambda: top_n(GPT2, found.expand_dims("prompt"), 3), "dims prompt, writer, reader"),
        (lambda: top_n(ARCHITECTURES["llama"], found, 3), "another architecture: their writers differ .* and others"),
        (lambda: top_n(GPT2, found.drop_vars("reader"), 3), "their readers differ"),
        (lambda: greedy(GPT2, node_scores(GPT2, heads, mlps), 3), "only be taken by top-n"),
        (lambda: selected(GPT2, found, 3, "top", "absolute"), "nearest valid one is top-n"),  # type: ignore[arg-type]
        (lambda: node_scores(GPT2, heads), "has MLPs, but no scores"),
        (lambda: node_scores(ARCHITECTURES["attention-only-learned"], heads, mlps), "has no MLPs"),
        (lambda: node_scores(GPT2, heads.T, mlps), r"needs \['layer', 'head'\] \[2, 2\]"),
    ]
    for call, says in wrong:
        with pytest.raises(UserError, match=says):
            call()


@settings(deadline=None)
@given(
    name=st.sampled_from(["gpt2", "neox", "qwen2", "attention-only-learned", "one-layer"]),
    seed=st.integers(0, 1000),
    share=st.floats(0, 1),
)
def test_random_circuits_have_the_size_asked_for_and_edges_that_all_lie_on_paths(
    name: str, seed: int, share: float
) -> None:
    config = ARCHITECTURES[name]
    n = round(share * graph(config).edges)
    found = random_paths(config, n, np.random.default_rng(seed))
    assert len(found) == n
    # One edge more may fit onto no path.
    assert len(found.prune()) >= n - 1
    assert found == random_paths(config, n, np.random.default_rng(seed))


def test_random_circuits_come_to_every_edge_and_none_too_large_is_drawn() -> None:
    draw = np.random.default_rng(0)
    shares = np.mean([random_paths(GPT2, 12, draw).edges for _ in range(300)], 0)[graph(GPT2).visible]
    assert shares.min() > 0.02
    with pytest.raises(UserError, match="has 46"):
        random_paths(GPT2, 47, draw)
