"""Flower's SecAgg+ on the same sum, for `benchmarks/secure_sum.py`: its workflow and its client code, in one process.

Its grid is replaced by one that hands each message to its client at once and keeps the time, so neither network nor
processes count. Written for flwr 1.42; an older or newer one may be laid out differently and is then left out.
"""

import copy
import logging
import random
import statistics
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np


def flower_sum(clients: int, values: int, dropped: int) -> tuple[float, float]:
    """Seconds of the median surviving client and of the server. Every client masks with every other one.

    The threshold is medfed's, floor(2n/3) + 1. Its words have 32 bits and its values 22, the defaults.
    Raises ImportError where flwr is missing or laid out differently.
    """
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.client.mod import secaggplus_mod
    from flwr.common import Code, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common import recorddict_compat as compat
    from flwr.server import LegacyContext
    from flwr.server.workflow import SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 1
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    rng = np.random.default_rng(0)
    nodes = [n + 1 for n in range(clients)]
    lost = frozenset(random.Random(0).sample(nodes, dropped))
    words = {node: rng.uniform(-1, 1, values) for node in nodes}
    model = ndarrays_to_parameters([np.zeros(values)])
    outside: list[float] = []
    spent = dict.fromkeys(nodes, 0.0)

    def context(node: int) -> Any:
        return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})

    contexts = {node: context(node) for node in nodes}

    def fit(message: Any, where: Any) -> Any:
        answer = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([words[where.node_id]]), 1, {})
        return Message(compat.fitres_to_recorddict(answer, False), reply_to=message)

    class Grid:
        stage = 0

        def send_and_receive(self, messages: Iterable[Any], *, timeout: float | None = None) -> list[Any]:
            started, replies = time.process_time(), []
            self.stage += 1
            for message in messages:
                node = message.metadata.dst_node_id
                if node in lost and self.stage >= 3:
                    continue
                # A client takes its message apart; the same content goes to all.
                message.content = copy.deepcopy(message.content)
                begun = time.process_time()
                replies.append(secaggplus_mod(message, contexts[node], fit))
                spent[node] += time.process_time() - begun
            outside.append(time.process_time() - started)
            return replies

    class Strategy:
        def configure_fit(self, round_: int, parameters: Any, manager: Any) -> list[Any]:
            return [(SimpleNamespace(node_id=node), FitIns(model, {})) for node in nodes]

        def aggregate_fit(self, round_: int, results: Any, failures: Any) -> tuple[Any, dict[str, Any]]:
            return results[0][1].parameters, {}

    manager: Any = SimpleNamespace(num_available=lambda: clients)
    whole = LegacyContext(context(0), strategy=Strategy(), client_manager=manager)  # type: ignore[arg-type]
    whole.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1})
    whole.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(model, True)
    workflow = SecAggPlusWorkflow(clients, 2 * clients // 3 + 1, max_weight=1.0)
    started = time.process_time()
    workflow(Grid(), whole)  # type: ignore[arg-type]
    server = time.process_time() - started - sum(outside)
    if len(outside) < 4:
        raise ImportError("SecAgg+ stopped before its last stage")
    mean = parameters_to_ndarrays(
        compat.arrayrecord_to_parameters(whole.state.array_records[MAIN_PARAMS_RECORD], True)
    )[0]
    kept = np.mean([words[node] for node in nodes if node not in lost], axis=0)
    if not np.allclose(mean, kept, atol=1e-4):
        raise ImportError("SecAgg+ did not give the mean of the surviving clients")
    return statistics.median(spent[node] for node in nodes if node not in lost), server
