"""Options and the summary of replayed goldens; pytest reads it whatever path it is given."""

from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def pytest_addoption(parser):
    parser.addoption(
        "--goldens",
        default=str(ROOT / "goldens"),
        metavar="DIR",
        help="folder with one folder of golden cases a method (default: the committed subset)",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers",
        "golden(method, kind, cases): one test per golden case; cases(folder) lists their ids or {id: value}",
    )


def pytest_collection_modifyitems(items):
    """Hostile inputs come first: their processes are forked from this one, and inherit what later tests leave behind.

    Free memory that the allocator holds back hides what an input takes, or counts as taken when it is used again.
    """
    items.sort(key=lambda item: "hostile" not in item.path.parts)


def pytest_terminal_summary(terminalreporter, config):
    replayed: dict[str, Counter] = {}
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            if getattr(report, "when", None) != "call":
                continue
            for name, value in report.user_properties:
                if name == "golden":
                    method, kind = value
                    replayed.setdefault(method, Counter())[kind] += 1
    for method, kinds in sorted(replayed.items()):
        parts = ", ".join(f"{kind} {count}" for kind, count in sorted(kinds.items()))
        terminalreporter.write_line(
            f"goldens: {method} {kinds.total()} cases replayed from {config.getoption('--goldens')} ({parts})"
        )
