"""Neurons and attention by frequency: planted ones are found, random ones have none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.methods import adders

from headwork.errors import UserError
from headwork.methods.frequency_clusters import attention_frequencies, clusters, frequency_shares, neuron_frequencies

P = 11


def planted() -> torch.Tensor:
    """Neurons of frequency 2 (two of them), 4, of two frequencies at once, of none, and one that is constant."""
    two, _, _ = adders.angles(P, 2)
    four_a, four_b, _ = adders.angles(P, 4)
    two, four_a, four_b = two[:, :, 0].expand(P, P), four_a[:, :, 0], four_b[:, :, 0]
    pair = (four_a + four_b + 0.3).cos()
    neurons = [two.sin() + 2, (two + two.T).cos() - two.T.cos(), pair * 3, two.cos() + pair, adders.noise(P, P)]
    return torch.stack([*neurons, torch.full((P, P), 0.1, dtype=torch.float64)], 2)


def test_each_planted_neuron_is_found_in_its_cluster() -> None:
    found = neuron_frequencies(planted())
    assert clusters(found) == {2: [0, 1], 4: [2]}
    assert float(found["clustered"]) == pytest.approx(3 / 6)
    assert int(found["constant"]) == 1
    assert found["of"].values[[0, 1, 2, 5]].tolist() == [2, 2, 4, 0]
    np.testing.assert_allclose(found["largest"].values[:3], 1)
    np.testing.assert_allclose(sorted(found["share"].values[3])[-2:], [0.5, 0.5])
    assert np.isnan(found["largest"].values[5])
    assert found["null_largest"].max() < 0.85
    assert not found["null_clustered"].any()


def test_shares_do_not_depend_on_the_neurons_scale_and_add_up_to_at_most_one() -> None:
    neurons = adders.noise(P, P, 5)
    share = frequency_shares(neurons)
    torch.testing.assert_close(frequency_shares(neurons * 3 + 7), share)
    assert (share.sum(0) < 1).all()
    assert clusters(neuron_frequencies(neurons)) == {}


def test_constants_have_no_share_whatever_their_mean_is_rounded_to() -> None:
    constants = adders.noise(50).float().expand(P, P, 50)
    assert frequency_shares(constants).isnan().all()
    assert frequency_shares(constants.double() / 3).isnan().all()


def test_attention_is_a_function_of_the_numbers() -> None:
    a, _, _ = adders.angles(P, 3)
    first = torch.sigmoid(0.1 * a[:, :, 0].cos()).expand(P, P)
    pattern = torch.stack([torch.stack([first, 1 - first], 2), torch.full((P, P, 2), 0.5, dtype=torch.float64)], 2)
    found = attention_frequencies(pattern)
    assert found["of"].values.tolist() == [[3, 3], [0, 0]]
    assert found["share"].sel(head=0, key=0, frequency=3) > 0.99
    np.testing.assert_allclose(found["deviation"], pattern.std((0, 1), correction=0), atol=1e-12)
    np.testing.assert_allclose(found["mean"], pattern.mean((0, 1)))
    np.testing.assert_array_equal(found["pattern"], pattern)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_table_of_neurons_is_refused() -> None:
    for neurons, options, says in [
        (torch.zeros(3, 4, 2), {}, r"shape \[3, 4, 2\]; needed is \[p, p, neurons\]"),
        (torch.full((3, 3, 1), torch.nan), {}, "not finite"),
        (torch.zeros(3, 3, 1), {"bound": 1.0}, "bound = 1.0; a share of variance"),
        (torch.zeros(3, 3, 1), {"draws": 0}, "draws = 0"),
    ]:
        with pytest.raises(UserError, match=says):
            neuron_frequencies(neurons, **options)
    with pytest.raises(UserError, match=r"needed is \[p, p, head, key\]"):
        attention_frequencies(torch.zeros(3, 3, 2))


# Measured: the share of neurons above 0.85, and the frequencies of the clusters.
MEASURED = {
    "nanda-mod113": (0.361, {6, 23, 37, 39, 41}),
    "nanda-mod113-no-wd": (0.625, {36, 52}),
    "pizza-l8k1hzciux": (0.949, {13, 16, 21}),
    "pizza-p99zdpze5l": (1.0, {3, 15, 17}),
    "pizza-q9rsl94xlv": (0.980, {4, 12, 19, 21}),
    "pizza-18c9ev5v5p": (1.0, {7, 23, 28}),
    "pizza-dy65ktpiij": (0.184, {11, 17, 18}),
}


@pytest.mark.artifacts
@pytest.mark.usefixtures("artifacts")
@pytest.mark.parametrize("name", adders.PUBLISHED)
def test_the_authors_neurons_lie_in_clusters(name: str) -> None:
    neurons = adders.every_pair_of(name).neurons
    assert neurons is not None
    found = neuron_frequencies(neurons, draws=1)
    share, frequencies = MEASURED[name]
    assert float(found["clustered"]) == pytest.approx(share, abs=0.003)
    assert set(clusters(found)) == frequencies
    assert found["null_largest"] < 0.5
    attention = attention_frequencies(adders.every_pair_of(name).pattern)
    constant = name in ("pizza-p99zdpze5l", "pizza-18c9ev5v5p", "pizza-dy65ktpiij")
    assert bool((attention["of"] == 0).all()) is constant
