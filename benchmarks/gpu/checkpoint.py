"""A small model with random weights: ``python -m benchmarks.gpu.checkpoint FOLDER``.

SGLang's dummy weights are all but zero, so that every token is as likely as any other whatever the
KV cache holds. These are drawn wide enough for the answers to depend on all of the prompt.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Final

from benchmarks.gpu.shapes import CORRECTNESS, config_of

__all__ = ["SEED", "SPREAD", "write_checkpoint"]

SEED: Final = 20_250_707
SPREAD: Final = 0.1
"""Standard deviation of the weights. At this, logits spread by about 2 and attention picks out a
few tokens; at the usual 0.02 both are close to even."""


def write_checkpoint(folder: Path, dtype: str) -> None:
    """Write config and weights; the same weights each time, rounded to ``dtype``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(config_of(CORRECTNESS, "correctness", dtype), indent=1)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    config = LlamaConfig.from_pretrained(folder)
    config.initializer_range = SPREAD
    torch.manual_seed(SEED)
    with torch.device("cpu"):
        model = LlamaForCausalLM(config)
    model.to(getattr(torch, dtype)).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    given = parser.parse_args()
    write_checkpoint(given.folder, given.dtype)


if __name__ == "__main__":
    main()
