"""Mathematics of privacy. Secure sums: a coordinator adds up what nobody, itself included, can see one by one.

Bonawitz et al. 2017 (double masks, Shamir shares, signed survivors), Bell et al. 2020 (neighbour graphs). Nothing here
reads a file, a socket or a clock, or knows a step, a table or an engine.

**One attempt**, whatever carries the messages (each is a frozen dataclass; ``write_message`` and ``read_message`` make
bytes of it and back)::

    roster = call_roster(directory, authority, call.roster)      # names and keys that somebody vouched for
    context = Context(study, run, round, step, ordinal, question, roster.digest, length, purpose, attempt)

    side = CoordinatorSide(context, roster, asked=sites)         # at the coordinator
    while not side.is_done:
        for site, request in side.requests().items():            # None asks for keys
            reply = ...                                          # carried there and back
            side.receive(site, reply)                            # PrivacyError: refused, not counted, .culprits
        side.advance()                                           # PrivacyError: too few sites are left
    side.total, side.survivors                                   # int64 modulo 2**64; who is in it
    side.count                                                   # SignedCount, when purpose is "count"

    own = SiteSide(name, key, context, roster, remember=..., table=table_word(key, version))      # at a site
    reply = own.answer(request, values, count)                   # or advertise, share, mask, sign_survivors, unmask

**What the caller owes it**

- ``authority`` is a key that the site itself trusts, not one that the coordinator sent.
- ``values`` are the sealed words of the call, the same in every attempt. ``question`` is the digest of all that every
  site is asked alike, so that sites asked different things give no total.
- ``remember(context.key, sites)`` writes the set into the site's ledger, durably and before it returns, unless one
  stands under this key; it returns the one that stands. It is also the place for rules about sets: it raises to refuse
  one (``given_away`` says whom the new total would expose beside the earlier ones).
- A site takes purpose "count" for the step that counts units and nothing else, and judges a count's totals, and its
  ``question``, itself before it passes the count on to ``mask``. The count must be over exactly the survivors.
- A site takes purpose "noisy" for what carries its noise already and nothing else: no count is asked for before it.
- A later attempt (``attempt`` + 1, new sides) asks the sites of the set that was signed, if one was.

**What holds** while fewer than 2t - n sites (t = floor(2n/3) + 1: about a third), and above 200 sites fewer than half of
each site's neighbours, help a coordinator that does anything it likes: it learns totals over at least t of the n sites,
one set a call. A site may still lie about its own words and so spoil a total: hold totals to the limits of their step.
"""

from medfed.privacy.context import Context, Purpose
from medfed.privacy.coordinator_side import CoordinatorSide
from medfed.privacy.differencing import Total, exposed_groups, given_away, newly_exposed
from medfed.privacy.messages import Message, Reply, Request, SignedCount, read_message, write_message
from medfed.privacy.neighbours import failure_chance, neighbours_needed
from medfed.privacy.roster import Roster, SignedRoster, call_roster, quorum, sign_roster
from medfed.privacy.signatures import public_hex, table_word
from medfed.privacy.site_side import Remember, SiteSide

__all__ = [
    "Context",
    "CoordinatorSide",
    "Message",
    "Purpose",
    "Remember",
    "Reply",
    "Request",
    "Roster",
    "SignedCount",
    "SignedRoster",
    "SiteSide",
    "Total",
    "call_roster",
    "exposed_groups",
    "failure_chance",
    "given_away",
    "neighbours_needed",
    "newly_exposed",
    "public_hex",
    "quorum",
    "read_message",
    "sign_roster",
    "table_word",
    "write_message",
]
