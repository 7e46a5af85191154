from __future__ import annotations

from flash_export.validators.invariances import INVARIANCES
from flash_export.validators.report.claims import describe_check, tabulate_claims
from tests.validators.report.builders import FULL, MIXED


def test_every_invariance_has_a_sentence() -> None:
    for invariance in INVARIANCES:
        assert describe_check(invariance.name).lower() == invariance.claim
    assert describe_check("of-the-future") == "Of-the-future"


def test_claims_have_a_row_a_backend() -> None:
    table = tabulate_claims(FULL)
    assert table.backends == ("ort-cpu", "trt:small")
    found = {claim.name: [None if row is None else row.status for row in claim.rows] for claim in table.claims}
    assert found == {"repeat": ["passed", "passed"], "padding": ["failed", None]}


def test_report_without_invariances_has_no_table() -> None:
    assert not tabulate_claims(MIXED)
