import pytest
from make_results import ALL

from reports.page import render


@pytest.fixture(params=sorted(ALL), scope="session")
def any_result(request):
    return ALL[request.param]()


@pytest.fixture
def no_charts(monkeypatch):
    """For tests of words and tables: drawing takes most of the time."""
    monkeypatch.setattr("reports.charts.draw_all", lambda result, t: [])


@pytest.fixture(params=["en", "ja"], scope="session")
def language(request):
    return request.param


@pytest.fixture(scope="session")
def any_page(any_result, language):
    """Every kind of result in every language, rendered once."""
    return render(any_result, language)
