"""One loader of YAML: numbers of version 1.2, no surprises, limits."""

import contextlib
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.marked_yaml import FileError, read_marked, read_value
from pipeline.plain_yaml import dump_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10:00:00", "10:00:00"),
        ("190:20:30.15", "190:20:30.15"),
        ("0123", "0123"),
        ("-007", "-007"),
        ("012e4", "012e4"),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("270_000", 270_000),
        ("1__0", "1__0"),
        ("-12", -12),
        ("+5", 5),
        ("0", 0),
        ("1e-1", 0.1),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-1.", -1.0),
        ("1_000.5", 1000.5),
        (".inf", math.inf),
        ("2024-01-01", "2024-01-01"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("'no'", "no"),
        ("y", "y"),
        ("=", "="),
        ("{no: 1, on: 2}", {"no": 1, "on": 2}),
    ],
)
def test_read_value__is_what_yaml_1_2_says(text, value) -> None:
    found = read_value(text, "x")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "must be true or false, or a text in quotes; got no"),
        ("[a, Off]", r"\[1\] must be true or false"),
        ("{a: 1, a: 2}", "a must stand once"),
        ("{<<: {a: 1}, <<: {b: 1}}", "<< must stand once"),
        ("{<<: 3}", "expected a mapping"),
        ("9" * 5_000, "at most 4,000 digits"),
        ("1e999", r"at most 1\.8e308"),
        ("!!int '0123'", "must be whole"),
        ("!!bool yes", "must be true or false"),
        ("!!timestamp 2024-01-01", "no tags such as"),
        ("!!python/object:os.system x", "no tags such as"),
        ("&a [*a]", "must not contain itself"),
        ("*a", "undefined alias"),
        ("{[1]: 2}", "plain words as keys"),
        ("[" * 10_000, "nested at most 64 deep"),
        ("a: 1\n---\nb: 2", "another document"),
        ("a:\n\tb: 1", "indented with spaces"),
        ("\0", "printable"),
    ],
)
def test_read_value__refuses_what_is_unclear_or_endless(text, message) -> None:
    with pytest.raises(ValueError, match=f"`x` must be a YAML value; got .*{message}"):
        read_value(text, "x")


def test_read_marked__nested_aliases_are_counted_and_not_unfolded(tmp_path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefghi", "abcdefgh", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    file = tmp_path / "laughs.yaml"
    file.write_text("\n".join(lines))
    with pytest.raises(FileError, match=r"laughs\.yaml:\d: .* at most 100,000 values"):
        read_marked(file)


def test_read_marked__too_large_a_file_is_refused_unread(tmp_path) -> None:
    file = tmp_path / "large.yaml"
    with file.open("wb") as opened:
        opened.truncate(10**12)
    with pytest.raises(FileError, match=r"large\.yaml: must have at most 1,000,000"):
        read_marked(file)


@pytest.mark.parametrize("text", ["1e-1", "0123", "10:00:00", "no", "0o17", "1_0", "~"])
def test_dump_yaml__a_text_stays_one_for_readers_of_either_version(text) -> None:
    written = dump_yaml({"env": [text]})
    assert f"'{text}'" in written
    assert yaml.safe_load(written) == {"env": [text]}
    assert read_value(written, "x") == {"env": [text]}


@settings(max_examples=300, deadline=1_000)
@given(st.text("ab01_.-+eExo:,[]{}&*!|>'\"#%@`~?<\n \t\r\\é\ufeff", max_size=40))
def test_read_value__any_text_is_a_value_or_one_sentence(text) -> None:
    with contextlib.suppress(ValueError):
        read_value(text, "x")


def test_shipped_files__have_the_values_that_yaml_1_1_gave_them() -> None:
    root = Path(__file__).resolve().parents[2]
    files = [*sorted((root / "experiments").glob("*.yaml")), root / "prefect.yaml"]
    assert len(files) > 3
    for file in files:
        assert read_marked(file).data == yaml.safe_load(file.read_text())
