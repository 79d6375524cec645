"""FedAvg on FLamby's split: the recipe's choice, then the test part, over seeds; and what per-hospital scaling costs.

A seed draws the validation part, the order of rows and batches, and the initial model. The model that was validated is
the model that is tested: nothing is fitted again on train and valid together.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from medfed.applications.heart.choice import ChooseRecipe
from medfed.applications.heart.exports import build_and_approve, prepare, read_study
from medfed.data.table import StudyTable
from medfed.engines.what_if import what_if
from medfed.errors import MedfedError
from medfed.evaluation.intervals import wilson
from medfed.evaluation.study_run import StudyRun, pooled_figures
from medfed.federation.keys import load_signing_key
from medfed.federation.packages import Method
from medfed.federation.policy import load_policy
from medfed.federation.runner import Runner
from medfed.study import Study, study_from_dict

Figures = dict[str, Any]
Tables = Mapping[str, StudyTable]

SEEDS = (1, 2, 3, 4, 5)
AS_FLAMBY = "candidate-flamby"
# Ogier du Terrail et al. 2022 (NeurIPS), accuracy on the pooled test part, mean of seeds 42 to 46 of the result files
# in github.com/owkin/FLamby (their column says AUC; the code computes accuracy).
PUBLISHED = {"fedavg": 0.748, "best_federated": 0.785, "best_local": 0.784, "pooled": 0.795}
_WIDE = (-100.0, 100.0)


def with_seed(study: Study, seed: int) -> Study:
    """The same study under another seed: another validation part, other batches, another start."""
    return study_from_dict({**study.model_dump(mode="json"), "seed": seed})


def tables_for(study: Study, tables: Tables) -> dict[str, StudyTable]:
    """The same patients and values, ordered and parted by this study's seed."""
    return {
        name: StudyTable.from_columns(
            study, _values(table, study.variables), pseudonyms=table.row_pseudonyms, lineage=table.lineage
        )
        for name, table in tables.items()
    }


def _values(table: StudyTable, names: Iterable[str]) -> dict[str, Any]:
    return {name: table.columns[name] for name in names}


def flamby(data: Path, folder: Path, *, seeds: Sequence[int] = SEEDS) -> Figures:
    """Choice of the recipe and accuracy on the test part, by method and over seeds.

    data: see ``prepare``, with FLamby's split; folder: an empty one. Returns JSON values: ``choice`` (mean validation
    log-loss by candidate, the best one's settings, whether the study's method has them), ``test`` by method (accuracy
    on all test rows: mean, sd, by_seed, interval; ``by_hospital`` and their mean), ``published``.
    """
    base = read_study("flamby")
    sites = prepare(data, folder)
    try:
        first = {name: build_and_approve(site, base) for name, site in sites.items()}
    except MedfedError as problem:
        raise MedfedError(f"FLamby's split can't be used: {problem}") from None
    doors = {
        "policy": {name: load_policy(site.policy_path) for name, site in sites.items()},
        "keys": {name: load_signing_key(site.keys) for name, site in sites.items()},
    }
    studies = {seed: with_seed(base, seed) for seed in seeds}
    tables = {seed: tables_for(study, first) for seed, study in studies.items()}
    losses = [
        _execute(folder / f"seed-{seed}", study, tables[seed], doors, ChooseRecipe(study), "choice")["log_loss"]
        for seed, study in studies.items()
    ]
    choice = _choice(base, losses)
    by_seed = [_tested(folder / f"seed-{seed}", study, tables[seed], doors) for seed, study in studies.items()]
    return {
        "seeds": list(seeds),
        "choice": choice,
        "test": {name: _over_seeds([found[name] for found in by_seed]) for name in by_seed[0]},
        "published": dict(PUBLISHED),
    }


def _execute(
    folder: Path, study: Study, tables: Tables, doors: Mapping[str, Any], method: Method, run: str
) -> Mapping[str, Any]:
    """A run over the sites' store in ``folder``, made and approved at the first one. doors: policy and keys by site."""
    engine, keys = what_if(folder, tables, study, [StudyRun(study)], **doors)
    with closing(Runner(folder / "coordinator", engine, study, durability="process", public_keys=keys)) as runner:
        return runner.execute(method, run)


def _choice(study: Study, losses: Sequence[Mapping[str, float]]) -> Figures:
    mean = {name: float(np.mean([found[name] for found in losses])) for name in losses[0]}
    best = min(mean, key=lambda name: mean[name])
    return {
        "log_loss": mean,
        "best": best,
        "settings": study.settings_of(best),
        "is_the_studys": study.settings_of(best) == study.settings_of(),
    }


def _tested(folder: Path, study: Study, tables: Tables, doors: Mapping[str, Any]) -> dict[str, Figures]:
    """Accuracy by method of one seed: {"all": pooled test rows, HOSPITAL: its own}."""
    judged = _execute(folder, study, tables, doors, StudyRun(study), "main")["evaluation"]["judged"]
    found = {"fedavg": _accuracies(judged["main"])}
    found |= {name: _accuracies(judged[name]) for name in study.evaluation.variants}
    # A hospital that can't learn alone (one class, a feature that never varies) replies with zero rows.
    alone = {
        site: reply["local_sums"] for site, reply in judged["main"]["by_site"].items() if reply["local_sums"][0] > 0
    }
    own = {site: float(sums[5] / sums[0]) for site, sums in alone.items()}
    found["local"] = {"rows": found["fedavg"]["rows"], "by_hospital": own}
    pooled = pooled_figures(tables, study, dict.fromkeys(tables, 1))
    found["pooled"] = {
        "rows": pooled["overall"]["rows"],
        "all": pooled["overall"]["accuracy"],
        "by_hospital": {site: one["accuracy"] for site, one in pooled["by_site"].items()},
    }
    for everything in (False, True):
        changed, scaled = scaled_at_home(study, tables, everything=everything)
        name = f"scaled-at-home-{'everything' if everything else 'numbers'}"
        judged = _execute(folder / name, changed, scaled, doors, StudyRun(changed), "main")["evaluation"]["judged"]
        found[name] = _accuracies(judged["main"])
        found[f"{name}-{AS_FLAMBY.removeprefix('candidate-')}"] = _accuracies(judged[AS_FLAMBY])
    return found


def _accuracies(judged: Mapping[str, Any]) -> Figures:
    sums = {site: np.asarray(reply["site_sums"]) for site, reply in judged["by_site"].items()}
    return {
        "rows": judged["overall"]["rows"],
        "all": judged["overall"]["accuracy"],
        "by_hospital": {site: float(values[5] / values[0]) for site, values in sums.items()},
    }


def _over_seeds(found: Sequence[Figures]) -> Figures:
    rows = int(found[0]["rows"])
    sites = {site: float(np.mean([one["by_hospital"][site] for one in found])) for site in found[0]["by_hospital"]}
    figures: Figures = {"n": rows, "by_hospital": sites, "mean_of_hospitals": float(np.mean(list(sites.values())))}
    if "all" in found[0]:
        values = [float(one["all"]) for one in found]
        interval = wilson(float(np.mean(values)) * rows, rows)
        figures |= {"accuracy": float(np.mean(values)), "sd": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0,
                    "low": interval.low, "high": interval.high, "by_seed": values}  # fmt: skip
    return figures


def scaled_at_home(study: Study, tables: Tables, *, everything: bool) -> tuple[Study, dict[str, StudyTable]]:
    """The study as it would be if each hospital scaled its features by its own training mean and SD.

    everything: indicators too, as FLamby does; else numbers only. The mean level of a hospital is lost then, and with it
    most of what sets its patients apart from another's. A feature that does not vary at a hospital becomes 0 there.
    """
    columns = [c for c in study.design.columns if c.kind == "number" or (everything and c.kind == "indicator")]
    declared = study.model_dump(mode="json")
    covariates = {name for name in study.covariates if everything or study.variables[name].type == "number"}
    variables = {name: one for name, one in declared["variables"].items() if name not in covariates}
    for column in columns:
        variables[column.name.replace("=", "_")] = {
            "meaning": f"{column.name}, scaled at the hospital", "type": "number", "role": "covariate", "unit": "1", "range": _WIDE,
        }  # fmt: skip
    evaluation = {**declared["evaluation"], "variants": [AS_FLAMBY]}
    changed = study_from_dict(
        {**declared, "name": "heart-disease-scaled-at-home", "variables": variables, "evaluation": evaluation}
    )
    places = [study.design.columns.index(column) for column in columns]
    scaled = {}
    for name, table in tables.items():
        train, whole = (table.on(part).arrays("features")[0][:, places] for part in ("train", "all"))
        deviation = train.std(0)
        own = (whole - train.mean(0)) / np.where(deviation > 0, deviation, 1.0)
        own[:, deviation == 0] = 0.0
        values = _values(table, [key for key in study.variables if key in variables])
        values |= {column.name.replace("=", "_"): own[:, index] for index, column in enumerate(columns)}
        scaled[name] = StudyTable.from_columns(changed, values, pseudonyms=table.row_pseudonyms, parts=table.part_index)
    return changed, scaled
