"""docs/for-sites.md: its example of site.yaml builds a table, and its tables of keys are the keys there are."""

import re
from pathlib import Path

import numpy as np
import pytest
from clinic import STUDY, make_clinic
from pydantic import BaseModel

from medfed.data.build import build_table
from medfed.data.mapping import Derive, Source, VariableMapping
from medfed.study import study_from_dict

PAGE = (Path(__file__).parents[2] / "docs" / "for-sites.md").read_text(encoding="utf-8")
EXAMPLE = PAGE.split("```yaml\n")[1].split("```")[0]

EXPORT = """\
MRN;HEIGHT_IN;AGE_MONTHS;BIRTH;PROC_DATE;TRT;SEX;WEIGHT_KG;HEIGHT_M2;RISK_TENTHS;DM1;DM2
007;70;312;05.03.1961;04.03.2001;A;mâle;81,0;3,24;25;0;1
008;70,5;311;05.03.1961;05.03.2001;B;féminin;60;2,4;5;0;0
009;NA;600;01.01.1950;01.01.2001;B;mâle;-9;2,4;30;0;NA
"""


def number(unit: str, missing: str = "mean") -> dict[str, object]:
    return {"meaning": "x", "type": "number", "role": "covariate", "unit": unit, "range": [0, 500], "missing": missing}


def code(*codes: str, role: str = "covariate") -> dict[str, object]:
    missing = {"missing": "unknown"} if role == "covariate" else {"event": codes[-1]} if role == "outcome" else {}
    return {"meaning": "x", "type": "code", "role": role, "codes": {code: code for code in codes}} | missing


def test_the_pages_example_builds_the_table_it_describes(tmp_path: Path) -> None:
    variables = {
        "arm": code("placebo", "indomethacin", role="arm"),
        "height": number("cm"),
        "months": number("year"),
        "age": number("year"),
        "sex": code("mâle", "féminin", role="outcome"),
        "bmi": number("kg/m**2"),
        "risk": number("1"),
        "diabetes": code("no", "yes"),
    }
    site = make_clinic(tmp_path, EXPORT.encode("latin-1"), site_yaml=EXAMPLE)
    (tmp_path / "data" / "export.csv").rename(tmp_path / "data" / "ERCP_export.csv")
    table = build_table(site, study_from_dict(STUDY | {"variables": variables}))[0]
    names = ("height", "months", "age", "arm", "sex", "bmi", "risk", "diabetes")
    found = sorted(
        zip(*(column.tolist() for column in table.on("all").arrays(*names)), strict=True), key=lambda r: r[2]
    )
    expected = [
        (177.8, 26, 39, 0, 0, 25, 2.5, 1),
        (179.07, 25, 40, 1, 1, 25, 0.5, 0),
        (np.nan, 50, 51, 1, 0, np.nan, 3, -1),
    ]
    np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-12)


@pytest.mark.parametrize(("heading", "model"), [("sources", Source), ("mapping", VariableMapping)])
def test_the_page_lists_every_key(heading: str, model: type[BaseModel]) -> None:
    section = re.search(rf"^### {heading}\n(.*?)^##", PAGE, re.DOTALL | re.MULTILINE)
    assert section is not None
    listed = re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)
    assert sorted(listed) == sorted(model.model_fields)
    if model is VariableMapping:
        assert all(f"`{key}`" in section[1] or f"`{key}:" in section[1] for key in Derive.model_fields)
