"""The texts that tokenizers are compared on: written and generated here, so free of any licence."""

import unicodedata

WRITTEN = [
    "", " ", "  ", "\n", "\r\n", "\t", "\0", "a", "Hello, world!", "Hello  world", " Hello", "Hello ",
    "iPhone", "XMLHttpRequest", "  5", "!\n/\n//x", "١٢٣٤", "a \r\n b", "x\0y", "I'm, you'RE, we'Ve; it'S ſ 'ſ",
    "don't can't won't I'd she'll they've", "''s 's's '", "3.14159 1000000 12 123 1234 ½ ² Ⅷ ৪৫৬",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "def f(x: int) -> str:\n    \"\"\"Doc.\"\"\"\n    if x > 10:\n\t\treturn f'{x!r:>10}'\n    return None\n",
    "fn main() {\r\n    let v: Vec<u8> = (0..=255).collect();\r\n    println!(\"{:?}\", v);\r\n}\r\n",
    "#include <stdio.h>\nint main(void) { for (int i = 0; i < 10; ++i) printf(\"%d\\n\", i); return 0; }",
    "SELECT * FROM t WHERE a LIKE '%x%' AND b <> 0x1F ORDER BY c DESC; -- done",
    "<div class=\"a b\">&nbsp;<!-- c --></div>\n<br/>\n\n\n</body>",
    "{\"key\": [1, 2.5e-3, null, true], \"ключ\": \"значение\", \"emoji\": \"\\ud83d\\ude00\"}",
    "https://example.com/a/b?c=d&e=f#g user@example.org C:\\Users\\x\\file.txt /usr/local/bin",
    "$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$",
    "Смешарики и Ёлка, съешь же ещё этих мягких французских булок.",
    "Ελληνικά: Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.", "ὠσὶν ᾿Αθήνας ῥέω ΐ",
    "日本語のテキストです。東京都に行きました。カタカナ、ひらがな、漢字。", "中文文本：今天天气很好，我们去公园吧！２０２６年１１月",
    "한국어 텍스트입니다. 오늘은 날씨가 좋네요.", "ภาษาไทยไม่มีช่องว่างระหว่างคำ", "မြန်မာဘာသာ ភាសាខ្មែរ ພາສາລາວ",
    "العربية: مرحبا بالعالم، كيف الحال؟ ١٢٣٤٥", "עברית: שלום עולם", "فارسی: می‌خواهم بروم", "हिन्दी: नमस्ते दुनिया, क्षत्रिय।",
    "বাংলা: আমার সোনার বাংলা", "தமிழ்: வணக்கம் உலகம்", "ქართული ენა", "Հայերեն լեզու", "አማርኛ ቋንቋ", "ᏣᎳᎩ ᓀᐦᐃᔭᐍᐏᐣ",
    "Tiếng Việt: Xin chào thế giới, Đặng", "Türkçe: İstanbul'da ığdır", "Straße, größer, ǅ ǆ Ǆ, ﬁ ﬂ, Å Å Å ñ ñ",
    "Zażółć gęślą jaźń. Příliš žluťoučký kůň.", "Íslenska: þetta er ágætt",
    "😀😃😄 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷 1️⃣ ❤️ ☺︎", "👨🏿‍💻 works with 🦀 and 🐍!", "\u200b\u200c\u200d\ufeff zero\u00adwidth\u2060",
    "a\u0301e\u0301 z\u0324\u0308\u0335 \u0301start", "Z\u0351\u036b\u0343\u0363\u034c\u034e\u0345a\u0350lgo" * 4,
    "\u00a0\u1680\u2000\u2003\u2028\u2029\u202f\u205f\u3000 spaces \u0085 end",
    " \t \n \r \x0b \x0c \x1c \x1f mixed", "line1\nline2\r\nline3\rline4\n\n\nline5\n \n  \n\t\n",
    "trailing   ", "   leading", "a" + " " * 50 + "b", " " * 127, "\n" * 40, "\t" * 17 + "x", "a\n   \n   b",
    "=" * 80, "-" * 33 + "\n", "_" * 100, "!?" * 20, "....,,,,;;;;", "`````code`````", "#" * 7 + " Title",
    "a" * 200, "ab" * 100, "0" * 50, "é" * 60, "好" * 40, "\U0001f600" * 20, "\u0301" * 30,
    "CamelCaseAndPascalCase snake_case SCREAMING_CASE kebab-case mixedUPPERlower ABCdef",
    "NASA's HTTPServer2Go iOS17 GPT-4o x86_64 C++20 F# 3D-printed", "McDonald's O'Neil rock'n'roll 'tis '90s",
    "\ud7ff\ue000\ufffd\U0010ffff\U000e0001 noncharacters \ufdd0\ufffe", "�� replacement",
    "▁already▁escaped ▁ ▁▁", "Ġspelled ĠĊ byteĉlevel", "<0x0A> <0xFF> <0xGG>",
    "<|im_start|>user\nhello<|im_end|>\n", "<|im_start|><|im_end|><|endoftext|>", "x<|im_end|>y  <|im_start|>  z",
    "<|im_start", "|im_end|>", "<s>[INST] hi [/INST]</s>", "<unk><s></s>", "</s", " <s> ", "a<s>b </s> c",
    "<think>hmm</think>", "def defx xdef def_ (def) def", "Ångström Ångström Ångström", "<start_of_turn>user\n\n\nhi",
    "[TOOL_CALLS][{\"name\": \"f\"}]", "<|user|>\n<|assistant|>", "<repo_name>x<file_sep>y<gh_stars>",
    "Once upon a midnight dreary, while I pondered, weak and weary,\nOver many a quaint and curious volume",
    "1 + 1 = 2; 2 × 3 ≤ 6 ∧ ∀x∈ℝ ∃y: x² ≥ −y ⇒ ⊥ → ∞ ≈ π·√2 ± ∑∏∫", "€100 £20 ¥3000 ₹5 $1.99 50% #tag @user ~/x ^_^",
    "“Quotes” ‘single’ «guillemets» „low“ —dash– …ellipsis • bullet © ® ™ § ¶ † ‡ ° µ",
    "｡｢｣､･ｱｲｳ ＡＢＣａｂｃ１２３！～", "㍿㌀①⑳Ⓐ⒜ ﷽ ﷺ", "𝕳𝖊𝖑𝖑𝖔 𝓦𝓸𝓻𝓵𝓭 𝟙𝟚𝟛 𐍈𐌰𐌿 𒀀𒁀 𓀀𓂀 𠀀𠮷",
    "ab\u0000\u0001\u0002\u007f\u0080\u009f", "The\u2019s end\u2019ll I\u2019m", "word\u3000word　。\u3002",
]

RANGES = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF),
          (0xE00, 0xFFF), (0x1E00, 0x206F), (0x20A0, 0x2BFF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
          (0xAC00, 0xD7A3), (0xF900, 0xFDCF), (0xFE00, 0xFFEF), (0x10000, 0x103FF), (0x1D400, 0x1D7FF),
          (0x1F300, 0x1FAFF), (0x0, 0x1F)]
JOINTS = [" ", " ", " ", "  ", "\n", "\n\n", "\r\n", "\t", ", ", ". ", "'s ", "-", "_", "/", "", "    "]
WORDS = ("the of and model expert token router layer weight sum gate Mixture mixture-of-experts attention "
         "Übung naïve façade Москва Київ 東京 大学 서울 مدينة שלום नमस्ते data 42 1999 0xff 3.5 e-mail "
         "HTTP JSON Rust main() foo_bar fooBar [x] {y} <z> \"q\" `c` a*b x=y; //comment # I'll you're").split()


def generated():
    state = 0x9E3779B97F4A7C15

    def next_number(below):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        return (state >> 33) % below

    texts = []
    for _ in range(90):
        parts = []
        for _ in range(20 + next_number(120)):
            parts.append(WORDS[next_number(len(WORDS))])
            parts.append(JOINTS[next_number(len(JOINTS))])
        texts.append("".join(parts))
    for index in range(70):
        chars = []
        for _ in range(10 + next_number(80)):
            low, high = RANGES[next_number(len(RANGES)) if index % 2 else index % len(RANGES)]
            for _ in range(1 + next_number(4)):
                char = chr(low + next_number(high - low + 1))
                # Libraries know different versions of Unicode; unassigned characters tell nothing.
                # U+0EBA got its combining class later than some normalisers were built.
                known = unicodedata.category(char) != "Cn" and char != "\u0eba"
                chars.append(char if known else "?")
            if next_number(4) == 0:
                chars.append(JOINTS[next_number(len(JOINTS))])
        texts.append("".join(chars))
    return texts


def corpus():
    return [text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
            for text in WRITTEN + generated()]
