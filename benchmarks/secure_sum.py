"""What a secure sum costs: one site, the coordinator, and masking beside the bare keystream. One thread.

    python benchmarks/secure_sum.py [--sites 200] [--values 100000] [--dropped 60] [--only masks failure]

Every message passes as bytes, every signature is checked, nothing is kept from one site to the next. "client" is all
that one site computes, from its keys to its last share (median over the survivors); "server" is all that the
coordinator computes; both in seconds of processor time. Sites drop after they dealt their shares, which costs the
coordinator most.
Flower's SecAgg+ stands beside it where `flwr` is installed; its keys are unsigned and its survivors unchecked, so it
does less.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.privacy.context import Context
from medfed.privacy.coordinator_side import CoordinatorSide
from medfed.privacy.masks import CHUNK_BYTES, MASKS_AT_ONCE, add_masks, chunk_sizes, keystream
from medfed.privacy.messages import Reply, read_message, write_message
from medfed.privacy.neighbours import failure_chance, neighbours_needed
from medfed.privacy.roster import Roster
from medfed.privacy.signatures import forget_checks, public_hex
from medfed.privacy.site_side import SiteSide

# Processor time of this process: on a machine that others use too, the clock on the wall times them as well.
clock = time.process_time
RUNS = 7
CLIENT_SECONDS, SERVER_SECONDS, MASKING_SHARE = 0.3, 4.0, 0.65


def timed(function: Callable[[], object]) -> float:
    started = clock()
    function()
    return clock() - started


def whole_sum(sites: int, values: int, dropped: int) -> tuple[dict[str, float], dict[str, float], bool]:
    """Seconds by stage of the median surviving site and of the coordinator; whether the total is the plain one."""
    keys = {f"site{n:04d}": Ed25519PrivateKey.generate() for n in range(sites)}
    roster = Roster.of({site: public_hex(key) for site, key in keys.items()})
    context = Context("5" * 64, "main", 1, "step", 0, "q" * 64, roster.digest, values, "count")
    rng = np.random.default_rng(0)
    words = {site: rng.integers(-(2**40), 2**40, values, np.int64) for site in keys}
    lost = frozenset(rng.permutation(sorted(keys))[:dropped].tolist())
    sides: dict[str, SiteSide] = {}
    client: dict[str, dict[str, float]] = {site: {} for site in keys}
    server: dict[str, float] = {}
    coordinator = CoordinatorSide(context, roster)
    while coordinator.stage not in ("a signature of the count", "nothing"):
        stage = coordinator.stage
        started = clock()
        requests = coordinator.requests()
        spent = clock() - started
        written: dict[int, bytes] = {}
        for site, request in requests.items():
            if site in lost and stage == "masked words":
                continue
            # The same request to all is written once; bytes are written and read outside the clock, as a carrier would.
            if request is not None and id(request) not in written:
                written[id(request)] = write_message(request)
            arrived = None if request is None else read_message(written[id(request)])
            forget_checks()
            started = clock()
            if site not in sides:
                sides[site] = SiteSide(site, keys[site], context, roster, remember={}.setdefault)
            reply = sides[site].answer(arrived, words[site])  # type: ignore[arg-type]
            client[site][stage] = clock() - started
            forget_checks()
            back: Reply = read_message(write_message(reply))  # type: ignore[assignment]
            started = clock()
            coordinator.receive(site, back)
            spent += clock() - started
        started = clock()
        coordinator.advance()
        server[stage] = spent + clock() - started
    survivors = coordinator.survivors
    exact = bool((coordinator.total == np.sum([words[site] for site in survivors], axis=0)).all())
    by_stage = {stage: statistics.median(client[site][stage] for site in survivors) for stage in server}
    by_stage["whole"] = statistics.median(sum(client[site].values()) for site in survivors)
    server["whole"] = sum(server.values())
    return by_stage, server, exact


def keystream_alone(length: int, seeds: list[bytes]) -> None:
    """The loop of ``add_masks`` without the addition: the same seeds, groups, chunks and buffer."""
    buffer = memoryview(bytearray(min(CHUNK_BYTES, 8 * length)))
    zeros = memoryview(bytes(CHUNK_BYTES))
    chunks = [(zeros[: 8 * size], buffer[: 8 * size]) for _, size in chunk_sizes(length)]
    for start in range(0, len(seeds), MASKS_AT_ONCE):
        group = [keystream(seed) for seed in seeds[start : start + MASKS_AT_ONCE]]
        for nothing, part in chunks:
            for update in group:
                update(nothing, part)


def masking(values: int, peers: int) -> tuple[float, float]:
    """Seconds for one row of values under ``peers`` masks, and for their keystream alone: medians, runs in turn."""
    seeds = [os.urandom(32) for _ in range(peers)]
    target = np.zeros(values, np.int64)
    masked, alone = [], []
    for _ in range(RUNS):
        masked.append(timed(lambda: add_masks(target, ((seed, 1) for seed in seeds))))
        alone.append(timed(lambda: keystream_alone(values, seeds)))
    return statistics.median(masked), statistics.median(alone)


def show(claim: str, measured: str, target: str = "", holds: bool | None = None) -> bool:
    mark = {True: "ok  ", False: "MISS", None: "    "}[holds]
    print(f"{mark} {claim:66} {measured:>26}  {target}", flush=True)
    return holds is not False


def show_masks(sites: int, values: int) -> bool:
    good = True
    for length, peers in ((values, sites - 1), (10 * values, 9)):
        masked, alone = masking(length, peers)
        rate = 8 * length * peers / 1e9
        good &= show(
            f"masking {length:,} values with {peers} peers, beside its keystream",
            f"{rate / masked:.2f} of {rate / alone:.2f} GB/s = {alone / masked:.0%}",
            f"at least {MASKING_SHARE:.0%}",
            alone / masked >= MASKING_SHARE,
        )
    return good


def show_failure() -> bool:
    good = True
    for sites in (201, 500, 1000, 5000):
        chosen = neighbours_needed(sites)
        for neighbours in sorted({60, 80, 100, 120, chosen}):
            chance = failure_chance(sites, neighbours)
            uses = neighbours == chosen
            claim = f"{sites} sites, {neighbours} neighbours, threshold {neighbours // 2 + 1}, 30 % dropped: failure"
            target = "under 1e-6: what medfed uses" if uses else ""
            good &= show(claim, f"{chance:.1e}", target, chance < 1e-6 if uses else None)
    return good


def show_sum(sites: int, values: int, dropped: int) -> bool:
    client, server, exact = whole_sum(sites, values, dropped)
    what = f"{sites} sites x {values:,} values, {dropped} dropped"
    good = show(f"{what}: total equal to the plain one", "bit for bit" if exact else "differs", "", exact)
    for who, seconds, most in (("client", client, CLIENT_SECONDS), ("server", server, SERVER_SECONDS)):
        whole = seconds.pop("whole")
        good &= show(f"{what}: {who}", f"{whole:.3f} s", f"at most {most:g} s", whole <= most)
        for stage, spent in seconds.items():
            show(f"    {who}, {stage}", f"{spent:.3f} s")
    return good


def show_flower(sites: int, values: int, dropped: int) -> None:
    """Flower's SecAgg+ and ours on the same, smaller sum: its secrets are put together in pure Python, slowly."""
    try:
        from flower_secagg import flower_sum

        theirs = flower_sum(sites, values, dropped)
    except ImportError as problem:
        show(
            "Flower's SecAgg+ beside it",
            "not installed",
            f"pip install flwr==1.42.0 in a copy of this environment ({problem})",
        )
        return
    client, server, _ = whole_sum(sites, values, dropped)
    what = f"{sites} sites x {values:,} values, {dropped} dropped"
    for who, ours, other in zip(("client", "server"), (client["whole"], server["whole"]), theirs, strict=True):
        show(f"{what}: {who}, medfed beside Flower's SecAgg+", f"{ours:.3f} s beside {other:.3f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--dropped", type=int, default=60)
    parser.add_argument("--only", nargs="*", choices=["sum", "masks", "failure", "flower"])
    parser.add_argument(
        "--flower", type=int, nargs=3, metavar=("SITES", "VALUES", "DROPPED"), default=[40, 100_000, 12],
        help="size of the sum that Flower adds up too; at 200 100000 60 we stopped it after 3 minutes of processor time",
    )  # fmt: skip
    options = parser.parse_args()
    wanted = options.only or ["sum", "masks", "failure", "flower"]
    good = True
    if "sum" in wanted:
        good &= show_sum(options.sites, options.values, options.dropped)
    if "masks" in wanted:
        good &= show_masks(options.sites, options.values)
    if "failure" in wanted:
        good &= show_failure()
    if "flower" in wanted:
        show_flower(*options.flower)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
