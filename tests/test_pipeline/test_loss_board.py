"""The shared loss: pinned reads, publishing that never goes back, foreign values."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from blocks.algorithm import LossRecord
from pipeline.loss_board import BoardError, LocalBoard, VariableBoard, pinned


def record(version: int, loss: float = 1.0, run_id: str = "run") -> LossRecord:
    return LossRecord(run_id, version, (loss,), (version,))


class FakeVariable:
    """A Variable of this process; unset ones time out as the real ones do."""

    values: dict[str, object] = {}  # noqa: RUF012  (the scheduler's memory)

    def __init__(self, name, client=None) -> None:
        self.name = name

    def set(self, value, timeout) -> None:
        self.values[self.name] = value

    def get(self, timeout) -> object:
        if self.name not in self.values:
            raise TimeoutError
        return self.values[self.name]

    def delete(self) -> None:
        del self.values[self.name]


@pytest.fixture
def variables(monkeypatch) -> dict[str, object]:
    monkeypatch.setattr(FakeVariable, "values", {})
    monkeypatch.setattr("distributed.Variable", FakeVariable)
    return FakeVariable.values


@pytest.fixture(params=["local", "variable"])
def board(request, variables):
    if request.param == "local":
        return LocalBoard()
    board = VariableBoard("name", "run")
    board.open()
    return board


def test_pinned__a_board_at_the_wanted_version_is_what_the_update_folds(board) -> None:
    board.publish(record(3, 0.25))
    assert pinned(board, 3, record(3, 99.0), 0.0) == record(3, 0.25)
    assert pinned(board, 3, None, 0.0) == record(3, 0.25)


def test_pinned__on_a_newer_board_the_update_folds_its_input(board) -> None:
    board.publish(record(5))
    assert pinned(board, 3, record(3, 0.5), 0.0) == record(3, 0.5)


def test_pinned__a_newer_board_and_no_such_input_is_a_named_error(board) -> None:
    board.publish(record(5))
    for known in (None, record(4)):
        with pytest.raises(BoardError, match=r"must hold version 3.*got version 5"):
            pinned(board, 3, known, 0.0)


def test_pinned__a_board_that_stays_older_is_a_named_error_after_the_timeout(
    board,
) -> None:
    board.publish(record(2))
    with pytest.raises(BoardError, match="version 3"):
        pinned(board, 3, record(3), 0.02)


def test_publish__never_goes_back_nor_sets_a_version_twice(board) -> None:
    assert board.publish(record(4, 0.5))
    for stale in (record(4, 9.0), record(1)):
        assert not board.publish(stale)
    assert board.newest(0, 0.0) == record(4, 0.5)
    assert board.publish(record(6))


def test_variable_board__another_publisher_never_goes_back_either(variables) -> None:
    first = VariableBoard("name", "run")
    first.open()
    first.publish(record(4, 0.5))
    rerun = VariableBoard("name", "run")  # as in the task's second execution
    assert not rerun.publish(record(3))
    assert first.newest(0, 0.0) == record(4, 0.5)


def test_variable_board__a_value_of_another_run_is_refused(variables) -> None:
    VariableBoard("name", "other").open()
    with pytest.raises(BoardError, match="must belong to run mine; got other"):
        VariableBoard("name", "mine").newest(-1, 0.1)
    with pytest.raises(BoardError, match="must belong to run mine"):
        VariableBoard("name", "mine").publish(record(9, run_id="mine"))


def test_variable_board__an_unset_variable_is_a_named_error(variables) -> None:
    with pytest.raises(BoardError, match="must be published before it is read"):
        VariableBoard("nobody", "run").newest(0, 0.05)


def test_variable_board__holds_plain_numbers_of_64_kb_at_most(variables) -> None:
    board = VariableBoard("name", "run")
    board.open()
    many = LossRecord("run", 0, tuple(i / 7 for i in range(4096)), tuple(range(500)), 2)
    board.publish(many)
    value = variables["name"]
    assert len(pickle.dumps(value)) <= 64_000
    assert set(value) == {f.name for f in dataclasses.fields(LossRecord)}
    assert {type(x) for x in (*value["losses"], *value["steps"])} == {float, int}
    assert board.newest(0, 0.0) == many


def test_variable_board__delete_leaves_nothing(variables) -> None:
    board = VariableBoard("name", "run")
    board.open()
    board.delete()
    assert variables == {}
