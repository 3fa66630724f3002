import numpy as np
import pytest
import torch

from callbacks.metrics.sample_table import SampleTable


def test_rows_come_sorted_and_repeats_keep_the_first():
    table = SampleTable(("x", "y"), text_columns=("name",))
    table.update(torch.tensor([5, 2]), {"x": torch.tensor([50, 20]), "y": torch.tensor([0.5, 0.2]), "name": ["a", "b"]})
    table.update(torch.tensor([2, 0]), {"x": torch.tensor([99, 0]), "y": torch.tensor([9.0, 0.0]), "name": ["z", "a"]})
    rows = table.compute()
    assert rows["index"].tolist() == [0, 2, 5]
    assert rows["x"].tolist() == [0, 20, 50]
    assert rows["name"].tolist() == ["a", "b", "a"]
    np.testing.assert_array_equal(rows["y"], np.float32([0.0, 0.2, 0.5]).astype(np.float64))


def test_large_counts_stay_exact():
    table = SampleTable(("count",))
    table.update(torch.tensor([2**40 + 1]), {"count": torch.tensor([2**53 - 1])})
    rows = table.compute()
    assert int(rows["count"][0]) == 2**53 - 1
    assert rows["index"].tolist() == [2**40 + 1]


def test_wide_columns_keep_their_shape():
    table = SampleTable(("x",), {"curve": 3}, ("name",))
    curve = torch.arange(6.0).reshape(2, 3)
    table.update(torch.tensor([1, 0]), {"x": torch.ones(2), "curve": curve, "name": ["b", "a"]})
    rows = table.compute()
    np.testing.assert_array_equal(rows["curve"], curve.numpy()[::-1])
    assert rows["name"].tolist() == ["a", "b"]


def test_an_empty_table_has_empty_columns():
    table = SampleTable(("x",), {"curve": 3}, ("name",))
    with pytest.warns(UserWarning, match="before the ``update``"):
        rows = table.compute()
    assert {name: column.shape for name, column in rows.items()} == {
        "index": (0,),
        "x": (0,),
        "curve": (0, 3),
        "name": (0,),
    }


def test_reset_forgets():
    table = SampleTable(("x",))
    table.update(torch.tensor([1]), {"x": torch.tensor([1.0])})
    table.reset()
    table.update(torch.tensor([3]), {"x": torch.tensor([4.0])})
    assert table.compute()["index"].tolist() == [3]


def test_a_column_of_the_wrong_length_is_named():
    table = SampleTable(("x", "y"))
    with pytest.raises(ValueError, match="'y' has 3 values for 2 samples"):
        table.update(torch.tensor([0, 1]), {"x": torch.ones(2), "y": torch.ones(3)})


def test_names_may_hold_any_letters():
    table = SampleTable((), text_columns=("name",))
    names = ["", "gérard", "印章", "a,b|c", "two\nlines\u2028"]
    table.update(torch.arange(5), {"name": names})
    assert table.compute()["name"].tolist() == names


def test_a_name_with_the_separator_is_refused():
    table = SampleTable((), text_columns=("name",))
    with pytest.raises(ValueError, match="NUL"):
        table.update(torch.arange(1), {"name": ["a\0b"]})
