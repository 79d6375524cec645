"""Write flamby_740_with_split.csv beside the collection's files: which patients FLamby keeps, and which it tests on.

    python studies/heart-disease/flamby_split.py FOLDER        (needs scikit-learn)

The rule is FLamby's own (flamby/datasets/fed_heart_disease/dataset.py): the columns slope, ca and thal are dropped,
then every row with a missing value; each hospital's rows are split 66 to 34 with seed 43, by outcome where each has
more than two patients.
"""

import csv
import sys
from pathlib import Path

from sklearn.model_selection import train_test_split

COLUMNS = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca", "thal", "num")
LEFT_OUT = (10, 11, 12)


def parts(path: Path) -> list[tuple[int, list[str], str]]:
    """(row in the file, values, "train" or "test") of the rows that FLamby keeps."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    kept = [
        (index, row)
        for index, row in enumerate(rows)
        if not any(value in ("?", "") for place, value in enumerate(row) if place not in LEFT_OUT)
    ]
    outcome = [int(float(row[-1])) > 0 for _, row in kept]
    by_outcome = outcome if min(outcome.count(True), outcome.count(False)) > 2 else None
    _, test = train_test_split(range(len(kept)), test_size=0.34, train_size=0.66, random_state=43, stratify=by_outcome)
    tested = set(test)
    return [(index, row, "test" if place in tested else "train") for place, (index, row) in enumerate(kept)]


def main(folder: Path) -> None:
    """Write the file and say how many patients each hospital has in train and test."""
    with (folder / "flamby_740_with_split.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("hospital", "row_in_file", *COLUMNS, "flamby_fold"))
        for hospital in ("cleveland", "hungarian", "switzerland", "va"):
            found = parts(next(folder.rglob(f"processed.{hospital}.data")))
            writer.writerows((hospital, index, *row, part) for index, row, part in found)
            train = sum(part == "train" for _, _, part in found)
            print(f"{hospital}: {train} train, {len(found) - train} test")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
