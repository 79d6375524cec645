"""Heart disease at four hospitals (UCI, 1988): a what-if on public data, run through the real federation.

Two questions. Does a model learned at three hospitals hold at the fourth (``leave_one_out``)? And how good is FedAvg on
FLamby's split once its recipe is validated and its scaling shared (``flamby``)? ``figures`` lists both with their
targets. The data stay outside the project: docs/heart-disease.md says where to get them.
"""

from medfed.applications.heart.claims import figures
from medfed.applications.heart.exports import HOSPITALS, prepare
from medfed.applications.heart.split import flamby
from medfed.applications.heart.transport import leave_one_out

__all__ = ["HOSPITALS", "figures", "flamby", "leave_one_out", "prepare"]
