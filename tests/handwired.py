"""Networks wired by hand, so that every quantity of the induction finding is known from the construction.

The residual stream is a row of separate places: the token that stands here, the token before it, the position, and the
logits. Attention is sharp (a score of 40 against 0), and logits are γ = 8 times a mean of one-hot tokens.
"""

from __future__ import annotations

import torch

from headwork.model.card import ModelCard
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.transformer import Transformer
from headwork.tasks.repeated_sequences import RepeatedSequences

VOCAB, LENGTH, BOS = 40, 31, 0
SHARPNESS, GAIN = 40.0, 8.0
VARIED = RepeatedSequences(vocab=VOCAB, length=LENGTH, segment=(4, 8), copies=(3, 3), first_token=1, bos=BOS)
PERIOD = 10
FIXED = RepeatedSequences(
    vocab=VOCAB, length=LENGTH, segment=(PERIOD, PERIOD), copies=(3, 3), placement="fixed", first_token=1, bos=BOS
)

HERE, BEFORE, LOGITS = (slice(i * VOCAB, (i + 1) * VOCAB) for i in range(3))
PLACE = slice(3 * VOCAB, 3 * VOCAB + LENGTH)


def induction_network() -> Transformer:
    """Two layers of two heads: 0.0 writes the previous token, 1.0 is an induction head that reads it in its keys.

    The others attend to everything alike and write nothing. The BOS is no token to copy: it leaves its places empty.
    """
    model = _empty(2, VARIED)
    _attend_back(model, 0, 1)
    _read_and_write(model, 0, HERE, BEFORE, 1.0)
    second = model.layers[1].attn
    second.W_Q[0, HERE, :VOCAB] = SHARPNESS * torch.eye(VOCAB)
    second.W_K[0, BEFORE, :VOCAB] = torch.eye(VOCAB)
    _read_and_write(model, 1, HERE, LOGITS, GAIN)
    return model


def fixed_distance_network() -> Transformer:
    """One layer whose head 0.0 copies the token that stood there one period ago, whatever it is."""
    model = _empty(1, FIXED)
    _attend_back(model, 0, PERIOD - 1)
    _read_and_write(model, 0, HERE, LOGITS, GAIN)
    return model


def _empty(layers: int, data: RepeatedSequences) -> Transformer:
    """Nothing but embeddings and the readout of logits."""
    config = TransformerConfig(
        n_layers=layers,
        d_model=3 * VOCAB + LENGTH,
        n_heads=2,
        d_head=max(VOCAB, LENGTH),
        d_vocab=VOCAB,
        n_ctx=LENGTH,
        positions="learned",
        attention_scale=1.0,
    )
    model = initialise(config, 0).requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    model.W_E[1:, HERE] = torch.eye(VOCAB)[1:]
    model.W_pos[:, PLACE] = torch.eye(LENGTH)
    model.W_U[LOGITS] = torch.eye(VOCAB)
    model.card = ModelCard(name="wired by hand", data=data.to_dict())
    return model


def _attend_back(model: Transformer, layer: int, distance: int) -> None:
    """Head 0 of the layer attends `distance` positions back, and to all alike where there is no such position."""
    attn = model.layers[layer].attn
    attn.W_Q[0, PLACE, :LENGTH] = SHARPNESS * torch.eye(LENGTH)
    attn.W_K[0, PLACE, :LENGTH] = torch.eye(LENGTH).roll(distance, 1).triu(distance)


def _read_and_write(model: Transformer, layer: int, source: slice, target: slice, gain: float) -> None:
    """Head 0 of the layer copies what stands in one place of the stream to another."""
    attn = model.layers[layer].attn
    attn.W_V[0, source, :VOCAB] = torch.eye(VOCAB)
    attn.W_O[0, :VOCAB, target] = gain * torch.eye(VOCAB)
