"""The few ways in which medfed says no. Every message is written for the person in front of it.

A message says what is wrong, where, and what to do; the command line prints it alone, without a traceback.
"""


class MedfedError(Exception):
    """Root of the family; catch it to handle any refusal of ours."""


class StudyError(MedfedError):
    """A study file that can't be understood, contradicts itself or asks for the impossible."""


class MappingError(MedfedError):
    """A site's source, mapping or table that does not fit the study."""


class PolicyViolation(MedfedError):
    """Something that a site's policy, approval or budget does not allow."""


class FederationError(MedfedError):
    """A run that can't go on: too few sites, a method that is not deterministic, a store in use."""


class LedgerError(MedfedError):
    """A ledger, signature or stored answer that is not what was sealed."""


class PrivacyError(MedfedError):
    """A message of a secure sum that the protocol does not allow. ``culprits``: the sites whose message it is."""

    def __init__(self, message: str, culprits: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.culprits = culprits
