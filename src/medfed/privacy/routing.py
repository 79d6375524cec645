"""How the coordinator passes on what sites say to each other: the key list, each holder's shares, the transcript."""

from collections.abc import Mapping

import numpy as np

from medfed.privacy.messages import (
    Delivery,
    KeyList,
    Keys,
    Masked,
    Shares,
    SignedSurvivors,
    SurvivorSignature,
    Transcript,
    Unmasking,
    list_digest,
    raw,
    rows,
    stacked,
)
from medfed.privacy.neighbours import Graph
from medfed.privacy.sealing import SEALED_BYTES

_COMMITMENT_BYTES = 64


def key_list(context: str, keys: Mapping[str, Keys]) -> KeyList:
    """All keys that arrived, in order of names."""
    sent = [keys[site] for site in sorted(keys)]
    return KeyList(
        context,
        tuple(each.site for each in sent),
        stacked((each.channel_key for each in sent), 32),
        stacked((each.mask_key for each in sent), 32),
        stacked((each.seed_commitment for each in sent), 32),
        tuple(each.table for each in sent),
        stacked((each.signature for each in sent), 64),
    )


def deliveries(listed: KeyList, graph: Graph, shares: Mapping[str, Shares]) -> dict[str, Delivery]:
    """For each dealer, as a holder, what its neighbours among the dealers have for it."""
    dealers = tuple(sorted(shares))
    sealed: dict[str, list[bytes]] = {site: [] for site in dealers}
    committed: dict[str, list[bytes]] = {site: [] for site in dealers}
    for dealer in dealers:
        ciphertexts, commitments = raw(shares[dealer].ciphertexts), raw(shares[dealer].commitments)
        row = 0
        for place, holder in enumerate(graph.holders(dealer)):
            if holder in committed:
                committed[holder].append(commitments[place * _COMMITMENT_BYTES : (place + 1) * _COMMITMENT_BYTES])
            if holder == dealer:
                continue
            if holder in sealed:
                sealed[holder].append(ciphertexts[row * SEALED_BYTES : (row + 1) * SEALED_BYTES])
            row += 1
    named = list_digest(listed)
    return {
        site: Delivery(
            listed.context,
            named,
            dealers,
            rows(b"".join(sealed[site]), SEALED_BYTES),
            rows(b"".join(committed[site]), _COMMITMENT_BYTES).reshape(-1, 2, 32),
        )
        for site in dealers
    }


def signed_survivors(context: str, sites: tuple[str, ...], replies: Mapping[str, SurvivorSignature]) -> SignedSurvivors:
    """The set with every signature that arrived."""
    signers = tuple(sorted(replies))
    return SignedSurvivors(context, sites, signers, stacked((replies[site].signature for site in signers), 64))


def transcript(context: str, masked: Mapping[str, Masked], given: Mapping[str, Unmasking]) -> Transcript:
    """All that opens a count, as the sites signed it."""
    survivors = tuple(sorted(masked))
    return Transcript(
        context,
        survivors,
        np.stack([masked[site].values for site in survivors]),
        tuple(masked[site].acknowledged for site in survivors),
        stacked((masked[site].signature for site in survivors), 64),
        {site: given[site].shares for site in sorted(given)},
        stacked((given[site].signature for site in sorted(given)), 64),
    )
