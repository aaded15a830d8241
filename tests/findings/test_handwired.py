"""On networks wired by hand the procedure finds what was put in, to the digit, and nothing where nothing was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.handwired import BOS, FIXED, GAIN, LENGTH, PERIOD, VARIED, VOCAB, fixed_distance_network, induction_network

from headwork.findings.induction_heads.card import CARD
from headwork.findings.induction_heads.measure import measure
from headwork.findings.induction_heads.prompts import draw
from headwork.findings.measurement import Measurement
from headwork.studies.verdict import judge, overall
from headwork.tasks.repeated_sequences import RepeatedBatch

SETTINGS = {"discovery": 24, "held_out": 40, "ablation": "mean", "seed": 3}


@pytest.fixture(scope="module")
def induction() -> Measurement:
    return measure(induction_network(), SETTINGS)


@pytest.fixture(scope="module")
def fixed() -> Measurement:
    return measure(fixed_distance_network(), SETTINGS)


def batches() -> tuple[RepeatedBatch, RepeatedBatch]:
    prompts = draw(VARIED, 24, 40, 3)
    return prompts.held_out, prompts.replaced


def after_earlier_copies(told: list[int], asked: list[int], query: int) -> list[int]:
    """Where the wired head looks: at positions before which stood, as `told` has it, the token that is `asked`."""
    found = [k for k in range(1, query + 1) if told[k - 1] == asked[query] != BOS]
    return found or list(range(query + 1))


def loss(tokens: list[int], keys: list[int], query: int) -> float:
    """Of the next token, when the logits are γ times the mean of what stands at these keys."""
    logits = [0.0] * VOCAB
    for key in keys:
        if tokens[key] != BOS:
            logits[tokens[key]] += GAIN / len(keys)
    return math.log(sum(math.exp(x) for x in logits)) - logits[tokens[query + 1]]


def mean_loss(batch: RepeatedBatch, row: int, where: torch.Tensor, told: RepeatedBatch | None = None) -> float:
    tokens, heard = batch.tokens[row].tolist(), (told or batch).tokens[row].tolist()
    queries = where[row].nonzero()[:, 0].tolist()
    found = [loss(tokens, after_earlier_copies(heard, tokens, q), q) for q in queries]
    return sum(found) / len(found)


def close(values: object, expected: object, tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(np.asarray(values), np.asarray(expected), atol=tolerance)


def test_the_wired_heads_are_found(induction: Measurement) -> None:
    assert induction.heads == {"induction": ["1.0"], "previous-token": ["0.0"]}
    assert induction.notes == []
    assert (induction.data_status, induction.data) == ("as stated", VARIED.to_dict())


def test_scores_are_one_by_construction(induction: Measurement) -> None:
    data = induction.dataset
    close(data["score_best"], 1.0)
    close(data["previous_best"], 1.0)
    close(data["attention_before"], 1.0)
    assert float(data["score_null"].mean()) < 0.2
    assert float(data["previous_null"].mean()) < 0.2
    # 0.0 attends to nothing but the previous token, 0.1 and 1.1 to all positions alike.
    held_out, _ = batches()
    for row in range(5):
        queries = held_out.predictable[row].nonzero()[:, 0].tolist()
        tokens = held_out.tokens[row].tolist()
        shares = [len(after_earlier_copies(tokens, tokens, q)) / (q + 1) for q in queries]
        close(data["head_induction"].sel(layer=1, head=1, sequence=row), sum(shares) / len(shares))
        close(data["head_previous"].sel(layer=1, head=1, sequence=row), sum(1 / q for q in range(2, 32)) / 30)


def test_losses_are_as_wired(induction: Measurement) -> None:
    held_out, _ = batches()
    for row in range(len(held_out.tokens)):
        data = induction.dataset.sel(sequence=row)
        close(data["loss_inside"], mean_loss(held_out, row, held_out.predictable))
        close(data["loss_outside"], mean_loss(held_out, row, held_out.unpredictable))


def test_the_attention_goes_where_the_replaced_copies_send_it(induction: Measurement) -> None:
    held_out, replaced = batches()
    for row in range(len(held_out.tokens)):
        tokens, others = held_out.tokens[row].tolist(), replaced.tokens[row].tolist()
        shares = []
        for query in held_out.last_copy()[row].nonzero()[:, 0].tolist():
            keys = after_earlier_copies(others, others, query)
            places = set(after_earlier_copies(tokens, tokens, query))
            shares.append(len(places & set(keys)) / len(keys))
        close(induction.dataset["attention_after"].sel(sequence=row), sum(shares) / len(shares))
    assert float(induction.dataset["attention_drop"].mean()) > 0.5


def test_ablation_costs_are_as_wired(induction: Measurement) -> None:
    data = induction.dataset
    held_out, _ = batches()
    # Zero leaves no logits at all; so does the head that writes nothing leave everything.
    close(data["cost"].sel(value="zero"), math.log(VOCAB) - data["loss_inside"].values)
    discovery = draw(VARIED, 24, 40, 3).discovery
    logits = torch.zeros(VOCAB, dtype=torch.float64)
    for tokens in discovery.tokens.tolist():
        for query in range(LENGTH):
            keys = after_earlier_copies(tokens, tokens, query)
            for key in keys:
                if tokens[key] != BOS:
                    logits[tokens[key]] += GAIN / len(keys) / LENGTH / len(discovery.tokens)
    surprise = logits.logsumexp(0) - logits
    inside = held_out.predictable
    for row in range(len(held_out.tokens)):
        expected = float(surprise[held_out.targets[row][inside[row]]].mean())
        close(data["ablation_cost"].sel(sequence=row), expected - float(data["loss_inside"].sel(sequence=row)))
    close(data["cost"].sel(value="mean"), data["ablation_cost"].values)
    close(data["ablation_matched"], 0.0)
    assert data["matched_set"].values.tolist() == ["1.1"]
    for head, worth in (("0.0", True), ("0.1", False), ("1.0", True), ("1.1", False)):
        cost = data["single_cost"].isel(single=data["single_head"].values.tolist().index(head))
        assert (float(cost.mean()) > 1) == worth
        assert worth or float(abs(cost).max()) < 1e-5


def test_paths_are_as_wired(induction: Measurement) -> None:
    data = induction.dataset
    held_out, replaced = batches()
    last = held_out.last_copy()
    for row in range(len(held_out.tokens)):
        clean = mean_loss(held_out, row, last)
        # The keys hear of other earlier tokens; what is copied stays what it is.
        keys = mean_loss(held_out, row, last, told=replaced) - clean
        close(data["path_keys"].sel(sequence=row), keys)
        # Straight into the logits go the tokens that the head copies in the replaced prompts.
        tokens, others = held_out.tokens[row].tolist(), replaced.tokens[row].tolist()
        direct = []
        for query in last[row].nonzero()[:, 0].tolist():
            looked = after_earlier_copies(others, others, query)
            wrong = [*others[: query + 1], tokens[query + 1]]
            direct.append(loss(wrong, looked, query))
        close(data["path_direct"].sel(sequence=row), [sum(direct) / len(direct) - clean])
    close(data["path_queries"], 0.0)
    close(data["path_values"], 0.0)
    close(data["path_matched"], 0.0)
    assert data["pair"].values.tolist() == ["0.0→1.0"]
    close(data["path_pair"][0], data["path_keys"].values)
    assert float(data["path_keys"].mean()) > 1


def test_the_wired_head_copies(induction: Measurement) -> None:
    close(induction.dataset["ov_copying"], 1.0)
    assert float(induction.dataset["ov_null"]) < 0.8


def verdicts(found: Measurement) -> dict[str, str]:
    values = {str(name): found.dataset[name].values for name in found.dataset.data_vars}
    results = [judge(claim, values) for claim in CARD.subclaims]
    return {r.id: r.verdict for r in results} | {"overall": overall(results)[0]}


def test_the_wired_circuit_is_reproduced(induction: Measurement) -> None:
    assert set(verdicts(induction).values()) == {"reproduced"}


def test_a_fixed_distance_is_not_induction(fixed: Measurement) -> None:
    found = verdicts(fixed)
    data = fixed.dataset
    assert found["overall"] == "not reproduced"
    assert found["advantage"] == found["content-share"] == found["key-composition"] == "not reproduced"
    assert found["induction-score"] != "reproduced"
    assert fixed.data_status == "changed"
    assert fixed.heads["previous-token"] == []
    close(data["attention_drop"], 0.0)
    close(data["path_keys"], 0.0)
    close(data["path_queries"], 0.0)


def test_the_trap_is_shown_at_its_own_distance(fixed: Measurement) -> None:
    data = fixed.dataset
    tokens = draw(FIXED, 24, 40, 3).held_out
    assert PERIOD * 3 == LENGTH - 1
    assert bool((tokens.copy[:, 1:] >= 0).all())
    assert float(data["own_distance_score"].min()) > 1 - 1e-4
    close(data["own_distance_replaced"], data["own_distance_score"].values)
    surprise = math.log(math.exp(GAIN) + VOCAB - 1) - GAIN
    close(data["own_distance_loss"], surprise)


def test_the_seed_decides_everything_measured(induction: Measurement) -> None:
    again = measure(induction_network(), SETTINGS)
    assert again.dataset.identical(induction.dataset)
    other = measure(induction_network(), SETTINGS | {"seed": 4})
    assert not other.dataset["loss_inside"].equals(induction.dataset["loss_inside"])
