"""Turn one GGUF file into an ordinary checkpoint folder: ``python -m kvflow.engine.convert_gguf``.

Runs as a process of its own, so that the launcher and the tests never load torch.  It works
offline; what a GGUF file carries (weights, config, tokenizer, chat template) is all it needs.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Write ``source`` as float32 safetensors, config, tokenizer and chat template.

    transformers marks a model read from GGUF as quantized although its weights are plain floats
    by then, and refuses to save it.  Hence the detour over a fresh model of the same config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    location = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**location)
    dequantized = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32)
    config = dequantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(dequantized.state_dict())
    model.generation_config = dequantized.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main(argv: list[str] | None = None) -> int:
    """Convert ``SOURCE`` into the folder ``TARGET``; exit status 0 when it is complete."""
    parser = argparse.ArgumentParser(prog="kvflow.engine.convert_gguf")
    parser.add_argument("source", type=Path, help="the .gguf file")
    parser.add_argument("target", type=Path, help="an empty or missing folder")
    arguments = parser.parse_args(argv)
    os.environ["HF_HUB_OFFLINE"] = "1"
    convert(arguments.source, arguments.target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
