"""Datasets as people have them: encodings, forms of files, names of columns, and types of answers."""

from __future__ import annotations

import gzip
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest

from ctpo.errors import Notice, UserError
from ctpo.tasks import Problem, get_task
from ctpo.tasks.columns import Columns, read_problems
from ctpo.tasks.repeats import overlap

ROW = {"prompt": "1+1?", "answer": "2"}
OTHER = {"prompt": "a\u2028b", "answer": "3"}
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": [{"role": "system", "content": "Count."}, {"role": "user", "content": "1+1?"}],
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "2"},
    "extra_info": {"index": 7, "split": "train"},
}
TRL = {"prompt": [{"role": "user", "content": "1+1?"}], "solution": r"It is $\boxed{2}$."}
TWO = json.dumps(ROW) + "\n" + json.dumps(OTHER, ensure_ascii=False)


def read(folder: Path, name: str, content: bytes | str) -> list[Problem]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_problems(path)


@pytest.mark.parametrize(
    ("name", "content", "ids"),
    [
        ("a.jsonl", TWO, (1, 2)),
        ("a.jsonl", "\ufeff" + TWO.replace("\n", "\r\n") + "\r\n", (1, 2)),
        ("a.jsonl", "\n \n" + TWO.replace("\n", "\n\n\t\n") + "\n\n", (3, 6)),
        ("a.json", json.dumps([ROW, OTHER], indent=1), (1, 2)),
        ("a.jsonl", "\ufeff [" + TWO.replace("\n", ",") + "]", (1, 2)),
        ("a.json", "\n".join(json.dumps(row, indent=2) for row in (ROW, OTHER)), (1, 5)),
        ("a.jsonl.gz", gzip.compress(TWO.encode(), mtime=0), (1, 2)),
        ("a.csv", 'Answer,"Problem"\r\n2,1+1?\r\n\r\n3,"a\u2028b"\r\n', (2, 4)),
        ("a.tsv.gz", gzip.compress("problem\tanswer\n1+1?\t2\na\u2028b\t3".encode(), mtime=0), (2, 3)),
    ],
)
def test_the_same_two_rows(tmp_path: Path, name: str, content: bytes | str, ids: tuple[int, int]) -> None:
    problems = read(tmp_path, name, content)
    assert [(each.prompt, each.answer) for each in problems] == [("1+1?", "2"), ("a\u2028b", "3")]
    assert [each.id for each in problems] == [f"{name}:{number}" for number in ids]


def test_parquet_with_lists_and_structures(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([VERL]), tmp_path / "a.parquet")
    (problem,) = read_problems(tmp_path / "a.parquet")
    assert (problem.prompt, problem.answer) == (tuple(VERL["prompt"]), "2")
    assert problem.id == "openai/gsm8k:7"
    assert read(tmp_path, "same.jsonl", json.dumps(VERL)) == [problem]
    task = get_task(str(tmp_path / "a.parquet"))
    assert [each["content"] for each in task.messages(problem.prompt)] == ["Count.", "1+1?"]


def test_rows_of_trl_and_the_form_of_answers(tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps(TRL))
    (problem,) = get_task(f"gsm8k@{tmp_path}").problems("test", 9, 0)
    assert (problem.prompt, problem.answer) == (tuple(TRL["prompt"]), "2")


@pytest.mark.parametrize(
    ("row", "columns", "answer"),
    [
        ({"Question": "1+1?", "Final Answer": 2}, Columns(), "2"),
        ({"PROBLEM": "1+1?", "expected-answer": 2.0}, Columns(), "2"),
        ({"prompt": "1+1?", "answer": 0.1}, Columns(), "0.1"),
        ({"prompt": "1+1?", "answer": True}, Columns(), "True"),
        ({"prompt": "1+1?", "answer": ["1", 2]}, Columns(), "1, 2"),
        ({"prompt": "1+1?", "answer": None, "solution": "2"}, Columns(), "2"),
        ({"prompt": "1+1?", "answer": "1", "Answer": "2"}, Columns(), "1"),
        (
            {"prompt": "1+1?", "answer": "1", "extra": {"Key": {"a.b": "2"}}},
            Columns(answer="extra.key.a.b"),
            "2",
        ),
        ({"prompt": "1+1?", "answer": "1", "a.b": "2"}, Columns(answer="a.b"), "2"),
    ],
)
def test_names_of_columns_and_types_of_answers(row: dict[str, Any], columns: Columns, answer: str) -> None:
    problem = columns.problem(row, "here", "name")
    assert (problem.prompt, problem.answer, problem.id) == ("1+1?", answer, "name")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", TWO.encode("utf-16"), "a.jsonl is text in UTF-16; save it in UTF-8"),
        ("a.jsonl", TWO.encode("utf-16-le"), "has a zero byte at position 1"),
        ("a.jsonl", b'\n{"prompt": "\xff"}', r"line 2 is not UTF-8 \(byte 0xff\)"),
        ("a.jsonl.gz", gzip.compress(TWO.encode(), mtime=0)[:40], "cannot be unpacked with gzip"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd....", "is packed with zstd"),
        ("a.jsonl", TWO + '\n{"prompt": "x"', "line 3 is not JSON"),
        ("a.json", '[{"prompt": "x"},\n7', r"line 2 is not JSON .*: '7'"),
        ("a.json", "[7]", "row 1 is int, not an object"),
        ("a.json", "[]", "is empty"),
        ("a.csv", "prompt,answer\n1,2,3", "line 2 has 3 cells and the header has 2; .* a comma"),
        ("a.csv", 'prompt,answer\n1,"2', "line 2 is not CSV"),
        (
            "a.jsonl",
            '{"prompt": "x", "answer": NaN}',
            "answer is nan; give a non-empty text, a finite number",
        ),
        ("a.jsonl", '{"prompt": "x", "answer": [1, null]}', r"answer is \[1, None\]"),
        ("a.jsonl", '{"prompt": "x", "answer": {"target": 1}}', "answer is {'target': 1}"),
        ("a.jsonl", '{"prompt": " ", "answer": 1}', "prompt is ' '; give a non-empty text"),
        ("a.jsonl", '{"Frage": "x", "answer": 1}', r"no column 'prompt' or another .*it has: Frage, answer"),
        (
            "a.jsonl",
            '{"messages": [{"role": "assistant", "content": "x"}]}',
            "messages ends with a message of role",
        ),
    ],
)
def test_what_cannot_be_read_takes_one_line(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, name, content)
    assert "\n" not in str(caught.value)


def test_a_small_file_may_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctpo.tasks.rows._EXPANDED_FREELY", 2**16)
    with pytest.raises(UserError, match="grows to more than 65,536 bytes when it is unpacked"):
        read(tmp_path, "a.jsonl.gz", gzip.compress(b" " * 2**17, mtime=0))


def test_repeats_are_counted_once_and_kept(tmp_path: Path) -> None:
    rows = [ROW, {**ROW, "answer": "3"}, ROW, {"prompt": "x", "answer": "1", "id": "7"}]
    rows.append({"prompt": "y", "answer": "1", "id": "7"})
    with pytest.warns(Notice) as caught:
        problems = read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert len(problems) == 5
    assert [str(each.message).partition("a.jsonl: ")[2] for each in caught] == [
        "2 of 5 problems repeat an earlier prompt, the first is a.jsonl:2; 1 of these have another answer: '2' in "
        "a.jsonl:1 and '3' in a.jsonl:2; 1 ids belong to several prompts, the first is 7"
    ]


def test_overlap_of_training_and_held_out_problems() -> None:
    def problems(*prompts: Any) -> list[Problem]:
        return [Problem(prompt=prompt, answer="1", id=str(i)) for i, prompt in enumerate(prompts)]

    train = problems(
        "What is  ½?", [{"role": "system", "content": "S"}, {"role": "user", "content": "How many?"}]
    )
    held_out = problems("what\nis ½? ", "How MANY?", "How many cats?")
    assert [each.id for each in overlap(train, held_out)] == ["0", "1"]
    other = [
        Problem(prompt="How many?", answer="2", id="other")
    ]  # of an environment that asks everybody the same
    assert [each.id for each in overlap(train, [*held_out, *other], by_answer=True)] == ["0", "1"]


def test_any_mixture_gives_problems_or_one_line(tmp_path: Path) -> None:
    """Random files of all encodings, forms and types: nothing but a `UserError` of one line ever comes out."""
    draw = random.Random(0)
    errors = [_read_random(tmp_path / "random", draw) for _ in range(300)]
    assert 40 < errors.count(None) < 240
    assert all(str(tmp_path) in error and "\n" not in error for error in errors if error is not None)


def _read_random(stem: Path, draw: random.Random) -> str | None:
    """The error with which a random file is refused, or None."""
    value: Any = draw.choice(
        [None, True, 7, 1.5, float("nan"), 10**30, "", "2", "\ud83d", [], ["1", 2], {}, [[1]]]
    )
    message = {"role": draw.choice(["user", "system", "assistant", "judge", None]), "content": value}
    prompt = draw.choice(["1+1?", value, [message], [message, {"role": "user", "content": "1+1?"}]])
    rows: list[Any] = [
        {draw.choice(["prompt", "Question", "x", "query"]): "1+1?", "answer": draw.choice(["2", value])},
        {"prompt": prompt, draw.choice(["reward_model", "b"]): {"ground_truth": value}, "solution": "2"},
        draw.choice([ROW, ROW, ROW, ROW, value]),
    ]
    rows = draw.sample(rows, k=draw.randint(1, 3))
    text = draw.choice(
        [json.dumps(rows, indent=draw.choice([None, 1])), *["\n".join(map(json.dumps, rows))] * 3]
    )
    text = draw.choice(["", "", "", "\ufeff", "\n\n", "\n\n", "\ufeff", "prompt,answer\n"]) + text
    content = text.encode(draw.choice([*["utf-8"] * 8, "utf-16", "utf-32"]))
    if draw.random() < 0.2:
        place = draw.randrange(len(content))
        content = content[:place] + draw.choice([b"", b"\xff", b"\0", b'"', b"\n"]) + content[place + 1 :]
    content = gzip.compress(content, mtime=0) if draw.random() < 0.2 else content
    content = content[: draw.randrange(len(content))] if draw.random() < 0.1 else content
    path = stem.with_suffix(draw.choice([*[".jsonl", ".json", ".jsonl.gz"] * 3, ".csv", ".parquet"]))
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Notice)
            read_problems(path)
    except UserError as error:
        return str(error)
    return None


def test_difficulties(tmp_path: Path) -> None:
    values = ["easy", 0.5, 1, True, None, float("nan"), "", " 0.25 "]
    rows = [json.dumps({**ROW, "prompt": str(i), "level": value}) for i, value in enumerate(values)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    problems = read_problems(tmp_path / "a.jsonl", Columns(difficulty="level"))
    expected = ["easy", 0.5, 1.0, "True", None, None, None, "0.25"]
    assert [problem.difficulty for problem in problems] == expected
    assert {problem.difficulty for problem in read_problems(tmp_path / "a.jsonl")} == {None}
