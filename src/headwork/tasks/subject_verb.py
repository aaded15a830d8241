"""The task `subject-verb`: does the verb agree with its subject across another noun? (Finlayson et al. 2021).

"The dogs near the car" goes on with are, not is. The counterfactual has the subject in the other number; the noun
between is the same in both, and in half of the prompts its number is not the subject's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from headwork.model.transformer import Transformer
from headwork.tasks.task_prompts import Split, TaskPrompts, generator
from headwork.tasks.text_prompts import Draft, drafted, listed, prompts_of, random_choice, single_tokens, tokenizer_for

TASK = "subject-verb"
OTHER_NUMBER = "other-number"

_PLACES: Mapping[Split, tuple[str, ...]] = {
    "discovery": ("near", "behind", "beside", "above"),
    "held-out": ("under", "around", "with", "opposite"),
}
TEMPLATES: Mapping[Split, tuple[str, ...]] = {
    split: tuple(f"The {{subject}} {place} the {{noun}}" for place in places) for split, places in _PLACES.items()
}
NOUNS = listed(
    "dog cat boy girl teacher doctor farmer driver player king queen friend brother sister student lawyer author pilot "
    "guard cousin singer car tree table chair house book bird horse river road bridge door lamp window boat train truck"
)
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))


def subject_verb(
    model: Transformer, n: int, seed: int, split: Split, counterfactual: str = OTHER_NUMBER, bos: bool = False
) -> TaskPrompts:
    """`n` prompts, about half with a plural subject; the metric is logit(verb that agrees) − logit(its other number).

    Raises `UserError` for a network without a tokenizer, or with too few nouns that are one token in both numbers.
    """
    tokenizer = tokenizer_for(TASK, model)
    one, many = (single_tokens(TASK, "nouns", words, tokenizer, 2) for words in (NOUNS, [f"{w}s" for w in NOUNS]))
    nouns = [*single_tokens(TASK, "nouns", [w for w in NOUNS if w in one and f"{w}s" in many], tokenizer, 2)]
    verb = single_tokens(TASK, "verbs", [v for pair in VERBS for v in pair], tokenizer, 2 * len(VERBS))
    random = generator(seed, split)

    def coin() -> int:
        return int(torch.randint(2, (), generator=random))

    def draft(template: str, attempt: int) -> Draft:
        subject, noun = random_choice(nouns, random, 2)
        plural, verbs = coin(), VERBS[int(torch.randint(len(VERBS), (), generator=random))]
        clean = {"subject": subject + "s" * plural, "noun": noun + "s" * coin()}
        corrupt = clean | {"subject": subject + "s" * (1 - plural)}
        return Draft(template, template, clean, corrupt, verb[verbs[plural]], verb[verbs[1 - plural]])

    texts, notes = drafted(TASK, tokenizer, TEMPLATES[split], n, draft, bos)
    metric = "logit of the verb that agrees − logit of its other number"
    return prompts_of(TASK, split, counterfactual, texts, notes, metric)
