"""The options of ``pytest --clipseq-check NAME``; what they need is imported where one is given.

pytest imports this in every environment that has clipseq, whatever is tested there: hence a module
of its own, without clipseq, torch or hypothesis.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("clipseq", "checks of clipseq similarities")
    group.addoption(
        "--clipseq-check",
        action="append",
        default=[],
        metavar="NAME",
        help="run clipseq.testing's checks on the similarity registered as NAME",
    )
    group.addoption(
        "--clipseq-skip",
        action="append",
        default=[],
        metavar="CHECK=REASON",
        help="leave a check out, and say why",
    )
    group.addoption(
        "--clipseq-examples",
        type=int,
        default=20,
        metavar="N",
        help="examples that each check may try (default: 20)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Bring in the checks, if they are asked for."""
    if config.getoption("clipseq_check"):
        from clipseq.testing import pytest_plugin

        config.pluginmanager.register(pytest_plugin, "clipseq-checks")
