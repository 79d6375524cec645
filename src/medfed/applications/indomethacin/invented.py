"""Names, record numbers and dates for the trial's patients, who have none in the public data.

All of it is made up, and the same on every machine: a draw is a hash of a seed, of what is drawn and of the
patient's number in the trial, so that no draw depends on another. Nothing medical is invented here.
"""

import hashlib
from collections.abc import Sequence
from datetime import date, timedelta

SEED = "medfed indomethacin 1"
_FIRST_DAY = date(2009, 2, 2)  # enrolment ran from February 2009 to July 2011
_DAYS_OF_ENROLMENT = 900

ENGLISH_SURNAMES = ["Abbott", "Carver", "Ellison", "Grayson", "Hollis", "Jansen", "Kessler", "Norwood"]
ENGLISH_WOMEN = ["Alice", "Beth", "Carol", "Dora", "Elaine", "Grace", "Helen", "Irene", "Joan", "Laura"]
ENGLISH_MEN = ["Adam", "Brian", "Carl", "Daniel", "Edward", "Frank", "George", "Henry", "James", "Louis"]
ACCENTED_SURNAMES = ["Núñez", "Müller", "Lefèvre", "Gonçalves", "Ibáñez", "Söderberg", "Peña", "Krüger"]
ACCENTED_WOMEN = ["Inés", "Zoé", "Mónica", "Hélène", "Eloïse", "Søs", "Bärbel", "Aïda"]
ACCENTED_MEN = ["José", "André", "Björn", "Günther", "François", "Jörg", "Ángel", "René"]
CHINESE_SURNAMES = "王李张刘陈杨赵黄周吴"
CHINESE_WOMEN = ["秀英", "丽华", "桂兰", "玉梅"]
CHINESE_MEN = ["建国", "志强", "德明", "文博"]


def draw(what: str, patient: int, below: int) -> int:
    """A number from 0 to ``below`` - 1 for this patient; the same whenever it is asked."""
    digest = hashlib.sha256(f"{SEED}/{what}/{patient}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % below


def pick(what: str, patient: int, among: Sequence[str]) -> str:
    return among[draw(what, patient, len(among))]


def record_number(patient: int) -> int:
    """Eight digits at most; no two patients share one (the factor has an inverse modulo 10^8)."""
    return (patient * 57_885_161 + 13_466_917) % 10**8


def procedure_date(patient: int) -> date:
    """A working day of the enrolment period."""
    day = _FIRST_DAY + timedelta(days=draw("procedure", patient, _DAYS_OF_ENROLMENT))
    return day - timedelta(days=max(0, day.weekday() - 4))


def birth_date(patient: int, age: int, on: date) -> date:
    """A birthday that makes the patient ``age`` completed years old ``on`` that day (not 29 February)."""
    born = on.replace(year=on.year - age) - timedelta(days=draw("birth", patient, 363))
    # Never 29 February: the day on which such a patient turns a year older is a convention, not a fact.
    return born - timedelta(days=1) if (born.month, born.day) == (2, 29) else born


def telephone(patient: int) -> str:
    """A number from the range that is set aside for fiction."""
    return f"555-01{draw('telephone', patient, 100):02d}"
