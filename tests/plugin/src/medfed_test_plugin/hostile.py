"""Steps that try to carry out what they must not."""

import numpy as np

from medfed.federation.step import Count, Out, Reply, Sum, step


@step(releases={"stolen": Sum("p", limit=1e6)})
def returns_a_row(site):
    """A patient's row under the name of a sum."""
    return Out({"stolen": site.table.arrays("features")[0][0]})


@step(releases={"rows": Sum(limit_per_row=1)})
def returns_undeclared(site):
    """More than is declared."""
    return Out({"rows": float(site.table.rows), "extra": site.table.arrays("features")[0][:3]})


@step(releases={"rows": Sum("p", limit_per_row=1)})
def returns_wrong_shape(site):
    """All rows where one is declared."""
    return Out({"rows": site.table.arrays("features")[0]})


@step(releases={"value": Sum(limit_per_row=1)})
def returns_nan(site):
    """Not a number."""
    return Out({"value": np.nan})


@step(releases={"value": Sum(limit_per_row=1)})
def returns_too_large(site):
    """More than its limit."""
    return Out({"value": 1e7})


@step(releases={"value": Sum(limit_per_row=1)})
def returns_text(site):
    """Text where numbers are declared."""
    return Out({"value": "Smith"})


@step(releases={"value": Sum(limit_per_row=1)})
def raises_with_a_record(site):
    """An error text that quotes a record."""
    raise ValueError(f"patient Smith, {site.table.arrays('features')[0][0]}")


@step(releases={"cells": Count("4")})
def counts_of_three(site):
    """A count under the minimum cell."""
    return Out({"cells": np.array([3.0, 40, 40, 37])})


@step(releases={"cells": Count("2")})
def not_a_count(site):
    """A fraction under the name of a count."""
    return Out({"cells": np.array([30.5, 40.0])})


@step(releases={"mean_age": Reply("2")})
def reply_not_listed(site):
    """A figure of one site that its policy does not list."""
    return Out({"mean_age": np.array([1.0, 2.0])})


@step(releases={"all": Sum("400", limit_per_row=1)})
def returns_many_values(site):
    """More numbers than patients."""
    return Out({"all": np.zeros(400)})


@step(reads="train", releases={"value": Sum(limit_per_row=1)})
def reads_another_part(site):
    """Looks at test rows, which it does not declare."""
    return Out({"value": float(site.part("test").rows)})


@step(releases={"value": Sum(limit_per_row=1e9)})
def writes_into_the_table(site):
    """Changes the table that later steps read."""
    site.table.arrays("features")[0][:] = 0
    return Out({"value": 0.0})
