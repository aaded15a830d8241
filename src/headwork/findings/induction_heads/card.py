"""The claim: induction heads, as Elhage et al. 2021 and Olsson et al. 2022 describe them."""

from __future__ import annotations

from headwork.findings.claim import ClaimCard, Reference, SubClaim

ELHAGE = Reference(
    key="elhage2021",
    authors="Elhage, N., Nanda, N., Olsson, C., Henighan, T., Joseph, N., Mann, B., et al.",
    year=2021,
    title="A Mathematical Framework for Transformer Circuits",
    venue="Transformer Circuits Thread",
    url="https://transformer-circuits.pub/2021/framework/index.html",
)
OLSSON = Reference(
    key="olsson2022",
    authors="Olsson, C., Elhage, N., Nanda, N., Joseph, N., DasSarma, N., Henighan, T., et al.",
    year=2022,
    title="In-context Learning and Induction Heads",
    venue="Transformer Circuits Thread",
    url="https://transformer-circuits.pub/2022/in-context-learning-and-induction-heads/index.html",
)

_OWN_NULL = "its null"

CARD = ClaimCard(
    id="induction-heads",
    title="Induction heads",
    claim=(
        "Attention-only transformers of at least two layers form induction heads: a head in a lower layer tells each "
        "position which token came before it; through their keys this reaches heads in a higher layer, which attend to "
        "the tokens that followed earlier copies of the current token and copy them to the output. One layer cannot do "
        "this."
    ),
    references=(ELHAGE, OLSSON),
    scope="class",
    networks="causal transformers trained to predict the next token of sequences in which segments recur",
    data=(
        "random tokens in which one random segment occurs several times, at places that vary from sequence to "
        "sequence; vocabulary, length and copies as in the network's own training where its card states them"
    ),
    subclaims=(
        SubClaim(
            id="advantage",
            statement="Inside repeats it predicts better than the best log-linear predictor that copies by distance.",
            kind="behaviour",
            central=True,
            quantity="advantage",
            signed=True,
            unit="nats",
            replicate="sequence",
            threshold=0.0,
            threshold_source=_OWN_NULL,
            null_meaning="a fitted predictor that knows which token stood at each distance, but cannot match tokens",
            paper="loss falls inside repeats",
            paper_source="Olsson 2022",
        ),
        SubClaim(
            id="induction-score",
            statement="The best head attends to the tokens that followed earlier copies, beyond what places explain.",
            kind="representation",
            central=True,
            quantity="score_best",
            null="score_null",
            unit="attention",
            replicate="sequence",
            threshold=0.0,
            threshold_source=_OWN_NULL,
            null_meaning="the best of as many heads, attending to the same places taken from another sequence",
            paper="near 1 in the clearest heads",
            paper_source="Elhage 2021, from memory",
        ),
        SubClaim(
            id="content-share",
            statement="The found heads' attention collapses when the earlier copies are replaced.",
            kind="cause",
            central=True,
            quantity="attention_drop",
            ratio_of="attention_before",
            unit="share",
            replicate="sequence",
            threshold=0.5,
            threshold_on="value",
            threshold_source="its null: attention by place alone keeps all of it; above ½ most of it is due to content",
            null_meaning="0: replacing content changes nothing for a head that attends by place",
        ),
        SubClaim(
            id="ablation-cost",
            statement="Ablating the found heads together raises the loss inside repeats more than matched heads do.",
            kind="cause",
            central=True,
            quantity="ablation_cost",
            signed=True,
            null="ablation_matched",
            unit="nats",
            replicate="sequence",
            threshold=0.0,
            threshold_source=_OWN_NULL,
            null_meaning="sets of the same size in the same layers, outside the found circuit",
            paper="knocking out induction heads removes most in-context learning in small models",
            paper_source="Olsson 2022, argument 3",
        ),
        SubClaim(
            id="key-composition",
            statement="The previous-token heads reach the found heads through their keys.",
            kind="cause",
            central=True,
            quantity="path_keys",
            signed=True,
            null="path_matched",
            unit="nats",
            replicate="sequence",
            threshold=0.0,
            threshold_source=_OWN_NULL,
            null_meaning="the same paths from as many other heads of the same layers",
            paper="K-composition with a previous-token head",
            paper_source="Elhage 2021",
        ),
        SubClaim(
            id="previous-token",
            statement="A head below the found heads attends to the previous token.",
            kind="representation",
            central=False,
            quantity="previous_best",
            null="previous_null",
            unit="attention",
            replicate="sequence",
            threshold=0.0,
            threshold_source=_OWN_NULL,
            null_meaning="the best of as many heads, attending to one random earlier place",
        ),
        SubClaim(
            id="ov-copying",
            statement="The found heads' OV circuits copy: their eigenvalues are mostly positive.",
            kind="representation",
            central=False,
            quantity="ov_copying",
            null="ov_null",
            unit="Σλ/Σ|λ|",
            replicate=None,
            threshold=0.8,
            threshold_on="value",
            threshold_source="the paper's “near 1”, read as 0.8",
            null_meaning="the best head of the same network untrained",
            paper="near 1",
            paper_source="Elhage 2021, from memory",
        ),
        SubClaim(
            id="customary-score",
            statement="The best head's induction score passes the customary 0.4.",
            kind="representation",
            central=False,
            quantity="score_best",
            null="score_null",
            unit="attention",
            replicate="sequence",
            threshold=0.4,
            threshold_on="value",
            threshold_source="custom; arbitrary, so not central",
            null_meaning="the best of as many heads, attending to the same places taken from another sequence",
        ),
    ),
    not_measurable=(
        "the phase change during training, where a network comes without its checkpoints",
        "in-context learning on natural text, where a network was trained on generated sequences",
    ),
)
