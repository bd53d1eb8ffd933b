"""Towers of the tests are small: torch works alone on them."""

from collections.abc import Iterator

import pytest
from tests.models.tiny_towers import one_thread


@pytest.fixture(scope="module", autouse=True)
def _alone() -> Iterator[None]:
    with one_thread():
        yield
