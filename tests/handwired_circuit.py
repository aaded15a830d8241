"""A network whose circuit is known because it is wired by hand: which edges carry the answer, and which other things.

The task: two keys stand before two values (`… a b … a′ c … a`), the last token repeats a key, and the answer is f(b), a
fixed table's entry for the value behind that key. The circuit:

- m0 writes the code of the token that stands here, and head 0.0 the code of the token before;
- head 1.0 looks, by the code of its own token (its queries read m0), for the place whose token before has the same code
  (its keys read 0.0), and copies the token there (its values read the embedding);
- m2 turns the copied token into its answer in the logits;
- head 2.1 copies it to another place, from which m3 helps the same answer; head 3.2 reads the copy of 1.0 directly and
  speaks against the answer, half as loud.

Beside it stand distractors: heads and MLPs that attend to tokens, read the same places, and write what nobody reads
(`JUNK`), or to all logits alike. Their edges carry values that differ
between the prompts of a pair, yet the logit difference never depends on them.

Attention is moderately sharp (scores about 3 against 0 in 8 places), so that gradients exist everywhere on the way.
"""

from __future__ import annotations

import torch

from headwork.engine.metrics import LogitDifference
from headwork.methods.circuit import Circuit
from headwork.model.config import TransformerConfig
from headwork.model.initialise import initialise
from headwork.model.transformer import Transformer
from headwork.tasks.prompt_pairs import PromptPairs

KEYS, VALUES, FILLERS = range(5), range(5, 10), range(10, 13)
VOCAB, LENGTH = 13, 8
HERE, CODE, BEFORE, COPIED, MOVED, LOGITS, JUNK = (slice(i * VOCAB, (i + 1) * VOCAB) for i in range(7))
PLACE = slice(7 * VOCAB, 7 * VOCAB + LENGTH)

EDGES = (
    "embed->m0",
    "embed->0.0<v>",
    "m0->1.0<q>",
    "0.0->1.0<k>",
    "embed->1.0<v>",
    "1.0->m2",
    "1.0->2.1<v>",
    "1.0->3.2<v>",
    "2.1->m3",
    "m2->logits",
    "m3->logits",
    "3.2->logits",
)
NODES = ("m0", "0.0", "1.0", "2.1", "m2", "m3", "3.2")

CONFIG = TransformerConfig(
    n_layers=4,
    d_model=7 * VOCAB + LENGTH,
    n_heads=3,
    d_head=VOCAB,
    d_mlp=2 * VOCAB,
    d_vocab=VOCAB,
    n_ctx=LENGTH,
    positions="learned",
    activation="gelu",
    attention_scale=1.0,
)


def known_circuit() -> Circuit:
    """The edges that carry the answer."""
    return Circuit.from_names(CONFIG, EDGES)


def known_nodes() -> Circuit:
    """The heads and MLPs that those edges join."""
    return Circuit.from_nodes(CONFIG, NODES)


def wired_network(sharpness: float = 4.0, noise: float = 0.0, seed: int = 0) -> Transformer:
    """The network, in float64; `noise` is the standard deviation of what is added to every weight."""
    model = initialise(CONFIG, 0).double().requires_grad_(False)
    for parameter in model.parameters():
        parameter.zero_()
    one, draw = torch.eye(VOCAB, dtype=torch.float64), torch.Generator().manual_seed(1)
    code, answer = (one[torch.randperm(VOCAB, generator=draw)] for _ in range(2))
    model.W_E[:, HERE] = one
    model.W_pos[:, PLACE] = torch.eye(LENGTH, dtype=torch.float64)
    model.W_U[LOGITS] = one

    _table(model, 0, HERE, CODE, code)
    _attend_back(model, 0, 0, sharpness)
    _copy(model, 0, 0, HERE, BEFORE, code)
    _match(model, 1, 0, CODE, BEFORE, sharpness)
    _copy(model, 1, 0, HERE, COPIED, one)
    _table(model, 2, COPIED, LOGITS, 4 * answer)
    _attend_here(model, 2, 1, sharpness)
    _copy(model, 2, 1, COPIED, MOVED, one)
    _table(model, 3, MOVED, LOGITS, 3 * answer)
    _attend_here(model, 3, 2, sharpness)
    _copy(model, 3, 2, COPIED, LOGITS, -2 * answer)
    _distract(model, draw)
    draw = _seeded(seed)
    for parameter in model.parameters():
        parameter.add_(noise * torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def wired_pairs(each: int = 4, seed: int = 0) -> tuple[PromptPairs, LogitDifference]:
    """`each` pairs of three kinds, after which the corrupt answer is the other value's, and the logit difference.

    The corrupt prompt ends in the other key, or has its keys exchanged, or its values: with the three together every
    edge of the circuit carries something else in the corrupt run of some pair.
    """
    draw = _seeded(seed)
    clean, corrupt, right, wrong = [], [], [], []
    answer = wired_network().layers[2].mlp.W_out[:VOCAB, LOGITS].argmax(1)
    for i in range(3 * each):
        a, other = (KEYS[j] for j in torch.randperm(len(KEYS), generator=draw)[:2])
        b, c = (VALUES[j] for j in torch.randperm(len(VALUES), generator=draw)[:2])
        x, y = (FILLERS[j] for j in torch.randint(len(FILLERS), (2,), generator=draw))
        first = [(a, b), (other, c)]
        swapped = {0: first, 1: [(other, b), (a, c)], 2: [(a, c), (other, b)]}[i % 3]
        late = bool(torch.randint(2, (1,), generator=draw))
        for rows, bindings, last in ((clean, first, a), (corrupt, swapped, other if i % 3 == 0 else a)):
            one, two = reversed(bindings) if late else bindings
            rows.append([x, *one, y, *two, x, last])
        right.append(int(answer[b]))
        wrong.append(int(answer[c]))
    last = torch.full((3 * each,), LENGTH - 1)
    return PromptPairs(torch.tensor(clean), torch.tensor(corrupt)), LogitDifference(
        last, torch.tensor(right), torch.tensor(wrong)
    )


def _attend_back(model: Transformer, layer: int, head: int, sharpness: float) -> None:
    """The head attends to the position before, and to all alike where there is none."""
    attn = model.layers[layer].attn
    attn.W_Q[head, PLACE, :LENGTH] = sharpness * torch.eye(LENGTH, dtype=torch.float64)
    attn.W_K[head, PLACE, :LENGTH] = torch.eye(LENGTH, dtype=torch.float64).roll(1, 1).triu(1)


def _attend_here(model: Transformer, layer: int, head: int, sharpness: float) -> None:
    """The head attends to its own position."""
    attn = model.layers[layer].attn
    attn.W_Q[head, PLACE, :LENGTH] = sharpness * torch.eye(LENGTH, dtype=torch.float64)
    attn.W_K[head, PLACE, :LENGTH] = torch.eye(LENGTH, dtype=torch.float64)


def _match(model: Transformer, layer: int, head: int, query: slice, key: slice, sharpness: float) -> None:
    """The head attends where one place of the stream has what another place has here."""
    attn = model.layers[layer].attn
    attn.W_Q[head, query] = sharpness * torch.eye(VOCAB, dtype=torch.float64)
    attn.W_K[head, key] = torch.eye(VOCAB, dtype=torch.float64)


def _copy(model: Transformer, layer: int, head: int, source: slice, target: slice, table: torch.Tensor) -> None:
    """The head writes `table` of what it finds in one place of the stream to another."""
    attn = model.layers[layer].attn
    attn.W_V[head, source] = torch.eye(VOCAB, dtype=torch.float64)
    attn.W_O[head, :, target] = table


def _table(model: Transformer, layer: int, source: slice, target: slice, table: torch.Tensor) -> None:
    """The MLP writes `table` of what stands in one place, one neuron for each token, to another."""
    mlp = model.layers[layer].mlp
    mlp.W_in[source, :VOCAB] = torch.eye(VOCAB, dtype=torch.float64)
    mlp.W_out[:VOCAB, target] = table


def _distract(model: Transformer, draw: torch.Generator) -> None:
    """Heads and neurons that read the circuit's places by random weights and write where the metric does not look.

    What they write is about as large as what the circuit writes.
    """

    def random(*shape: int) -> torch.Tensor:
        return VOCAB**-0.5 * torch.randn(*shape, generator=draw, dtype=torch.float64)

    free = {0: (1, 2), 1: (1, 2), 2: (0, 2), 3: (0, 1)}
    common = torch.ones(VOCAB, VOCAB, dtype=torch.float64)
    for layer, heads in free.items():
        attn, mlp = model.layers[layer].attn, model.layers[layer].mlp
        for head in heads:
            for source in (HERE, CODE, COPIED, JUNK):
                attn.W_Q[head, source] = random(VOCAB, VOCAB)
                attn.W_K[head, source] = random(VOCAB, VOCAB)
                attn.W_V[head, source] = random(VOCAB, VOCAB)
            attn.W_O[head, :, JUNK] = random(VOCAB, VOCAB)
            attn.W_O[head, :, LOGITS] = random(VOCAB, 1) * common[:1]
        for source in (HERE, BEFORE, COPIED, JUNK):
            mlp.W_in[source, VOCAB:] = random(VOCAB, VOCAB)
        mlp.W_out[VOCAB:, JUNK] = random(VOCAB, VOCAB)
        mlp.W_out[VOCAB:, LOGITS] = random(VOCAB, 1) * common[:1]
