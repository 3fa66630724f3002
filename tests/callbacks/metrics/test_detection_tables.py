import numpy as np

from callbacks.metrics.detection_tables import AVERAGE, as_csv, as_markdown, reference_tables

HEADS = ("a", "b")


def rows_of(logits, generators, heads=HEADS, any_p=None):
    generators = np.array(generators)
    rows = reference_tables(np.array(logits, float), generators, generators != "real", heads, any_p)
    return {(row.table, row.generator): row for row in rows}


def test_probabilities_on_the_threshold_count_as_in_the_reference():
    rows = rows_of([[0.0], [-1.0], [-1.0], [0.0], [2.0]], ["real", "real", "real", "a", "a"], ("a",))
    row = rows["specific", "a"]
    np.testing.assert_allclose(row.figures[1], 60)  # both on the threshold are wrong
    # For the correlation they are real: one hit, one miss, no false alarm.
    np.testing.assert_allclose(row.figures[2], 100 * 3 / np.sqrt(1 * 2 * 3 * 4))
    assert (row.real, row.generated) == (3, 2)
    assert ("generalized", "a") not in rows, "there is no other head"


def test_the_calibrated_table_decides_at_five_percent():
    rows = rows_of(np.zeros((4, 2)), ["real", "real", "a", "b"], any_p=np.array([0.5, 0.04, 0.05, 0.06]))
    np.testing.assert_allclose(rows["generic calibrated", "a"].figures[:2], (50, 200 / 3))
    np.testing.assert_allclose(rows["generic calibrated", "b"].figures[:2], (50, 100 / 3))
    assert rows["generic calibrated", AVERAGE].figures[0] == 50


def test_the_average_is_over_generators_and_the_order_that_of_heads():
    rng = np.random.default_rng(0)
    generators = ["real"] * 20 + ["b"] * 5 + ["a"] * 9 + ["aa"] * 4
    rows = rows_of(rng.normal(size=(38, 2)), generators)
    names = [name for table, name in rows if table == "generic"]
    assert names == ["a", "b", "aa", AVERAGE]
    mean = np.mean([rows["generic", name].figures for name in names[:3]], axis=0)
    np.testing.assert_allclose(rows["generic", AVERAGE].figures, mean)
    assert rows["generic", AVERAGE].generated == 18
    assert [name for table, name in rows if table == "specific"] == ["a", "b", AVERAGE]


def test_files_hold_every_line():
    rows = list(rows_of(np.eye(2)[[0, 1, 0, 1]], ["real", "a", "b", "b"]).values())
    views = {"native": rows, "levelled": rows[:2]}
    assert len(as_csv(views).splitlines()) == 1 + len(rows) + 2
    page = as_markdown(views)
    assert page.count("## ") == len({row.table for row in rows}) + 1
    assert "## head b, native" in page
