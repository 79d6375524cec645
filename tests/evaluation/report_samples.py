"""Results of invented runs, as rich as a report can be. The figures are made up, but for the trial's counts."""

import math
from typing import Any

SITES = {
    "michigan": {"en": "University of Michigan", "zh": "密歇根大学"},
    "indiana": {"en": "Indiana University", "zh": "印第安纳大学"},
    "kentucky": {"en": "University of Kentucky", "zh": "肯塔基大学"},
    "case": {"en": "University Hospitals Case Medical Center", "zh": "凯斯医学中心大学医院"},
}
SMALL_CELL = "a count of patients that the sums would show is under the minimum cell"
FEW_PATIENTS = "the site has fewer patients in this study than may be seen"
HASH = "29f34094d96c97bf09aa8362c920a228cfd52241bf8cadc3673fdf406cb07097"


def _frame(name: str, kind: str, title: dict[str, str], question: dict[str, str]) -> dict[str, Any]:
    return {
        "study": {
            "name": name,
            "title": title,
            "question": question,
            "hash": HASH,
            "unit": "patient",
            "protects": "patient",
            "seed": 1,
            "outcome": "pancreatitis",
            "arm": "arm",
            "variables": {
                "pancreatitis": {
                    "meaning": {
                        "en": "Pancreatitis after this ERCP, as adjudicated",
                        "zh": "本次ERCP术后发生的胰腺炎（经判定）",
                    },
                    "type": "code",
                    "event": "yes",
                },
                "arm": {
                    "meaning": {"en": "Treatment assigned", "zh": "分配的治疗"},
                    "codes": {
                        "placebo": {"en": "placebo", "zh": "安慰剂"},
                        "indomethacin": {"en": "indomethacin", "zh": "吲哚美辛"},
                    },
                },
                "age": {
                    "meaning": {"en": "Age on the day of the procedure", "zh": "操作当日的年龄"},
                    "unit": "year",
                    "type": "number",
                },
                "risk": {"meaning": {"en": "Risk score before treatment", "zh": "治疗前风险评分"}, "unit": "1"},
            },
        },
        "run": "20261124-a1b2",
        "started": "2026-11-24T10:30:34+00:00",
        "ended": "2026-11-24T10:31:02+00:00",
        "medfed": "0.1.0",
        "what_if": False,
        "protection": "plain",
        "minimum_cell": 10,
        "kind": kind,
        "sites": [
            {"name": "michigan", "title": SITES["michigan"], "counted": True, "reason": None},
            {"name": "indiana", "title": SITES["indiana"], "counted": True, "reason": None},
            {"name": "kentucky", "title": SITES["kentucky"], "counted": False, "reason": SMALL_CELL},
            {"name": "case", "title": SITES["case"], "counted": False, "reason": FEW_PATIENTS},
        ],
        "releases": [
            {
                "site": site,
                "step": f"medfed:medfed.methods.{step}",
                "calls": calls,
                "values": values,
                "bytes": 8 * calls * values + 72,
                "values_per_patient": values / patients,
            }
            for site, patients in (("michigan", 164), ("indiana", 413))
            for step, calls, values in (
                ("treatment_effect.arm_by_outcome", 1, 4),
                ("standardise.moments", 1, 12),
                ("newton.logistic_terms", 7, 16),
            )
        ],
        "approvals": [
            {"site": site, "hash": HASH, "until": "2027-05-23", "table_version": "886f2e109337ddc0aa"}
            for site in ("michigan", "indiana", "kentucky")
        ],
        "ledgers": [
            {"site": "michigan", "rows": 1011, "head": "84f45d72974d3383ff", "verified": True, "epsilon": 0.0},
            {"site": "indiana", "rows": 11, "head": "2c4adcb649c03fe3ff", "verified": True, "epsilon": 0.0},
            {"site": "kentucky", "rows": 2, "head": "915c900b0b474514ff", "verified": False, "epsilon": 0.0},
        ],
    }


def effect_result() -> dict[str, Any]:
    """The indomethacin trial at the two sites that may contribute, with figures by site as a bold policy would allow."""
    return _frame(
        "indomethacin",
        "treatment_effect",
        {"en": "Indomethacin to prevent pancreatitis after ERCP", "zh": "吲哚美辛预防ERCP术后胰腺炎"},
        {
            "en": "In patients at raised risk who undergo ERCP, does a single rectal dose of indomethacin lower the risk "
            "of post-procedural pancreatitis compared with placebo?",
            "zh": "在接受ERCP的高危患者中，与安慰剂相比，单次直肠给予吲哚美辛能否降低术后胰腺炎的发生风险？",
        },
    ) | {
        "effect": {
            "arms": [
                {"name": "placebo", "events": 51, "patients": 294, "value": 51 / 294, "low": 0.1345, "high": 0.2209},
                {
                    "name": "indomethacin",
                    "events": 26,
                    "patients": 283,
                    "value": 26 / 283,
                    "low": 0.0634,
                    "high": 0.1312,
                },
            ],
            "risk_ratio": {"value": 0.5296, "low": 0.3399, "high": 0.8252},
            "risk_difference": {"value": -0.0816, "low": -0.1370, "high": -0.0259},
            "crude_odds_ratio": {"value": 0.4820, "low": 0.2913, "high": 0.7976},
            "adjusted": [
                {"name": "arm=indomethacin", "value": 0.4602, "low": 0.2764, "high": 0.7663, "p": 0.0028},
                {"name": "age", "value": 0.9938, "low": 0.9763, "high": 1.0116, "p": 0.494},
                {"name": "risk", "value": 1.5055, "low": 1.1434, "high": 1.9824, "p": 0.0036},
            ],
            "by_site": [
                {"site": "michigan", "value": 0.55, "low": 0.29, "high": 1.04, "counts": (12, 80, 24, 84)},
                {"site": "indiana", "value": 0.52, "low": 0.28, "high": 0.96, "counts": (14, 203, 27, 210)},
                {"site": "kentucky", "reason": SMALL_CELL},
                {"site": "case", "value": 0.0, "low": 0.0, "high": math.inf, "counts": (0, 1, 1, 2)},
            ],
            "difference_from_pooled": 2.6e-14,
            "rounds": 8,
        }
    }


def _judged(where: str, site: str | None, n: int, events: int, auc: float | None, oe: float) -> dict[str, Any]:
    half = 0.9 / math.sqrt(events) if events else 0.0
    return {
        "where": where,
        "site": site,
        "n": n,
        "events": events,
        "auc": auc,
        "auc_low": auc - half if auc is not None else None,
        "auc_high": auc + half if auc is not None else None,
        "auc_groups": None if site is None else 4 if auc is not None else 2,
        "brier": 0.116,
        "log_loss": 0.39,
        "accuracy": 0.866,
        "oe": oe,
        "oe_low": oe * (1 - 2 * half),
        "oe_high": oe * (1 + 2 * half),
    }


def prediction_result(*, joining: tuple[float, float, float] = (0.005, -0.058, 0.068)) -> dict[str, Any]:
    """A risk model by two methods; ``joining``: difference, low, high at the first site."""
    methods = []
    for name, use in (("main", "Newton"), ("fedavg", "FedAvg")):
        results = [
            {**_judged("federated", None, 577, 77, 0.58, 1.0), "slope": 0.46, "slope_low": -0.12, "slope_high": 1.04},
            _judged("pooled", None, 577, 77, 0.58, 1.0),
        ]
        for site, n, events, auc, oe in (("michigan", 164, 36, 0.63, 1.85), ("indiana", 413, 41, None, 0.71)):
            results += [
                _judged("federated", site, n, events, auc, oe),
                _judged("local", site, n, events, auc and auc - 0.01, 1.0),
                _judged("pooled", site, n, events, auc, oe),
            ]
        groups = [
            {"n": 83, "predicted": 0.085, "observed": 0.157, "low": 0.094, "high": 0.250},
            {"n": 59, "predicted": 0.134, "observed": 0.220, "low": 0.134, "high": 0.341},
            {"n": 22, "predicted": 0.205, "observed": 0.455, "low": 0.269, "high": 0.653},
        ]
        methods.append(
            {
                "name": name,
                "use": use,
                "results": results,
                "joining": [
                    {
                        "site": "michigan",
                        "difference": joining[0],
                        "low": joining[1],
                        "high": joining[2],
                        "verdict": "",
                    },
                    {"site": "indiana", "difference": None, "low": None, "high": None, "verdict": "not shown"},
                ],
                "calibration": [{"site": "michigan", "groups": groups}, {"site": "indiana", "groups": []}],
                "roc": [
                    {
                        "where": "federated",
                        "site": "michigan",
                        "false_positive_rate": [0.0, 0.09, 0.46, 1.0],
                        "true_positive_rate": [0.0, 0.28, 0.64, 1.0],
                    }
                ],
                "sites_counted": ["michigan", "indiana"],
                "not_shown": {"kentucky": {"kind": "refused", "reason": SMALL_CELL}},
            }
        )
    return _frame(
        "ercp-risk",
        "risk_prediction",
        {"en": "Risk of pancreatitis after ERCP", "zh": "ERCP术后胰腺炎的风险预测"},
        {
            "en": "Which patients develop pancreatitis after ERCP, and does a model learned together predict it better?",
            "zh": "哪些患者会在ERCP术后发生胰腺炎？联合训练的模型预测得更好吗？",
        },
    ) | {
        "what_if": True,
        "minimum_cell": 1,
        "prediction": {
            "methods": methods,
            "left_out": [
                {**_judged("federated", "michigan", 164, 36, 0.62, 1.9), "method": "main", "difference_from_pooled": 1e-12},
                {**_judged("federated", "case", 0, 0, None, 1.0), "method": "main", "oe": None, "brier": None},
            ],
            "recalibration": [
                {"site": "michigan", "patients": 50, "draws": 1000, "before": 1.85, "median": 1.01, "low": 0.78,
                 "high": 1.31, "needed": 220},
                {"site": "indiana", "patients": 50, "draws": 1000, "reason": FEW_PATIENTS},
            ],
            "coefficients": [
                {"name": "intercept", "value": -3.2, "low": -4.9, "high": -1.5},
                {"name": "age", "value": -0.006, "low": -0.024, "high": 0.012},
                {"name": "risk", "value": 0.41, "low": 0.13, "high": 0.68},
            ],
            "difference_from_pooled": 1.3e-12,
        },
        "training": [
            {"name": "Newton", "rounds": [1, 2, 3, 4, 5], "values": [0.6931, 0.4012, 0.3921, 0.3919, 0.3919]},
            {"name": "FedAvg", "rounds": list(range(1, 61)), "values": [0.39 + 0.3 * 0.93**k for k in range(60)]},
        ],
        "alarms": [
            {
                "kind": "auc",
                "site": "indiana",
                "sentence": "{site}: {covariates} point the other way than at the other sites. Check how the outcome and "
                "these variables are coded.",
                "parameters": {"site": "indiana", "covariates": "age"},
            }
        ],
        "model": {"file": "model.medfed", "hash": "390955517197efe0" * 4},
    }  # fmt: skip


def quality() -> dict[str, Any]:
    """What a site learns of its own data, as ``Quality.to_dict()`` gives it."""
    return {
        "site": "indiana",
        "study": "indomethacin",
        "rows_read": 431,
        "rows_kept": 413,
        "duplicates": 3,
        "dropped": {
            "no patient identifier": 2,
            "another row of the same patient": 3,
            "age is missing": 11,
            "outside the cohort: age": 2,
        },
        "variables": {
            "pancreatitis": {"known": 426, "missing": 0, "levels": {"no": 372, "yes": 41}},
            "arm": {"known": 426, "missing": 0, "levels": {"placebo": 210, "indomethacin": 203}},
            "age": {"known": 415, "missing": 11, "out_of_range": 1, "levels": {}, "mean": 45.2, "deviation": 13.4},
            "risk": {"known": 424, "missing": 2, "out_of_range": 0, "levels": {}, "mean": 2.4, "deviation": 0.9},
        },
        "warnings": ["risk has the same value for every patient; check its mapping"],
        "lineage": {"sources": {"data/ercp.csv": "ab" * 32}, "mapping": "cd" * 32, "study": HASH, "rows_read": 431},
        "version": "089d5822534964a4",
    }
