"""The options of ``pytest --clipseq-check NAME``.

pytest imports this module in every environment that has clipseq, whatever is tested there, so it
imports neither clipseq nor torch nor hypothesis before an option is given.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options to the group "clipseq"."""
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
        help="skip a check, for the reason given",
    )
    group.addoption(
        "--clipseq-examples",
        type=int,
        default=20,
        metavar="N",
        help="largest number of examples that each check tries (default: 20)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the checks if an option asks for them."""
    if config.getoption("clipseq_check"):
        from clipseq.testing import pytest_plugin

        config.pluginmanager.register(pytest_plugin, "clipseq-checks")
