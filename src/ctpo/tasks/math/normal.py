"""One spelling for what can be written in several ways: unicode characters and LaTeX's cosmetics.

White space keeps its meaning: `1 2` never becomes `12`. Only a thousands separator disappears.
"""

from __future__ import annotations

import re
import unicodedata

OPEN_SET, CLOSE_SET = "⦃", "⦄"
"""Stand for `\\{` and `\\}`, so that plain braces are only LaTeX's groups."""

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n", strict=True))
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi "
    "psi omega"
).split()
_SPOKEN = {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "‒": "-", "﹣": "-", "－": "-", "⁄": "/", "∕": "/", "÷": "/",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "∗": "*", "✕": r"\times ", "⨯": r"\times ",
    "√": r"\sqrt ", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]", "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ",
    "℃": r"^\circ C", "℉": r"^\circ F", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≦": r"\le ",
    "≧": r"\ge ", "≠": r"\ne ", "≡": r"\equiv ", "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ",
    "∖": r"\setminus ", "∅": r"\emptyset ", "⌀": r"\emptyset ", "Ø": r"\emptyset ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "±": r"\pm ", "∓": r"\mp ",
    "→": r"\to ", "⇒": r"\Rightarrow ", "⟨": r"\langle ", "⟩": r"\rangle ", "〈": r"\langle ", "〉": r"\rangle ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "∠": r"\angle ", "△": r"\triangle ",
    "…": r"\ldots ", "∣": "|", "‖": r"\|", "′": "'", "’": "'", "‘": "'", "“": '"', "”": '"', "、": ", ", "，": ", ",
    "。": ".", "．": ".", "｡": ".", "：": ":", "；": ";", "（": "(", "）": ")", "［": "[", "］": "]", "【": "[",
    "】": "]", "％": "%", "＄": "$", "￥": "¥", "ϕ": r"\phi ", "ϵ": r"\epsilon ", "ϑ": r"\theta ", "ς": r"\sigma ",
    "µ": r"\mu ", "𝑒": "e", "ℯ": "e", "∶": ":", "∧": r"\wedge ", "∨": r"\vee ", "¬": r"\neg ",
    "٫": ".", "٬": ",", "٪": "%",
}  # fmt: skip
_THIN = "\u2009\u202f\u00a0\u2007\u2008"  # spaces that part the thousands of a number
_INVISIBLE = dict.fromkeys(
    map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\u2061\u2062\u2063\ufe0e\ufe0f")
)

_THOUSANDS_MARK = re.compile(
    r"(?<=\d)(?:\{,\}|,\s{0,3}\\!|\\,|\\!|\\;|\\:|\{\\,\}|[" + _THIN + r"])\s?(?=\d{3})"
)
_NEW_LINE = re.compile(r"\\\\(?:\[\d{1,3}(?:\.\d)?(?:pt|ex|em|mm)\])?|\\(?:cr|newline)(?![A-Za-z])")
_OVER = re.compile(r"\{([^{}]{1,100})\\(over|choose)(?![A-Za-z])([^{}]{1,100})\}")
_OVER_NAMES = {"over": "frac", "choose": "binom"}
_BARE_FONT = re.compile(r"\\(?:mathrm|mathbf|mathit|boldsymbol|bm)\s?(?=[A-Za-z\d](?![A-Za-z]))")
_REMOVED = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|displaystyle|textstyle"
    r"|scriptstyle|limits|nolimits|boldmath|middle|mathstrut"
    r"|large|Large|LARGE|huge|Huge|bf|rm|it)(?![A-Za-z])|\\(?:text)?color\{[^{}]{1,30}\}|\\!|\\\(|\\\)|\\\[|\\\]|(?<!\\)\$"
)
_SPACES = re.compile(
    r"\\[,;: >]|\\(?:quad|qquad|thinspace|enspace|medspace)(?![A-Za-z])|\\hspace\{[^{}]{0,20}\}|~|\s"
)
_NAMES = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
    "leqslant": "le", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "varnothing": "emptyset", "O": "emptyset",
    "lbrace": OPEN_SET, "rbrace": CLOSE_SET, "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "degree": "^\\circ", "dots": "ldots", "cdots": "ldots",
    "dotsc": "ldots", "rightarrow": "to", "longrightarrow": "to", "backslash": "setminus", "smallsetminus": "setminus",
    "divisionsymbol": "div", "colon": ":", "mathopen": "", "mathclose": "", "reals": "mathbb{R}", "R": "mathbb{R}",
    "varphi": "phi", "varepsilon": "epsilon", "vartheta": "theta", "arcsin": "arcsin", "euro": "€", "texteuro": "€",
    "pounds": "£", "textsterling": "£", "yen": "¥", "cent": "¢", "textdollar": "\\$", "percent": "%", "infin": "infty",
    "lor": "vee", "land": "wedge", "ast": "*", "star": "*", "textdegree": "^\\circ", "prime": "'", "union": "cup",
    "nicefrac": "frac", "sfrac": "frac", "flatfrac": "frac", "minus": "-", "Reals": "mathbb{R}",
    "bigcup": "cup", "bigcap": "cap", "Bbb": "mathbb",
}  # fmt: skip
_NAME = re.compile(r"\\([A-Za-z]+)")
_FONT = re.compile(
    r"\\(?:mathrm|mathbf|mathit|mathsf|mathtt|mathcal|boldsymbol|bm|pmb|textbf|textit|textrm|textsf|texttt|mbox|hbox"
    r"|textnormal|emph|rm|bf|it|underline|text|operatorname\*?|mathop|ensuremath|fbox|f?boxed)\s?\{([^{}]{0,500})\}"
)
_SYMBOL_INSIDE = re.compile(r"\s*(?:[A-Za-z]|[\d.,]+|\\[A-Za-z]+)\s*")
_UNIT_LETTERS = "mgshLlNJWVK"
_UPRIGHT = (r"\text{", r"\mathrm{", r"\textrm{", r"\mbox{", r"\rm{", r"\textnormal{")
_FUNCTION = (
    "sin cos tan cot sec csc arcsin arccos arctan log ln lg exp sqrt gcd lcm max min sinh cosh tanh".split()
)


def clean(answer: str) -> str:
    """The answer with ASCII digits, one spelling of each symbol, and words marked by `\\text{…}`.

    Example:
        clean("−２½")  # r"-2 \\frac{1}{2}"
    """
    text = _ascii(answer).strip()
    if len(text) > 4 and text.startswith("**") and text.endswith("**"):
        text = text[2:-2]
    text = _THOUSANDS_MARK.sub(",", text)
    text = re.sub(r"\{\s*([,:;=<>])\s*\}", r"\1", text)
    text = _NEW_LINE.sub("\ue000", text).replace(r"\{", OPEN_SET).replace(r"\}", CLOSE_SET)
    text = re.sub(r"(?<!\\)\$(?=\s?[-\d.])", r"\\$", text) if _is_money(text) else text
    text = _REMOVED.sub("", text)
    text = _SPACES.sub(" ", text)
    text = _OVER.sub(lambda match: rf"\{_OVER_NAMES[match[2]]}{{{match[1]}}}{{{match[3]}}}", text)
    text = _NAME.sub(_renamed, text)
    text = _BARE_FONT.sub("", _plain_fonts(text))
    text = re.sub(r"\^\s?\{\s?('{1,2})\s?\}", r"\1", text)
    text = text.replace("**", "^").replace("\ue000", r"\\")
    return _trimmed(text)


def _is_money(text: str) -> bool:
    """Whether a `$` is a currency: one `$` alone parts no formula from a text."""
    return text.count("$") - text.count(r"\$") == 1


def _ascii(answer: str) -> str:
    if answer.isascii():
        return answer
    pieces: list[str] = []
    raised = ""  # inside of superscripts "^", inside of subscripts "_"
    for character in answer.translate(_INVISIBLE):
        kind = "^" if character in _SUPERSCRIPTS else "_" if character in _SUBSCRIPTS else ""
        if kind != raised:
            pieces.append("}" if raised else "")
            pieces.append(kind + "{" if kind else "")
            raised = kind
        pieces.append(_SUPERSCRIPTS.get(character) or _SUBSCRIPTS.get(character) or _plain(character))
    return "".join([*pieces, "}" if raised else ""])


def _plain(character: str) -> str:
    if character.isascii() or character in _THIN:
        return character
    if character in _SPOKEN:
        return _SPOKEN[character]
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    name = unicodedata.name(character, "")
    if name.startswith("VULGAR FRACTION"):
        top, _, bottom = unicodedata.normalize("NFKC", character).partition("⁄")
        return rf" \frac{{{top}}}{{{bottom}}}" if bottom else character
    if name.startswith("GREEK "):
        letter = name.rpartition(" ")[2].lower()
        letter = "lambda" if letter == "lamda" else letter
        if letter in _GREEK:
            return f"\\{letter.title() if ' CAPITAL ' in name else letter} "
    if character.isspace():
        return " "
    plain = unicodedata.normalize("NFKC", character)
    return plain if plain.isascii() and ("FULLWIDTH" in name or "MATHEMATICAL" in name) else character


def _renamed(match: re.Match[str]) -> str:
    name = match[1]
    other = _NAMES.get(name)
    if other is None:
        return match[0]
    return f"\\{other}" if other[:1].isalpha() else f"{other}"


def _plain_fonts(text: str) -> str:
    for _ in range(4):  # fonts inside of fonts
        changed = _FONT.sub(_without_font, text)
        if changed == text:
            break
        text = changed
    return text.replace("\ue001", r"\text{")


def _without_font(match: re.Match[str]) -> str:
    content = match[1]
    if "boxed" in match[0][:8] or match[0].startswith(r"\fbox"):
        return content
    word = content.strip()
    if word in _FUNCTION:
        return f"\\{word} "
    is_unit = len(word) == 1 and word in _UNIT_LETTERS and match.start() > 0 and match[0].startswith(_UPRIGHT)
    if is_unit:
        return "\ue001" + content + "}"
    if _SYMBOL_INSIDE.fullmatch(content) or not re.search("[A-Za-z]", content):
        return content
    return "\ue001" + content.replace("\\ ", " ") + "}"


def _trimmed(text: str) -> str:
    text = re.sub(r" +", " ", text).strip()
    while text and text[-1] in ".,;:" and not text.endswith(("\\;", "\\,", "\\:", "..")):
        text = text[:-1].rstrip()
    return text.removesuffix("\\\\")
