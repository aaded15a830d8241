"""The task `ioi`, indirect object identification: who is given something? (Wang et al. 2022).

"When Mary and John went to the park, John gave a book to" goes on with Mary, the name that stands once. Either name may
come first (ABBA: the indirect object does; BABA: the subject does). All templates share one frame, so that a position
means the same in every prompt; discovery and held-out prompts have different templates.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from headwork.model.transformer import Transformer
from headwork.tasks.task_prompts import Split, TaskPrompts, generator
from headwork.tasks.text_prompts import Draft, drafted, listed, prompts_of, random_choice, single_tokens, tokenizer_for

TASK = "ioi"
ABC, SWAPPED, THIRD_NAME = "abc", "swapped", "third-name"

_FRAME = "{opening} {{first_name}} and {{second_name}} {going} the {{place}}, {{giver}} {giving} {{object}} to"
_WORDS: Mapping[Split, tuple[tuple[str, str, str], ...]] = {
    "discovery": (
        ("When", "went to", "gave a"),
        ("While", "waited in", "handed a"),
        ("After", "met at", "passed the"),
        ("As", "walked through", "offered a"),
        ("Once", "arrived at", "showed the"),
    ),
    "held-out": (
        ("Since", "worked at", "sold a"),
        ("Because", "stayed in", "brought the"),
        ("Before", "drove to", "threw the"),
        ("Although", "argued near", "sent a"),
        ("Whenever", "were at", "lent the"),
    ),
}
TEMPLATES: Mapping[Split, tuple[str, ...]] = {
    split: tuple(_FRAME.format(opening=a, going=b, giving=c) for a, b, c in words) for split, words in _WORDS.items()
}
NAMES = listed(
    "Mary John Alice Anna Emma Sarah Laura Julia Kate Rachel Helen Lucy Claire Jane Susan Karen Linda Maria Rebecca "
    "Jessica Emily Grace Ruth Rose Amy Amanda Michelle Nicole Lisa Lauren Megan Victoria Diana Martha Tom James Robert "
    "Michael David Peter Paul Simon Daniel Andrew Kevin Brian George Edward Henry Charles Frank Jack Adam Matthew Eric "
    "Steven Patrick Martin Thomas Richard William Joseph Alan Roger Oliver Samuel Arthur Carl Justin Ryan Jason Scott"
)
PLACES = listed(
    "house park school office store station garden library market hospital restaurant beach church museum hotel farm "
    "theater bank airport kitchen bridge lake"
)
OBJECTS = listed(
    "book drink ball ring letter card key basket coin map picture hat cake watch flower ticket box phone lamp knife "
    "rope bag"
)


def ioi(
    model: Transformer, n: int, seed: int, split: Split, counterfactual: str = ABC, bos: bool = False
) -> TaskPrompts:
    """`n` prompts, ABBA or BABA at random; the metric is logit(indirect object) − logit(subject).

    `counterfactual`: `abc` has three other names, all different, as in the paper; `third-name` only the second subject
    replaced by a third name; `swapped` gives the object to the other one. Raises `UserError` for a network without a
    tokenizer or with too few names that are one token.
    """
    tokenizer = tokenizer_for(TASK, model)
    names = single_tokens(TASK, "names", NAMES, tokenizer, 5)
    places = [*single_tokens(TASK, "places", PLACES, tokenizer, 1)]
    objects = [*single_tokens(TASK, "objects", OBJECTS, tokenizer, 1)]
    random = generator(seed, split)

    def draft(template: str, attempt: int) -> Draft:
        io, subject, a, b, c = random_choice([*names], random, 5)
        place, thing = *random_choice(places, random), *random_choice(objects, random)
        order = "ABBA" if torch.rand((), generator=random) < 0.5 else "BABA"
        first, second = (io, subject) if order == "ABBA" else (subject, io)
        clean = {"first_name": first, "second_name": second, "place": place, "giver": subject, "object": thing}
        change = {
            ABC: {"first_name": a, "second_name": b, "giver": c},
            THIRD_NAME: {"giver": c},
            SWAPPED: {"giver": io},
        }
        corrupt = clean | change[counterfactual]
        return Draft(template, template, clean, corrupt, names[io], names[subject])

    texts, notes = drafted(TASK, tokenizer, TEMPLATES[split], n, draft, bos)
    metric = "logit of the indirect object − logit of the subject"
    return prompts_of(TASK, split, counterfactual, texts, notes, metric)
