"""The secure count of units: opened like a sum, then added up again and signed by the sites themselves.

A coordinator could claim any count; so each site takes the masks off with its own hands, from messages that the others
have signed. It learns what the coordinator learns: the total, nothing else.
"""

import numpy as np

from medfed.errors import PrivacyError
from medfed.privacy.checks import check_shapes, check_signature
from medfed.privacy.context import Context
from medfed.privacy.masks import IntArray
from medfed.privacy.messages import (
    KeyList,
    Masked,
    SignedCount,
    Transcript,
    Unmasking,
    expect_array,
)
from medfed.privacy.neighbours import Graph
from medfed.privacy.reveal import held_by, take_masks_off
from medfed.privacy.roster import Roster


def counted(
    transcript: Transcript,
    context: Context,
    roster: Roster,
    listed: KeyList,
    graph: Graph,
    *,
    dealers: tuple[str, ...],
    dealt: str,
    agreed: str,
) -> IntArray:
    """The total (m,) that these signed messages open. dealt, agreed: digests of the dealers and of the survivor set.

    Raises PrivacyError, naming the site, for a message that its site did not sign or a share that does not fit.
    """
    survivors = transcript.survivors
    expect_array(transcript.values, (len(survivors), context.length), np.int64, "the masked words of the count", "")
    expect_array(transcript.masked_signatures, (len(survivors), 64), np.uint8, "the signatures of the count", "")
    expect_array(
        transcript.unmasking_signatures, (len(transcript.shares), 64), np.uint8, "the signatures of shares", ""
    )
    if len(transcript.acknowledged) != len(survivors):
        raise PrivacyError("the count's transcript does not have one acknowledgement a site")
    if strangers := tuple(sorted(set(transcript.shares) - set(survivors))):
        raise PrivacyError(f"the count's transcript has shares from {', '.join(strangers)}, not survivors", strangers)
    for at, site in enumerate(survivors):
        check_signature(
            Masked(
                site, context.digest, dealt, transcript.acknowledged[at], transcript.values[at],
                transcript.masked_signatures[at],
            ),
            context,
            roster,
        )  # fmt: skip
    for at, site in enumerate(sorted(transcript.shares)):
        given = Unmasking(site, context.digest, agreed, transcript.shares[site], transcript.unmasking_signatures[at])
        check_shapes(given, held=len(held_by(graph, site, dealers)))
        check_signature(given, context, roster)
    # Unsigned words, so that the sum wraps round like the masks do.
    total: IntArray = transcript.values.view(np.uint64).sum(axis=0, dtype=np.uint64).view(np.int64)
    take_masks_off(total, context, graph, listed, dealers=dealers, survivors=survivors, shares=transcript.shares)
    return total


def unsigned_count(context: Context, listed: KeyList, survivors: tuple[str, ...], total: IntArray) -> SignedCount:
    """What the sites sign: the totals, over whom, and with which tables."""
    tables = dict(zip(listed.sites, listed.tables, strict=True))
    return SignedCount(
        study=context.study,
        question=context.question,
        roster=context.roster,
        context=context.digest,
        sites=survivors,
        tables=tuple(tables[site] for site in survivors),
        totals=total,
        signers=(),
        signatures=np.empty((0, 64), np.uint8),
    )
