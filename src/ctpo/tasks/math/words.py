"""Answers in words: choices, dates, times, numbers in words, and names."""

from __future__ import annotations

import re
from fractions import Fraction

_CHOICE = re.compile(
    r"(?:(?:option|choice|answer|part)\s{0,3}:?\s{0,3})?(?:\(\s?([A-J])\s?\)|([A-J])\s?[):.]|([A-J]))(?!\w)",
    re.ASCII,
)
_ANOTHER = re.compile(r"^(?:[,;/&]|or\b|and\b)|(?<!\w)\(?[A-J]\)|\b(?:or|and) [A-J]\b", re.ASCII)
_ANY_CHOICE = re.compile(_CHOICE.pattern, re.ASCII | re.IGNORECASE)
_MONTHS = "january february march april may june july august september october november december".split()
_TIME = re.compile(r"(\d{1,2})(?::(\d\d))?(?::(\d\d))?\s?(a\.?\s?m|p\.?\s?m)\.?", re.IGNORECASE | re.ASCII)
_ABOUT = re.compile(
    r"\\approx\s?|\\text\{\s?(?:approximately|about|roughly)\s?\}\s?|(?:approximately|about|roughly)\s",
    re.IGNORECASE,
)
_ARTICLES = frozenset(("a", "an", "the"))
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = {
    "hundred": 100,
    "thousand": 1_000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}


def plain_words(text: str) -> str:
    """The text without the marks of LaTeX's text, in one line."""
    plain = re.sub(r"\\text\s?\{([^{}]*)\}", r"\1", text)
    return re.sub(r"\s+", " ", plain).strip()


def without_about(text: str) -> tuple[bool, str]:
    """Whether the text says that it is a rounded value, and the text without the word or the sign that says it."""
    match = _ABOUT.match(text)
    return (True, text[match.end() :]) if match else (False, text)


def choice(text: str) -> tuple[str, str] | None:
    """The letter of a multiple choice and what follows it, such as ("C", "12") for "(C) 12"; None if there is none."""
    plain = plain_words(text)
    match = _CHOICE.match(plain) or _ANY_CHOICE.match(plain)
    if match is None:
        return None
    letter = match[1] or match[2] or match[3]
    rest = plain[match.end() :].strip(" .:~-")
    if _ANOTHER.search(rest):
        return None
    decorated = match[1] or match[2] or match.group(0).strip() != letter
    if rest and not decorated:
        return None
    if letter.islower() and not (match[1] or re.match(r"[a-z]{4}", plain, re.IGNORECASE)):
        return None
    return letter.upper(), rest


def letters(text: str) -> frozenset[str] | None:
    """The letters of several choices, such as "A, B and D" or "ABD"; None if the text is no list of choices."""
    plain = plain_words(text).strip("{}() ")
    if re.fullmatch(r"[A-H]{2,8}", plain):
        ascending = list(plain) == sorted(set(plain))
        return frozenset(plain) if ascending else None
    if not re.fullmatch(r"\(?[A-H]\)?(?:(?:\s?[,;&]\s?(?:and\s)?|\sand\s|\s)\(?[A-H]\)?){1,7}", plain):
        return None
    return frozenset(re.findall(r"[A-H]", plain.replace("and", "")))


def time_of_day(text: str) -> tuple[int, int, int] | None:
    """Hour (0 to 23), minute and second of a time with a.m. or p.m., or None."""
    match = _TIME.fullmatch(plain_words(text).strip(" ."))
    if match is None:
        return None
    hour, minute, second = (int(part or 0) for part in match.groups()[:3])
    if not 1 <= hour <= 12 or minute > 59 or second > 59:
        return None
    return hour % 12 + (12 if match[4][0] in "pP" else 0), minute, second


def date(text: str) -> tuple[str, ...] | None:
    """Month, day and year of a date, as far as it names them, or None."""
    plain = re.sub(r"[.,]|\bof\b|\bthe\b", " ", plain_words(text).lower())
    month = day = year = ""
    for word in plain.split():
        name = next((name for name in _MONTHS if word == name or (len(word) > 2 and name[:3] == word)), None)
        number = re.fullmatch(r"(\d{1,2})(?:st|nd|rd|th)?", word, re.ASCII)
        if name and not month:
            month = name
        elif number and not day and 1 <= int(number[1]) <= 31:
            day = str(int(number[1]))
        elif re.fullmatch(r"\d{4}", word, re.ASCII) and not year:
            year = word
        else:
            return None
    return (month, day, year) if month and (day or year) else None


def number_in_words(text: str) -> Fraction | None:
    """The value of "forty-two" and of "three hundred", or None."""
    words = re.sub(r"[-\s]+|\band\b", " ", plain_words(text).lower()).split()
    if not words or len(words) > 8:
        return None
    negative = words[0] in ("negative", "minus")
    total = current = 0
    for word in words[negative:]:
        if word in _SMALL:
            if current % 10 or (current % 100 and _SMALL.index(word) > 9):
                return None
            current += _SMALL.index(word)
        elif word in _TENS:
            if current % 100:
                return None
            current += 10 * (_TENS.index(word) + 2)
        elif word == "hundred" and 0 < current < 10:
            current *= 100
        elif word in ("thousand", "million", "billion") and 0 < current < 1000:
            total, current = total + current * SCALES[word], 0
        else:
            return None
    if len(words) == negative:
        return None
    return Fraction(-(total + current) if negative else total + current)


def prose(text: str) -> str:
    """A key of a text: without capitals, articles, punctuation between words, and LaTeX's marks of text.

    Signs that may have a meaning stay, and so does every digit.
    """
    plain = plain_words(text)
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "_", plain)  # 1,234 is a number, and 1, 234 is a list
    plain = re.sub(r"(?<=[^\W\d_])[.,;:!?\"']+(?=\s|$)|^[\"']+|(?<=\s)[\"']+", "", plain)
    plain = re.sub(r"(?<=[^\W\d_]{2})-(?=[^\W\d_]{2})", " ", plain)
    tokens = re.findall(r"\\[A-Za-z]+|[^\W\d_]+|\d+|[^\s\w]|_", plain)
    tokens = [token.casefold() if len(token) > 1 and token.isalpha() else token for token in tokens]
    return " ".join(token for i, token in enumerate(tokens) if not _is_article(tokens, i))


def _is_article(tokens: list[str], i: int) -> bool:
    """An article stands before a word: the a of "a cat", and not that of "a + b"."""
    follows = tokens[i + 1] if i + 1 < len(tokens) else ""
    return tokens[i].lower() in _ARTICLES and len(follows) > 1 and follows.isalpha()
