"""analysis/schema.py: a record that another feedrate could not read is refused when it is written."""

import pytest
from synthetic import record

from feedrate.analysis.schema import COLUMNS, STATUSES, check_record, fits, status


def test_every_column_is_defined_once_and_has_a_meaning() -> None:
    """A recorded quantity exists once, with a known type; a name ends with its unit."""
    assert len({column.name for column in COLUMNS}) == len(COLUMNS)
    for column in COLUMNS:
        assert column.meaning
        assert column.dtype in ("str", "int", "float", "bool", "list[str]", "list[int]", "list[float]", "list[dict]", "dict")
        if column.unit in ("s", "bytes"):
            assert column.name.endswith(f"_{column.unit}")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"number": None}, "lacks the column 'number'"),
        ({"num_workers": "4"}, "'num_workers' must be int, not str"),
        ({"num_workers": True}, "'num_workers' must be int, not bool"),
        ({"boundary_s": True}, "'boundary_s' must be float, not bool"),
        ({"pin_memory": 1}, "'pin_memory' must be bool, not int"),
        ({"window_num_items": [1, "2"]}, "'window_num_items' must be list"),
        ({"window_num_items": 3}, "'window_num_items' must be list.*, not int"),
        ({"speed": 1.0}, "does not define: speed"),
    ],
)
def test_a_wrong_record_is_refused_by_name(changed: dict[str, object], message: str) -> None:
    """The sentence names the column."""
    with pytest.raises(ValueError, match=message):
        check_record(record(0) | changed)


def test_whole_numbers_fit_float_columns() -> None:
    """JSON drops the point of 2.0, so that an int is a float too; never the other way round."""
    assert fits(2, "float")
    assert not fits(2.0, "int")
    assert fits([1, 2.5], "list[float]")


def test_status_is_derived_from_the_record() -> None:
    """A failure outweighs being stopped early."""
    assert tuple(status(record(0, status=name)) for name in STATUSES) == STATUSES
    assert status(record(0, status="failed", stopped_early=True)) == "failed"
