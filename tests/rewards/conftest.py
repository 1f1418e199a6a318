import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Tables of pieces are made anew, away from the user's."""
    monkeypatch.setenv("REDGE_GUIDANCE_CACHE", str(tmp_path))
