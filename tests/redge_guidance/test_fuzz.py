import pytest

from tests import fuzz


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("checkpoints")
    fuzz.build(root)
    return root


@pytest.mark.parametrize("number", range(36))
def test_no_command_line_and_no_folder_ends_in_a_traceback(number, root):
    """The first of `python tests/fuzz.py`."""
    assert fuzz.run_case(number, root) is None


@pytest.mark.parametrize("number", range(36))
def test_no_folder_ends_in_another_error_than_those_that_are_promised(number, root):
    assert fuzz.load_case(number, root) is None
