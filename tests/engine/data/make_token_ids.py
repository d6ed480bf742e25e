r"""Write the reference token ids that the tokenizer tests compare with.

The reference is llama.cpp's own tokenizer, which reads the vocabulary, the merges and the kind of
pre-tokenizer from the GGUF file. It shares no code with the tokenizer of the engine, so agreement on these
texts says that the engine's conversion of the GGUF tokenizer is right.

Run it only to change the corpus or the reference; it needs llama-cpp-python and the GGUF file of the model:

    pip install llama-cpp-python
    python tests/engine/data/make_token_ids.py SmolLM2-135M-Instruct.Q4_1.gguf \
        tests/engine/data/smollm2_token_ids.json

The output is stored in the repository, so that the tests need no llama.cpp. It holds one case a line:

    {"text": ..., "ids": [...], "special": false}

No beginning-of-sequence token is added. With "special" false, text that looks like a special token is plain
text (`split_special_tokens=True` in transformers); with "special" true, it stands for that token.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import llama_cpp

DIGITS = [
    "0", "007", "1234", "12345", "1234567890", "3.14159265358979323846", "-273.15", "1e10", "1.6e-19",
    "50%", "1,000,000", "1 000 000", "1_000_000", "12 34 56", "12  34", "  12  ", "1\n2\n3", "2024-02-29",
    "2024-02-29T23:59:59.999Z", "9am-5pm", "the 1990s", "'90s", "1st 2nd 3rd", "$19.99", "€1.234,56",
    "¥1200", "+44 20 7946 0958", "(555) 010-9999", "0xDEADBEEF", "0x1F", "#ff8800", "deadbeef0123",
    "550e8400-e29b-41d4-a716-446655440000", "v1.2.3", "1.2.3-rc.4+build.5", "Python 3.11.7", "192.168.0.1",
    "2001:db8::ff00:42:8329", "abc123", "123abc", "a1b2c3", "x86_64", "H2O", "sha256sum",
    "In 1969, 2 men walked on the Moon; 50 years later, 0 had returned.", "2 + 2 = 4, 10 - 3 = 7",
    "1.2.3.4.5.6.7.8.9", "11111111111111111111",
    # digits that are not ASCII, and numbers that are not digits
    "٠١٢٣٤٥٦٧٨٩", "०१२३४५६७८९", "๐๑๒๓", "１２３", "x² + y³ = z⁴", "¼½¾", "Louis ⅩⅣ", "①②③", "H₂O", "10⁻³",
    "一二三", "𝟘𝟙𝟚", "a٣b", "2½",
]  # fmt: skip

ENGLISH = [
    "a", "Hello, world!", " Hello world", "The quick brown fox jumps over the lazy dog.",
    "tHe QuIcK bRoWn FoX", "What is the capital of France?", "The capital of France is Paris.",
    "antidisestablishmentarianism", "CamelCaseIdentifier", "SCREAMING_SNAKE_CASE",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "e.g. i.e. etc. U.S.A. Ph.D.", "Mr. O'Neill-Smith, Jr.",
    "It was the best of times, it was the worst of times, it was the age of wisdom.",
    "One sentence. Another sentence!  A third one?\nA fourth, on its line.\n\nA fifth, after a blank line.",
]  # fmt: skip

CONTRACTIONS = [
    "I'm", "don't", "o'clock", "y'all'd've", "I'M", "DON'T", "'s", " 's", "' s", "''s", "'tis", "'re're",
    "I’m", "it`s", "'quoted'", "rock 'n' roll", "1's and 0's", "x'll'm",
    "We'll see what they've done; it's not what I'd have thought you're doing, but don't mind.",
]  # fmt: skip

WHITESPACE = [
    "", " \n", " \n ", "\t\n", "\t \t", "\r", "\r\n", "a\vb\fc", " a", "   a   ", "a  b", "a   b", "a\tb",
    "a \tb", "a\t b", "a\nb", "a\n\n\nb", "a \n b", "a  \n  b", "a\r\nb", "a\r\n  b", "a\rb",
    "line one\r\nline two\r\nline three\r\n", "trailing newlines\n\n\n", "\n\n\nleading newlines",
    "  1  2  3  ", " . ", "a  .  b", "a \n\n  !",
    # spaces and invisible characters that are not ASCII
    "a\u00a0b", "\u00a0\u00a0a", "你好\u3000世界", "1\u2009000", "a\u2002b\u2003c", "a\u2028b", "a\u0085b",
    "a\u200bb", "\ufeffbyte order mark", "soft\u00adhyphen",
]  # fmt: skip

PUNCTUATION = [
    "…", "?!?!?!", "---", "===", "<<>>", "(())", "{}[]()<>", "```", "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "a!", "a, b, c", "a,b,c", "( a )", "“curly” ‘quotes’", "«guillemets»", "¿Qué?", "====== title ======",
    "----------------------------------------", "\\n is not \n", "a/b\\c", "§ 5 ¶ 2", "© ® ™",
    "← ↑ → ↓ ⇒", "≤ ≥ ≠ ≈ ∞", "∀x∈ℝ: x²≥0", "┌─┐│└┘", "￠￡￥", "₿", "__init__", "<|>",
]  # fmt: skip

LINKS = [
    "https://example.com", "https://www.example.com/path/to/page.html?query=1&b=2#fragment",
    "someone+tag@example.co.uk", "see https://example.com/a%20b.", "(https://example.com/wiki/A_(b))",
    "http://localhost:8000/v1/chat/completions", "C:\\Users\\name\\file.txt", "/usr/local/bin/python3",
    "@handle", "data:text/plain;base64,SGVsbG8gd29ybGQ=", "https://пример.рф/путь", "www.例え.jp",
]  # fmt: skip

CODE = [
    "def f(x):\n    return x + 1\n",
    "class A(B):\n    def __init__(self, n: int = 0) -> None:\n        self.n = n  # count\n\n\n",
    "for i in range(10):\n\tif i % 2 == 0:\n\t\tprint(i)\n\telse:\n\t\tcontinue\n",
    "print(f\"{name!r:>10} costs {price:.2f}\")",
    "import numpy as np\nx = np.zeros((3, 4), dtype=np.float32)\nx[1:3, ::2] *= 2\n",
    "#include <stdio.h>\n\nint main(void)\n{\n\tprintf(\"%d\\n\", 42);\n\treturn 0;\n}\n",
    "template <typename T> std::vector<std::pair<int, T>> f(const T& t) { return {{1, t}}; }",
    "fn main() {\n    let v: Vec<u8> = vec![1, 2, 3];\n    println!(\"{:?}\", v);\n}\n",
    "func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {\n\tdefer s.mu.Unlock()\n}\n",
    "const f = async (x) => { await g(x?.y ?? 0); return `${x}`; };",
    "interface P<T> { readonly k: keyof T; v?: T[keyof T] | null }",
    "public static void main(String[] args) {\n    System.out.println(\"hi\");\n}\n",
    "SELECT a.id, COUNT(*) AS n FROM t a LEFT JOIN u b ON a.id = b.id WHERE b.x IS NULL GROUP BY 1;",
    "#!/bin/sh\nset -eu\nfor f in *.txt; do\n  echo \"$f: $(wc -l < \"$f\")\" >> out.log 2>&1\ndone\n",
    "all: build\n\nbuild:\n\t$(CC) -O2 -o $@ $^\n\n.PHONY: all build\n",
    "<!DOCTYPE html>\n<html lang=\"en\">\n  <p class='a b'>\n    x &amp; y&nbsp;&#8364;\n  </p>\n</html>",
    ".a:hover > b::after { color: #fff; margin: 0 auto 1.5em; }",
    "main :: IO ()\nmain = mapM_ (putStrLn . show) $ filter even [1..10]\n",
    "(defun fact (n) (if (<= n 1) 1 (* n (fact (- n 1)))))",
    "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n-old\n+new\n same\n",
    "Traceback (most recent call last):\n  File \"<stdin>\", line 1, in <module>\nKeyError: 'x'",
    "if (a && b || !c) { d ^= ~e << 2; }", "x->y->z", "^[a-z]+(?:\\d{2,3}|\\s*)$", "s/foo\\/bar/baz/g",
    "%s %d %05.2f%%", "        deeply indented\n                more\n            less\n",
    "\t\t\ttabs\n\t\t\t\tmore\n\t \tmixed\n",
]  # fmt: skip

DOCUMENTS = [
    "{\"a\":1,\"b\":[true,false,null],\"c\":{\"d\":-1.5e-3}}",
    "{\n  \"name\": \"value\",\n  \"list\": [\n    1,\n    2\n  ]\n}\n", "[\"\\u00e9\", \"\\n\", \"\\\"\"]",
    "key: value\nlist:\n  - one\n  - two: 2\n", "[section]\nkey = \"value\" # comment\n",
    "a,b,c\n1,2,3\n\"x, y\",,\n",
    "# Title\n\nSome *emphasis*, **bold** and `code`.\n\n- item\n  - nested\n1. first\n2. second\n",
    "| a | b |\n|---|:-:|\n| 1 | 2 |\n", "```python\nprint(1)\n```\n", "- [x] done\n- [ ] to do\n",
    "\\frac{1}{2} \\sum_{i=0}^{n} x_i^2", "\\begin{align}\n  a &= b \\\\\n  c &= d\n\\end{align}",
    "$$\\int_0^\\infty e^{-x^2}\\,dx = \\frac{\\sqrt{\\pi}}{2}$$", "\\section*{Intro}~\\cite{a2020}",
    "Dear Sir or Madam,\n\n\tThank you.\n\nYours,\nA. B.\n", "Q: 2+2?\nA: 4\n\nQ: 3+3?\nA:",
    "1. a\n2. b\n10. c\n",
]  # fmt: skip

EMOJI = [
    "😀😀😀", "Hi 😀!", " 😀", "👍🏽", "👍🏻👍🏿", "❤️", "1️⃣2️⃣3️⃣", "🇫🇷", "🇯🇵🇩🇪🇺🇸",
    "🏴\u200d☠️", "🏳️\u200d🌈", "👨\u200d👩\u200d👧\u200d👦", "👩🏽\u200d💻", "🧑\u200d🚀 in space",
    "🐻\u200d❄️", "👩\u200d❤️\u200d💋\u200d👨",
    "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f", "🤖🚀✨🔥💯", "text🎉text",
    "¯\\_(ツ)_/¯", "(╯°□°)╯︵ ┻━┻", "🫠",
]  # fmt: skip

SCRIPTS = [
    # Latin with diacritics
    "naïve façade", "Ünïcödé", "Straße", "Žluťoučký kůň úpěl ďábelské ódy", "İstanbul ılık", "Tiếng Việt",
    "Zażółć gęślą jaźń", "Árvíztűrő tükörfúrógép", "ǅ ǆ ª º", "Ｆｕｌｌｗｉｄｔｈ", "ᵗⁱⁿʸ", "𝕳𝖊𝖑𝖑𝖔",
    "Ọjọ́ dára", "IPA: /ˈtʃɛɹi/",
    # Cyrillic, Greek, Armenian, Georgian
    "Привет, мир!", "Съешь ещё этих мягких французских булок, да выпей чаю.", "Київ — столиця України",
    "В 1961 году", "Γειά σου Κόσμε", "ὦ ἄνδρες Ἀθηναῖοι", "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "Բարեւ աշխարհ", "გამარჯობა",
    # right to left
    "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "عام ٢٠٢٤", "شلوم 123 abc", "می\u200cخواهم", "؟،؛", "שָׁלוֹם",
    "abc שלום def", "\u200fימין\u200e left",
    # Indic
    "नमस्ते दुनिया", "हिन्दी में १२३", "क\u094d\u200dष", "वाह! क्या बात है।", "বাংলা ভাষা", "தமிழ் மொழி",
    "తెలుగు", "മലയാളം",
    # South-east Asian, Tibetan, Ethiopic
    "สวัสดีชาวโลก", "ภาษาไทย ๑๒๓", "น้ำ", "မြန်မာ", "ខ្មែរ", "ሰላም ልዑል",
    # Chinese, Japanese, Korean
    "你好,世界。", "繁體中文", "我有3个苹果和12个梨。", "中文English混排", "𠮷野家", "こんにちは世界",
    "私は2024年に東京へ行きました。", "が vs か\u3099", "パーティー〜", "안녕하세요 세계", "한국어로 10번",
    "\u1112\u1161\u11ab\u1100\u1173\u11af", "ㅋㅋㅋㅋ",
    # other planes and rare scripts
    "𓀀𓁐", "𝄞 music", "ᏣᎳᎩ", "ᐃᓄᒃᑎᑐᑦ",
]  # fmt: skip

COMBINING = [
    "e\u0301", "cafe\u0301", "a\u0308o\u0308u\u0308", " \u0301", "\u0301a",
    "Z\u0351\u036b\u0343a\u0329\u0317l\u034d\u0318g\u0321\u0353o\u035f", "1\u0332", "!\u0338=",
    "o\u0302\u0301 \u1ed1", "K\u212a\u00c5\u212b", "q\u0307\u0323 q\u0323\u0307", "a\u20ddb", "ё е\u0308",
]  # fmt: skip

CONTROL = [
    "a\x00b", "\x1b[31mred\x1b[0m", "a\x7fb", "\x01\x02\x03", "\ufffd", "\ufffe\uffff", "\ue000 private",
    "\u202eabc\u202c", "\U000e0001",
]  # fmt: skip

MIXED = [
    "Order #4521: 3 × café au lait @ €2.80 = €8.40 (paid 12:04) ✅",
    "Hello 你好 Привет مرحبا שלום नमस्ते สวัสดี こんにちは 안녕 👋",
    "if (größe > 10) { rückgabe = \"ja\"; } // größer als 10?",
    "the temperature was -40°C (= -40°F) on 5 Jan.\tWind: 12km/h\n",
    "Don't pay $1,000,000 for v2.0 — it's 100% free at https://example.com/v2?x=1!",
    "User's id=42;name=\"O'Brien\";tags=[a,b,c]\r\n\r\n", "naïve_función(λ=0.5)\n\t→ 'σ²=1.0e-5'",
    "A1:B2,$C$3!D4", "Я купил 5 яблок за 100₽ 😋", "東京は35°Cです。\n\n  暑い!!",
    "RT @user: lol 😂😂 #fun https://t.example/xYz123", "…and then?!  \n",
]  # fmt: skip

LOOKALIKES = [
    "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|>", "a<|im_end|>b", "<|im_start|", "<repo_name>x",
]  # fmt: skip

SPECIAL = [
    "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is 12 + 345?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\nHi, how can I help?<|im_end|>\n"
    "<|im_start|>user\nTell me a joke.<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\n  def f(x):\n\treturn 10 * x  \n<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nПривет, 你好, مرحبا 👋🏽!<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>", "<|endoftext|>",
    "Hello<|endoftext|>World", "a <|im_end|> b", "<|im_start|><|im_start|> <|im_end|>\n\n<|im_end|>",
    "<|im_start|>user\nwhat does <|im_end mean?<|im_end|>\n", "1<|im_end|>2",
]  # fmt: skip


def generated() -> Iterator[str]:
    """Texts made by rule: long numbers, runs of whitespace, a digit between all kinds of neighbours."""
    for power in (10, 25, 50, 100):
        yield str(3**power)
    for n in (1, 2, 3, 4, 8, 17):
        yield " " * n
        yield "\n" * n
        yield "\t" * n
    for n in (2, 3, 4, 8, 16):
        yield "x" + " " * n + "y" + " " * n + "1" + " " * n + "."
        yield "x:\n" + " " * n + "y\n" + " " * n + "1\n"
    sides = ("a", " ", "\n", ".", "'s", "é", "中", "5")
    for left in sides:
        yield "|".join(left + "7" + right for right in sides)
    yield "".join(map(chr, range(0x20, 0x7F)))
    yield "".join(map(chr, range(0xA0, 0x180)))
    yield " ".join(map(str, range(0, 1200, 37)))


def corpus() -> Iterator[tuple[str, bool]]:
    """Every text, each once, with whether special tokens in it are parsed."""
    groups = (
        DIGITS, ENGLISH, CONTRACTIONS, WHITESPACE, PUNCTUATION, LINKS, CODE, DOCUMENTS, EMOJI, SCRIPTS,
        COMBINING, CONTROL, MIXED, LOOKALIKES, generated(),
    )  # fmt: skip
    yield from ((text, False) for text in dict.fromkeys(text for group in groups for text in group))
    yield from ((text, True) for text in SPECIAL)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write llama.cpp's token ids of the test corpus.")
    parser.add_argument("model", type=Path, help="the GGUF file")
    parser.add_argument("output", type=Path, help="the JSON file to write")
    options = parser.parse_args()

    llm = llama_cpp.Llama(str(options.model), vocab_only=True, verbose=False)
    head = json.dumps(
        {"tokenizer": f"llama.cpp via llama-cpp-python {llama_cpp.__version__}", "model": options.model.name}
    )
    cases = []
    for text, special in corpus():
        ids = llm.tokenize(text.encode(), add_bos=False, special=special)
        cases.append(json.dumps({"text": text, "ids": ids, "special": special}, separators=(",", ":")))
    options.output.write_text(
        head[:-1] + ', "cases": [\n' + ",\n".join(cases) + "\n]}\n", encoding="ascii", newline="\n"
    )


if __name__ == "__main__":
    main()
