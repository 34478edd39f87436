#!/usr/bin/env python3
"""Makes the checkpoints and reference outputs that every model family is tested against.

The truth is transformers, in float32 with eager attention, on tiny checkpoints with seeded random
weights. A folder made here holds

    config.json, model*.safetensors   as a Hugging Face repository would have them
    model.gguf                        the same weights in llama.cpp's conventions
    reference.safetensors             tokens [T], logits [T, vocab] f32, greedy_prompt, greedy,
                                      and for a MoE router_ids [moe_layers, T, k] by falling
                                      weight, router_gap [moe_layers, T]: how close the choice was

    families.py OUTDIR [--family NAME ...]     the committed fixtures (tests/models)
    families.py --sweep N OUTDIR [--seed S]    N random shapes of each family, never committed

Needs: pip install torch transformers safetensors gguf numpy
"""
import argparse
import random
import sys
from pathlib import Path

from checkpoint import Case, make_checkpoint
from shapes import COMMITTED, LATER, random_case
from to_gguf import CONVERTIBLE, write_gguf


def make(case: Case, directory: Path) -> str:
    """Writes one folder, and says in a line what it holds."""
    directory.mkdir(parents=True, exist_ok=True)
    report = make_checkpoint(case, directory)
    if case.family in CONVERTIBLE and case.gguf:
        write_gguf(case, directory)
        report += f"  gguf {(directory / 'model.gguf').stat().st_size // 1024} KiB"
    return report


def sweep(count: int, seed: int, out: Path, wanted: list[str] | None) -> int:
    """Writes `count` random shapes of each family; a shape transformers refuses is drawn again."""
    failures = 0
    for family in wanted or COMMITTED:
        made, draw = 0, 0
        while made < count and draw < 4 * count:
            chooser = random.Random(f"{family}/{seed}/{draw}")
            draw += 1
            case = random_case(family, chooser, seed=1000 * seed + draw)
            try:
                print(f"{family}-{made:03}", make(case, out / f"{family}-{made:03}"), flush=True)
                made += 1
            except ValueError as refusal:
                print(f"{family}: drawn again, {refusal}", file=sys.stderr)
        failures += made < count
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sweep", type=int, metavar="N")
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", nargs="*")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.sweep:
        return sweep(arguments.sweep, arguments.seed, arguments.out, arguments.family)
    known = {**COMMITTED, **LATER}
    for family in arguments.family or COMMITTED:
        case = known[family]
        print(family, make(case, arguments.out / family), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
