"""A small study as a person writes it."""

# Line numbers in the tests below are those of this text.
TEXT = """\
medfed: 1
name: example
title: {en: An example, zh: 例}
question: Who has the event?
variables:
  event:
    meaning: Event
    type: code
    role: outcome
    codes: {no: No, yes: Yes}
    event: yes
  age:
    meaning: Age
    type: number
    role: covariate
    unit: year
    range: [18, 110]
cohort:
  include:
    - {variable: age, at_least: 18}
task: {kind: risk_prediction, coding: reference}
method:
  use: "medfed:medfed.methods.newton.Newton"
  settings: {tolerance: 1e-8}
parts: {kind: folds, folds: 5}
evaluation: {design: cross_validation}
sites: {invited: [a, b, c], minimum: 2}
"""
