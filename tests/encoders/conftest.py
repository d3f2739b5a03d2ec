"""Plans that tests find are kept for these tests alone, not in the user's cache folder."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def cache_of_this_session(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
