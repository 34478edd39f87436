"""Golden bytes for the weight formats, from the PyPI package `gguf` (an independent decoder).

    pip install gguf numpy
    python xtask/oracle/formats.py crates/kernels/tests/data/formats

Writes one little-endian file per format, FORMAT.bin:
    u32 decode_bytes, u32 encode_values (0 where gguf has no encoder)
    decode_bytes bytes of blocks, then what they decode to, as f32
    encode_values f32 values, then the bytes they encode to
Block bytes are random in every bit, except that half-precision fields are kept finite.
"""

import struct
import sys
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import quants

# format: (type, block bytes, offsets of half-precision fields, blocks)
FORMATS = {
    "BF16": (T.BF16, 2, [], 512),
    "Q8_0": (T.Q8_0, 34, [0], 64),
    "Q4_0": (T.Q4_0, 18, [0], 64),
    "Q4_1": (T.Q4_1, 20, [0, 2], 64),
    "Q4_K": (T.Q4_K, 144, [0, 2], 10),
    "Q5_K": (T.Q5_K, 176, [0, 2], 10),
    "Q6_K": (T.Q6_K, 210, [208], 10),
}
HAS_ENCODER = {"BF16", "Q8_0", "Q4_0", "Q4_1"}


def random_blocks(rng, block_bytes, halves, count):
    blocks = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for offset in halves:
        half = rng.standard_normal(count).astype(np.float16)
        half[0] = np.float16(6e-8)  # the smallest subnormal
        blocks[:, offset : offset + 2] = half.view(np.uint8).reshape(count, 2)
    return blocks


def values_to_encode(rng):
    """Rows of 32 of every character: plain, tiny, huge, one-sided, constant, zero, ties."""
    rows = [rng.standard_normal(32) * scale for scale in (1, 1e-6, 1e3, 0.02)]
    rows += [np.abs(rng.standard_normal(32)), -np.abs(rng.standard_normal(32))]
    rows += [np.zeros(32), np.full(32, 0.75), np.full(32, -3.0), np.arange(32) - 15.5]
    rows += [np.arange(32) % 9 - 4.0, np.where(np.arange(32) == 7, -8.0, 0.5)]
    rows += [rng.standard_normal(32) ** 3 for _ in range(20)]
    return np.asarray(rows, dtype=np.float32)


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for index, (name, (kind, block_bytes, halves, count)) in enumerate(FORMATS.items()):
        rng = np.random.default_rng(1000 + index)
        blocks = random_blocks(rng, block_bytes, halves, count)
        if name == "BF16":  # no NaNs: their payload is nobody's business
            blocks[:, 1] &= 0xBF
        decoded = quants.dequantize(blocks.reshape(1, -1), kind).astype("<f4")
        values = values_to_encode(rng) if name in HAS_ENCODER else np.zeros((0, 32), np.float32)
        encoded = quants.quantize(values, kind) if len(values) else np.zeros(0, np.uint8)
        head = struct.pack("<II", blocks.size, values.size)
        body = blocks.tobytes() + decoded.tobytes() + values.astype("<f4").tobytes()
        (out / f"{name}.bin").write_bytes(head + body + np.ascontiguousarray(encoded).tobytes())


main()
