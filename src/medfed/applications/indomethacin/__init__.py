"""The four-hospital trial of indomethacin against pancreatitis after ERCP, from raw exports to an answer.

Elmunzer et al., N Engl J Med 2012; 366: 1414-22. The data are ``medicaldata::indo_rct``.
"""
