"""Fresh weights: where training starts, and the untrained twin that a trained network is compared with."""

from __future__ import annotations

import torch
from torch import nn

from headwork.model.config import TransformerConfig
from headwork.model.outline import outline
from headwork.model.transformer import Norm, Transformer


def initialise(config: TransformerConfig, seed: int, std: float | None = None) -> Transformer:
    """A network with independent normal weights, zero biases and unit gains, drawn from `seed` alone.

    `std` defaults to 1/√d_model. torch's global generator is neither read nor advanced.
    """
    model = outline(config).to_empty(device="cpu")
    if config.tied:
        model.unembed.weight = model.embed.weight
    generator = torch.Generator().manual_seed(seed)
    spread = config.d_model**-0.5 if std is None else std
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.normal_(0, spread, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
            if isinstance(module, Norm):
                module.w.fill_(1)
                if module.b is not None:
                    module.b.zero_()
    return model.eval()
