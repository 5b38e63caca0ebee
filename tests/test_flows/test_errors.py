import errno

import pydantic
import pytest

from flows.errors import describe, exit_code


class Small(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    steps: int = pydantic.Field(gt=0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("bad"), 2),
        (TypeError("bad"), 2),
        (FileNotFoundError("gone"), 2),
        (PermissionError("no"), 2),
        (RuntimeError("lost"), 1),
        (TimeoutError("late"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "x.zarr"), 1),
        (KeyError("bug"), 1),
    ],
)
def test_exit_code__two_for_bad_input_one_for_failures(error, code):
    assert exit_code(error) == code


def test_describe__message_on_one_line():
    assert describe(ValueError("`a` must be\n  b;\n got c.")) == "`a` must be b; got c."


def test_describe__escapes_what_does_not_print_and_cuts_what_is_endless():
    said = describe(ValueError(f"`run` must be one; got \x1b]0;\x07{'9' * 5000}."))
    assert said.startswith("`run` must be one; got \\x1b]0;\\x07999")
    assert said.endswith("999.")
    assert len(said) < 2100


def test_describe__full_disk_says_so():
    error = OSError(errno.ENOSPC, "No space left on device", "x.zarr")
    assert describe(error).startswith("the disk is full while writing x.zarr.")
    unnamed = OSError(errno.ENOSPC, "No space left on device")
    assert describe(unnamed).startswith("the disk is full. Free some space")


def test_describe__system_errors_name_the_file():
    assert describe(FileNotFoundError(errno.ENOENT, "No such file", "a.gz")) == (
        "No such file: a.gz."
    )


def test_describe__a_bug_is_called_unexpected_and_points_at_debug():
    text = describe(KeyError("inner"))
    assert "unexpected KeyError" in text
    assert "--debug" in text


def test_describe__missing_module_points_at_doctor():
    assert "ndcao doctor" in describe(ModuleNotFoundError("No module named 'x'"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": -1}, "`steps`: input should be greater than 0; got -1."),
        ({"steps": 1, "stepz": 2}, "`stepz` must be a known setting"),
        ({}, "`steps` must be given"),
    ],
)
def test_describe__validation_errors_name_key_rule_and_value(values, said):
    with pytest.raises(pydantic.ValidationError) as caught:
        Small.model_validate(values)
    assert said in describe(caught.value)
    assert "\n" not in describe(caught.value)


def test_describe__shows_no_addresses_of_objects():
    error = OSError("in <distributed.comm.tcp.TCP object at 0x7fd8cb608250>: refused")
    assert describe(error) == "in distributed.comm.tcp.TCP: refused"
