"""Zhong's layout: networks for modular addition, `model_ID.pt` with `config_ID.json` beside it (Zhong et al. 2023).

The tensors are a bare state dict in Nanda's layout, of which only the settings differ: attention is not masked, in
spite of the word `casual` among them, and mixed with a constant, pattern = attn_coeff · softmax + (1 − attn_coeff).
With `diff_vocab` the second number has tokens of its own, `C` above the first's; with `eqn_sign` a last token `=`
follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from headwork.errors import UserError
from headwork.model.layouts import nanda
from headwork.model.layouts.converted import Converted

_NEEDED = ("C", "attn_coeff", "act_fn", "diff_vocab", "eqn_sign")
_SUM = r"lambda x:\s*\(x\[0\]\+x\[1\]\)%(\d+)"


def convert(state: Mapping[str, Any], config: Mapping[str, Any]) -> Converted:
    """Read such a state dict with its settings.

    Raises `UserError` where settings are missing, contradict the tensors or belong to the authors' other architecture.
    """
    missing = [key for key in _NEEDED if key not in config]
    if missing:
        raise UserError(
            f"The clock-and-pizza checkpoint lacks {', '.join(missing)}: keep the authors' config_ID.json beside "
            "model_ID.pt, or give it with --config."
        )
    if config.get("use_linear"):
        raise UserError(
            "The clock-and-pizza checkpoint has use_linear = true, a network without attention, which is not supported."
        )
    modulus, own, sign = config["C"], bool(config["diff_vocab"]), bool(config["eqn_sign"])
    if not isinstance(modulus, int) or modulus < 2:
        raise UserError(f"The clock-and-pizza settings have C = {modulus!r}; it must be a whole number, 2 or more.")
    ours = {
        "causal": False,
        "attention_mix": config["attn_coeff"],
        "act_type": config["act_fn"],
        "num_layers": config.get("n_layers"),
        "num_heads": config.get("n_heads"),
        "d_model": config.get("d_model"),
        "d_vocab": modulus * (2 if own else 1) + sign,
        "n_ctx": 3 if sign else 2,
    }
    found = nanda.convert({"model": state}, {key: value for key, value in ours.items() if value is not None})
    data: dict[str, Any] = {"generator": "modular-addition", "modulus": modulus}
    data |= {"equals": found.architecture.d_vocab - 1} if sign else {}
    data |= {"second": modulus} if own else {}
    stated = re.fullmatch(_SUM, str(config.get("funcs")))
    training = {key: value for key, value in config.items() if key not in (*_NEEDED, "func", "attention_dir")}
    return Converted(
        found.architecture,
        found.state,
        training={key: value for key, value in training.items() if isinstance(value, str | int | float)},
        data=data if stated and int(stated[1]) == modulus else None,
    )
