"""`reproduce` on networks of the hub, as README states it: random ones in the hub's format, behind its names."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import transformers
from tests.cli.conftest import Cli

CONFIGS = {
    "gpt2": transformers.GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4),
    "EleutherAI/pythia-70m": transformers.GPTNeoXConfig(
        vocab_size=64,
        max_position_embeddings=64,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("repo", CONFIGS)
def test_the_finding_is_measured_on_a_network_of_the_hub(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repo: str
) -> None:
    folder = tmp_path / "hub" / "snapshots" / "c0ffee"
    transformers.set_seed(0)
    transformers.AutoModelForCausalLM.from_config(CONFIGS[repo]).save_pretrained(folder)

    def snapshot_download(asked: str, **_: object) -> str:
        assert asked == repo
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = cli("reproduce", "induction-heads", "--model", f"hf:{repo}", "--seeds", 1, "--json").json
    assert (found["model"], found["verdict"]) == (f"hf:{repo}", "not reproduced")
    assert Path(found["report"]).is_file()
