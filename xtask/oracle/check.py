#!/usr/bin/env python3
"""Runs `moeba logits` over folders made by families.py and compares with their references.

    check.py MOEBA_BINARY DIRECTORY [...] [--tolerance 1e-3] [-v]

Every folder below the directories that holds a reference.safetensors is tried from both
containers. Per container: the largest difference of a logit, and whether the greedy continuation
is reproduced; across the two containers, how much they differ from one another. Positions whose
router was within 1e-5 of choosing otherwise are told apart, since there rounding may decide.

Needs: pip install numpy safetensors
"""
import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def run(binary: Path, model: Path, tokens: np.ndarray) -> np.ndarray:
    """The logits [tokens, vocab] that the binary computes."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "logits.safetensors"
        listed = ",".join(map(str, tokens.tolist()))
        done = subprocess.run([binary, "logits", "-m", model, "--tokens", listed, "-o", out],
                              capture_output=True, text=True, timeout=300)
        if done.returncode:
            raise RuntimeError(f"exit {done.returncode}: {done.stderr.strip()[-300:]}")
        return load_file(out)["logits"]


def sure(reference: dict) -> np.ndarray:
    """Which positions [T] no close call of a router, there or earlier, can have changed."""
    count = len(reference["tokens"])
    if "router_gap" not in reference:
        return np.ones(count, bool)
    close = (reference["router_gap"] < 1e-5).any(axis=0)
    return np.cumsum(close) == 0


def check(binary: Path, folder: Path, tolerance: float) -> tuple[str, bool]:
    """One line about a folder, and whether all is well."""
    reference = load_file(folder / "reference.safetensors")
    continued = np.concatenate([reference["greedy_prompt"], reference["greedy"]])
    containers = {"safetensors": folder}
    if (folder / "model.gguf").exists():
        containers["gguf"] = folder / "model.gguf"
    line, well, seen = "", True, {}
    for name, path in containers.items():
        try:
            seen[name] = run(binary, path, reference["tokens"])
            again = run(binary, path, continued)
        except (RuntimeError, subprocess.TimeoutExpired) as failure:
            return f"{line} {name}: {failure}", False
        gap = np.abs(seen[name] - reference["logits"]).max(axis=1)[sure(reference)]
        largest = float(gap.max()) if gap.size else 0.0
        start = len(reference["greedy_prompt"]) - 1
        greedy = (again[start:-1].argmax(axis=1) == reference["greedy"]).all()
        well &= bool(largest <= tolerance and greedy)  # NaN fails this
        line += f" {name} {largest:.1e} greedy {'same' if greedy else 'DIFFERS'}"
    if len(seen) == 2:
        line += f" containers differ {np.abs(seen['gguf'] - seen['safetensors']).max():.1e}"
    return line, well


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=Path)
    parser.add_argument("directories", type=Path, nargs="+")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("-v", action="store_true", help="a line for folders that pass, too")
    arguments = parser.parse_args()
    passed = failed = 0
    for root in arguments.directories:
        for reference in sorted(root.glob("**/reference.safetensors")):
            line, well = check(arguments.binary, reference.parent, arguments.tolerance)
            passed, failed = passed + well, failed + (not well)
            if arguments.v or not well:
                verdict = "ok  " if well else "FAIL"
                print(verdict, reference.parent.relative_to(root), line, flush=True)
    print(f"{passed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
