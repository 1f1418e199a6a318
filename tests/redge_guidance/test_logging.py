"""Levels and handlers of the package's logger, against Python's own."""

import logging as python
import os
import sys

import pytest

from redge_guidance import logging
from tests.helpers import started


@pytest.fixture
def restored():
    level = logging.get_verbosity()
    yield
    logging.set_verbosity(level)
    logging.enable_default_handler()


@pytest.mark.parametrize("name", ["debug", "info", "warning", "error"])
def test_levels_are_those_of_python(name, restored):
    getattr(logging, f"set_verbosity_{name}")()
    assert logging.get_verbosity() == getattr(python, name.upper())
    assert logging.get_logger("redge_guidance.trace").isEnabledFor(logging.get_verbosity())
    logging.set_verbosity(name.upper())
    assert logging.get_verbosity() == getattr(python, name.upper())


@pytest.mark.parametrize("wrong", ["loud", -1, None, 1.5])
def test_levels_that_are_none(wrong):
    with pytest.raises(ValueError, match="`verbosity` must be one of debug, info, warning, error, critical"):
        logging.set_verbosity(wrong)


CODE = """
import logging as python, sys
{before}
from redge_guidance import logging
log = logging.get_logger("redge_guidance.trace")
{after}
log.info("told"); log.warning("warned")
"""


def said(before="", after="", **variables):
    environment = {k: v for k, v in os.environ.items() if k != logging.VARIABLE} | variables
    code = CODE.format(before=before, after=after)
    done = started.run([sys.executable, "-c", code], env=environment)
    assert done.returncode == 0
    return done.stderr


def test_what_is_said_by_default_by_the_variable_and_once_where_logging_is_set_up():
    assert said() == "[redge_guidance] warned\n"
    assert said(REDGE_GUIDANCE_VERBOSITY="info") == "[redge_guidance] told\n[redge_guidance] warned\n"
    assert (
        said(after="python.basicConfig(format='mine %(message)s'); logging.set_verbosity_info()")
        == "mine told\nmine warned\n"
    )
    assert said(after="logging.disable_default_handler(); logging.add_handler(python.NullHandler())") == ""
    assert "must be one of debug, info, warning, error, critical, got 'loud'" in said(REDGE_GUIDANCE_VERBOSITY="loud")
    assert said(before="python.getLogger('redge_guidance').setLevel(40)") == ""
