import pytest
from make_results import ALL


@pytest.fixture(params=sorted(ALL))
def any_result(request):
    return ALL[request.param]()
