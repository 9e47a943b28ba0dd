"""The promises that tests hold: a test with the mark `promise(row)` holds that row, and `--promises` prints them all.

A test is one try, unless it counts: `for place in tries(places)` makes one of every place, `tries(200)` makes 200. What
a test tried before it failed was held; what it failed at was tried.

With `--promises`, for runs of all marked tests, the session fails if a row has no test that ran, or one that failed.
"""

from __future__ import annotations

from collections import Counter

import pytest

ROWS = {
    1: "noise is a pure function of its key",
    2: "probing leaves the weights as they were",
    3: "estimators are right",
    4: "rules match their reference",
    5: "bilevel solves what it claims",
    6: "a run that was stopped goes on to the same bits",
    7: "a crash while saving costs no more than one interval",
    8: "damage is detected",
    9: "losses that are not finite reach no weight and hide nowhere",
    10: "SIGTERM and Ctrl-C save and stop",
    11: "what a run remembers is never missing in silence",
    12: "no file that is loaded can run code",
    13: "the code of models runs only if that is typed",
    14: "names cannot leave their folders",
    15: "a full disk or a read-only one harms no checkpoint",
    17: "the trajectory is the run",
    20: "errors help",
    22: "a result is known by content",
}


def rows_of(item):
    return sorted({row for mark in item.iter_markers("promise") for row in mark.args})


def pytest_addoption(parser):
    parser.addoption("--promises", action="store_true", help="print how often each promise was tried and held")


def pytest_collection_modifyitems(items):
    for item in items:
        item.user_properties += [("promise", row) for row in rows_of(item)]


class Tries:
    """Counts what one test has tried and found to hold."""

    def __init__(self):
        self.held = 0

    def __call__(self, what):
        """Count so many tries, which held; or each of the values that are gone through, when the next is asked for."""
        if isinstance(what, int):
            self.held += what
            return None
        return self._each(what)

    def _each(self, values):
        for value in values:
            yield value
            self.held += 1


COUNTED = pytest.StashKey[Tries]()


@pytest.fixture
def tries(request):
    """Counts the tries of a test that makes several; see the top of this file."""
    return request.node.stash.setdefault(COUNTED, Tries())


def pytest_runtest_makereport(item, call):
    if call.when == "call" and COUNTED in item.stash:
        item.user_properties.append(("tries", item.stash[COUNTED].held))


class Held:
    """Counts, of each row, what was tried, what held, and the tests that failed."""

    def __init__(self):
        self.tried, self.held, self.failed = Counter(), Counter(), Counter()

    def pytest_runtest_logreport(self, report):
        rows = [value for name, value in report.user_properties if name == "promise"]
        counted = sum(value for name, value in report.user_properties if name == "tries")
        if report.when == "call" and not report.skipped:
            held = counted if report.failed else max(counted, 1)
            self.held.update(dict.fromkeys(rows, held))
            self.tried.update(dict.fromkeys(rows, held + report.failed))
        elif report.failed and report.when == "teardown":  # such as a canary that was found
            self.held.subtract(rows)
        self.failed.update(rows if report.failed else ())

    @property
    def whole(self):
        return all(self.tried[row] for row in ROWS) and not self.failed

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        if not self.whole and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.section("promises")
        for row, name in ROWS.items():
            counts = f"tried {self.tried[row]:>6}  held {max(0, self.held[row]):>6}"
            terminalreporter.line(f"{row:>3}  {name:<62}  " + (counts if self.tried[row] else "none"))


def pytest_configure(config):
    if config.getoption("--promises"):
        config.pluginmanager.register(Held(), "promises-held")
