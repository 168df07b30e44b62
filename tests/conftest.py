"""The transports that servers are tested on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cellar_server.transport import is_native_built
from hypothesis import settings

# a test bounds no machine's speed: examples have no deadline, and `timeout` ends what hangs
settings.register_profile("cellar", deadline=None)
settings.load_profile("cellar")

_NATIVE = pytest.mark.skipif(not is_native_built(), reason="the native transport is not built (make native)")


@pytest.fixture(scope="session", params=["aio", pytest.param("native", marks=_NATIVE)])
def transport(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each of the transports in turn; servers in processes of their own are started with it too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CELLAR_TRANSPORT", request.param)
        yield request.param
