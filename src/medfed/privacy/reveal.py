"""The opening itself: secrets from shares, masks off the sum. The coordinator's work; for a count every site's too."""

from collections.abc import Iterator, Mapping, Sequence

from medfed.errors import PrivacyError
from medfed.privacy.agreement import mask_seed, private_key, public_bytes, self_mask_seed, shared_secret
from medfed.privacy.context import Context
from medfed.privacy.masks import IntArray, add_masks, pair_sign
from medfed.privacy.messages import Bytes, KeyList, raw
from medfed.privacy.neighbours import Graph
from medfed.privacy.sealing import commit_to_seed
from medfed.privacy.shares import combine


def held_by(graph: Graph, site: str, dealers: Sequence[str]) -> list[str]:
    """The dealers whose shares a site holds, in the order in which it gives them."""
    holders = set(graph.holders(site))
    return [dealer for dealer in dealers if dealer in holders]


def take_masks_off(
    total: IntArray,
    context: Context,
    graph: Graph,
    listed: KeyList,
    *,
    dealers: Sequence[str],
    survivors: Sequence[str],
    shares: Mapping[str, Bytes],
) -> None:
    """Turn the sum of the survivors' masked words into the sum of their words, in place.

    total: (m,) int64. shares: {holder: (d, 66)}, rows as ``held_by`` says. Raises PrivacyError, naming the dealer, when
    too few shares of a secret are there or they give another secret than the dealer fixed beforehand; total is then not changed.
    Bonawitz et al. 2017, figure 4, round 4.
    """
    found = _shares_by_dealer(graph, dealers, shares)
    alive = set(survivors)
    # All secrets before the first mask, so that a bad one changes nothing.
    secrets = {dealer: _secret(context, graph, listed, dealer, found[dealer], dealer in alive) for dealer in dealers}
    add_masks(total, _masks_left(context, graph, listed, secrets, alive))


def _shares_by_dealer(graph: Graph, dealers: Sequence[str], shares: Mapping[str, Bytes]) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {dealer: {} for dealer in dealers}
    for holder in sorted(shares):
        data = shares[holder].tobytes()
        width = shares[holder].shape[1]
        for at, dealer in enumerate(held_by(graph, holder, dealers)):
            found[dealer][holder] = data[at * width : (at + 1) * width]
    return found


def _secret(
    context: Context, graph: Graph, listed: KeyList, dealer: str, found: Mapping[str, bytes], survived: bool
) -> bytes:
    """A survivor's self-mask seed or a dropped site's private mask key, held to what it published."""
    if len(found) < graph.threshold:
        raise PrivacyError(
            f"{len(found)} shares of site {dealer!r}'s secret were given, {graph.threshold} are needed to open the sum"
        )
    place = {holder: at + 1 for at, holder in enumerate(graph.holders(dealer))}
    used = list(found)[: graph.threshold]
    row = listed.sites.index(dealer)
    problem = f"the shares that site {dealer!r} dealt give another secret than it published: it dealt bad shares"
    try:
        secret = combine(tuple(place[holder] for holder in used), [found[holder] for holder in used])
    except PrivacyError:
        raise PrivacyError(problem, (dealer,)) from None
    if survived:
        published = raw(listed.seed_commitments[row]) == commit_to_seed(context, dealer, secret)
    else:
        published = raw(listed.mask_keys[row]) == public_bytes(private_key(secret))
    if not published:
        raise PrivacyError(problem, (dealer,))
    return secret


def _masks_left(
    context: Context, graph: Graph, listed: KeyList, secrets: Mapping[str, bytes], alive: set[str]
) -> Iterator[tuple[bytes, int]]:
    """Each mask that did not cancel, with the sign that takes it off."""
    publics = dict(zip(listed.sites, listed.mask_keys, strict=True))
    for dealer, secret in secrets.items():
        if dealer in alive:
            yield self_mask_seed(secret, context, dealer), -1
            continue
        own = private_key(secret)
        for peer in graph.holders(dealer):
            if peer in alive:
                shared = shared_secret(own, raw(publics[peer]), peer)
                yield mask_seed(shared, context, dealer, peer), -pair_sign(peer, dealer)
