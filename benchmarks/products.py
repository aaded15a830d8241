"""How many floating-point operations an answer needs, counted from the matrix products alone (a multiply–add is two).

What the answer needs, not what any implementation does: positions before the first difference are computed once for
both runs; a patched copy is computed from the patch on; of the last block only keys and values are needed at all
positions, everything else at the position that the metric reads; two tokens are unembedded. Norms, activations,
softmaxes and sums are not counted. Memory traffic is not either, so that 100 % cannot quite be reached.
"""

from __future__ import annotations

from benchmarks.setting import Setting, Size


def _mlp(c: Size, positions: int) -> int:
    return 2 * positions * 2 * c.d_model * c.d_mlp


def _map(c: Size, positions: int, count: int = 1) -> int:
    """So many square maps of the stream: queries, keys, values or the output."""
    return 2 * positions * c.d_model * c.d_model * count


def _mix(c: Size, first: int, length: int) -> int:
    """Scores and weighted values of the queries from `first` on; query q sees q + 1 keys."""
    return sum(4 * c.d_model * (q + 1) for q in range(first, length))


def block(c: Size, first: int, length: int) -> int:
    """A block at the positions from `first` on, the keys and values before them given."""
    n = length - first
    return _map(c, n, 4) + _mix(c, first, length) + _mlp(c, n)


def last_block(c: Size, first: int, length: int) -> int:
    """The last block, read at its last position only."""
    return _map(c, length - first, 2) + _map(c, 1, 2) + _mix(c, length - 1, length) + _mlp(c, 1)


def after(c: Size, layer: int, first: int, length: int) -> int:
    """The blocks from `layer` on."""
    if layer >= c.layers:
        return 0
    return (c.layers - 1 - layer) * block(c, first, length) + last_block(c, first, length)


def prefix(c: Size, shared: int) -> int:
    """What the first positions, the same in both runs, leave behind: keys and values of every layer."""
    return (c.layers - 1) * block(c, 0, shared) + _map(c, shared, 2) if shared else 0


def both_runs(s: Setting) -> int:
    """The clean and the corrupt run of one pair."""
    return prefix(s.size, s.shared) + 2 * after(s.size, 0, s.shared, s.length)


def head_sweep(s: Setting) -> int:
    """Every head's output patched at all positions: its change through W_O, the MLP, the later blocks."""
    c, total = s.size, both_runs(s)
    for layer in range(c.layers):
        n = 1 if layer == c.layers - 1 else s.length - s.shared
        written = 2 * n * c.d_head * c.d_model + _mlp(c, n)
        total += c.heads * (written + after(c, layer + 1, s.shared, s.length))
    return s.pairs * total


def residual_sweep(s: Setting) -> int:
    """The stream before every block patched, position by position.

    In the block itself only the patched position has new queries, keys and values; later queries meet one new key.
    """
    c, total = s.size, both_runs(s)
    for layer in range(c.layers):
        for p in range(s.shared, s.length):
            at_end = p == s.length - 1
            if layer == c.layers - 1:
                own = _map(c, 1, 3 if at_end else 2)
                met = _mix(c, p, s.length) if at_end else 2 * c.d_model * (1 + s.length)
                total += own + met + _map(c, 1) + _mlp(c, 1)
            else:
                n = s.length - p
                met = 4 * c.d_model * (p + 1) + sum(2 * c.d_model * (1 + q + 1) for q in range(p + 1, s.length))
                total += _map(c, 1, 3) + met + _map(c, n) + _mlp(c, n) + after(c, layer + 1, p, s.length)
    return s.pairs * total


def edge_attribution(s: Setting, steps: int = 1) -> int:
    """EAP (one step) or EAP-IG: both runs, so many gradients, each head's output apart, one product for the scores.

    The clean run is one of the steps. A gradient costs what its forward pass costs, and attention twice, since both
    factors of its products vary. Gradients are summed over the steps before they are multiplied with the writers.
    """
    c, n = s.size, s.length - s.shared
    forward = after(c, 0, s.shared, s.length)
    attention = (c.layers - 1) * _mix(c, s.shared, s.length) + _mix(c, s.length - 1, s.length)
    apart = _map(c, n, c.layers - 1) + _map(c, 1)
    scores = 0
    for layer in range(c.layers):
        seen, last = 1 + layer * (c.heads + 1), layer == c.layers - 1
        positions = c.heads * (2 * n + (1 if last else n))  # keys, values; queries
        scores += 2 * c.d_model * (seen * positions + (seen + c.heads) * (1 if last else n))
    scores += 2 * c.d_model * (1 + c.layers * (c.heads + 1))
    return s.pairs * (prefix(c, s.shared) + (1 + steps) * forward + steps * (forward + attention) + apart + scores)


def forward(s: Setting) -> int:
    """The bare forward pass: every position of one run, all logits."""
    c = s.size
    return s.pairs * (c.layers * block(c, 0, s.length) + 2 * s.length * c.d_model * c.vocabulary)
