"""Every operation of the API with generated input: whatever is sent, the answer is not a failure of the server."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from spared_fm.explore.app import create_app
from spared_fm.study.api import Study
from tests.explore.conftest import ENCODER

EXAMPLES = 100


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")  # of schemathesis and its parts
def test_no_input_makes_the_server_fail(shown: Study, client: TestClient) -> None:
    app = create_app(shown.layout.root)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    known = {"slide": shown.slides[0], "encoder": ENCODER, "cohort": "c", "layer": "lognorm"}
    seen: dict[int, int] = {}
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    for found, mode in itertools.product(schema.get_all_operations(), modes):
        operation = found.ok()

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: schemathesis.Case) -> None:
            for real in (False, True):  # as generated, then with ids that exist, to come past the look-ups
                if real:
                    for part in (case.path_parameters, case.query, case.body):
                        if isinstance(part, dict):
                            part |= {name: known[name] for name in known if name in part}
                answer = case.call(headers={"Host": "localhost"})
                seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
                assert answer.status_code < 500, f"{case.as_curl_command()}: {answer.text}"
                if answer.status_code >= 400:
                    assert list(answer.json()) == ["error"], f"{case.as_curl_command()}: {answer.text}"

        with contextlib.suppress(Unsatisfiable):  # an operation without input has none that is wrong
            send()
    assert seen.get(200, 0) > 100, seen  # it did come to answers
