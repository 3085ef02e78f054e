"""Units of measurement, currencies, and the nouns that stand after a number."""

from __future__ import annotations

import re

_PREFIXED = {
    "m": ("meter", "metre"), "g": ("gram", "gramme"), "L": ("liter", "litre"), "s": ("second",), "W": ("watt",),
    "J": ("joule",), "N": ("newton",), "V": ("volt",), "A": ("ampere", "amp"), "Hz": ("hertz",), "Pa": ("pascal",),
    "B": ("byte",), "mol": ("mole",),
}  # fmt: skip
_PREFIXES = {
    "k": "kilo",
    "c": "centi",
    "m": "milli",
    "d": "deci",
    "M": "mega",
    "G": "giga",
    "n": "nano",
    "u": "micro",
}
_NAMES = {
    "in": "inch inches", "ft": "foot feet", "yd": "yard yards yds", "mi": "mile miles", "min": "minute minutes mins",
    "h": "hour hours hr hrs", "day": "day days", "week": "week weeks wk wks", "month": "month months",
    "year": "year years yr yrs", "lb": "pound pounds lbs", "oz": "ounce ounces", "ton": "ton tons tonne tonnes",
    "$": "$ dollar dollars usd buck bucks", "€": "€ euro euros eur", "£": "£ gbp", "¥": "¥ yen yuan jpy cny rmb",
    "₹": "₹ rupee rupees inr", "¢": "¢ cent cents", "%": "% percent per_cent pct percentage percents",
    "deg": "degree degrees deg degs", "rad": "radian radians rads rad", "gal": "gallon gallons gals",
    "qt": "quart quarts", "pt": "pint pints", "cup": "cup cups", "acre": "acre acres",
    "unit": "unit units", "degC": "celsius",
    "degF": "fahrenheit", "s": "sec secs", "L": "l", "mi/h": "mph", "km/h": "kph kmh kmph", "mi/gal": "mpg",
    "m/s": "mps", "₩": "₩ won", "₽": "₽ ruble rubles", "tbsp": "tablespoon tablespoons", "tsp": "teaspoon teaspoons",
}  # fmt: skip
_PART = re.compile(
    r"(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|\w+teen|\w+tie|hundred|thousand|million)ths?"
)
_EXPONENTS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_NO_NOUNS = frozenset(
    "and or not no nor nan none less more minus plus times over divided by root half halves hundred thousand million "
    "billion trillion dozen infinity negative positive factorial mod modulo base if where when with without but is are "
    "equals equal than at most least between from to through except undefined unknown maybe perhaps about "
    "approximately per each every repeating recurring doubled tripled halved inverse reciprocal below under zero "
    "beyond hundreds thousands millions billions tens dozens squared cubed square cubic "
    "true false yes quarter quarters third thirds pi sqrt am pm does exist "
    "impossible solution solutions".split()
)
CURRENCY_SIGNS = "$€£¥₹₩₽¢"


def _table() -> dict[str, str]:
    table: dict[str, str] = {}
    for symbol, names in _PREFIXED.items():
        for prefix, word in [("", ""), *_PREFIXES.items()]:
            table[prefix + symbol] = prefix + symbol
            for name in names:
                table[word + name] = table[word + name + "s"] = prefix + symbol
    for symbol, listed in _NAMES.items():
        table[symbol] = symbol
        for name in listed.split():
            table[name] = symbol
    for word in ("ml", "mL"):
        table[word] = "mL"
    table["cc"] = "cm^3"
    for confusing in ("A", "B", "dA", "nA", "cA", "uA", "GA", "MA", "kA", "kB", "nB", "uB", "cB", "dB"):
        table.pop(confusing, None)
    return table


_TABLE = _table()
_TOKEN = re.compile(r"[A-Za-z]+|[$€£¥₹₩₽¢%]|\^\s?\{?\s?-?\d\s?\}?|/|\*")


def unit(text: str) -> str | None:
    """The one spelling of a unit: `km/h` for "kilometers per hour". None if the text is no unit.

    A noun that is no unit is returned in the singular, so that "apples" is "apple". Up to three words can be a noun.

    Example:
        unit("square centimeters")  # "cm^2"
    """
    plain = re.sub(r"\\text\s?\{([^{}]*)\}", r" \1 ", text)
    plain = re.sub(r"\\frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}", r" \1 / \2 ", plain)
    plain = re.sub(r"\\(?=[$%])|\\cdot", "", plain).replace("per cent", "percent")
    plain = re.sub(r"\^\s?\{?\s?\\circ\s?\}?\s?([CF])\b", r" deg\1 ", plain)
    plain = re.sub(r"\^\s?\{?\s?\\circ\s?\}?", " deg ", plain)
    plain = re.sub(r"[.,;!]+(?=\s|$)", "", plain).strip()
    if not plain or len(plain) > 80:
        return None
    factors = _factors(plain)
    if factors is not None:
        return _written(factors)
    words = plain.lower().split()
    if len(words) > 3 or not all(re.fullmatch(r"[a-z][a-z'-]+", word) for word in words):
        return None
    if any(word in _NO_NOUNS or _PART.fullmatch(word) for word in words):
        return None
    return "noun:" + " ".join(_singular(word) for word in words)


def is_unit(word: str) -> bool:
    """Whether the word is the name or the symbol of a unit."""
    return word in _TABLE or (len(word) > 2 and word.lower() in _TABLE)


def _factors(text: str) -> dict[str, int] | None:
    """The powers of the basic units, or None if a word is no unit."""
    powers: dict[str, int] = {}
    sign, pending, last = 1, 1, None
    position = 0
    for token in _TOKEN.finditer(text):
        if text[position : token.start()].strip(" ()"):
            return None
        position = token.end()
        word = token[0]
        if word == "/" or word.lower() in ("per", "a", "an", "each"):
            if last is None and word != "/":
                return None
            sign = -1
            continue
        if word == "*":
            continue
        if word.startswith("^"):
            if last is None:
                return None
            power = int(re.sub(r"[^\d-]", "", word))
            powers[last] += (power - 1) * (1 if powers[last] > 0 else -1)
            continue
        if word.lower() in _EXPONENTS:
            power = _EXPONENTS[word.lower()]
            if word.lower().endswith("ed"):
                if last is None:
                    return None
                powers[last] *= power
            else:
                pending = power
            continue
        symbol = _TABLE.get(word) or (_TABLE.get(word.lower()) if len(word) > 2 or word.islower() else None)
        if symbol is None:
            return None
        top, _, bottom = symbol.partition("/")
        base, _, exponent = top.partition("^")
        if base in ("degC", "degF") and "deg" in powers:
            del powers["deg"]
        powers[base] = powers.get(base, 0) + sign * pending * int(exponent or 1)
        if bottom:
            powers[bottom] = powers.get(bottom, 0) - sign
        last, pending = base, 1
    if text[position:].strip(" ()") or not powers:
        return None
    return powers


def _written(powers: dict[str, int]) -> str:
    return "*".join(
        f"{name}^{power}" if power != 1 else name for name, power in sorted(powers.items()) if power
    )


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") and len(word) > 3 else word
