"""Who may connect: a site that the roster has, with the certificate and the key that the roster has for it. Nobody else."""

import json
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from joined import Joined, make_joined
from network import dated

from medfed.engines.nvflare import renewal
from medfed.engines.nvflare.certificates import Root, fingerprint, make_root, why_unusable
from medfed.engines.nvflare.consortium import Member
from medfed.engines.nvflare.guard import NOT_ITS_CERTIFICATE, NOT_ITS_KEY, NOT_ON_THE_ROSTER, judge, make_token
from medfed.federation.keys import load_signing_key, new_signing_key, public_hex

SECRET = "5e" * 32


# -- the roster's judgement ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Joined:
    return make_joined(tmp_path_factory.mktemp("judged") / "consortium", ["north", "south"])


@dataclass(frozen=True)
class Case:
    """Site north as it would register, and anything about it changed."""

    joined: Joined

    def member(self) -> Member:
        return self.joined.coordinator.members()["north"]

    def judged(
        self, token: str | None = None, *, site: str = "north", shown: str | None = None, **changes: Any
    ) -> str | None:
        key = load_signing_key(self.joined.site("north").keys)
        asked = dict(consortium=self.joined.coordinator.identity(), site="north", certificate=self.certificate, key=key, enrolment=SECRET)  # fmt: skip
        text = make_token(**asked | changes) if token is None else token  # type: ignore[arg-type]
        return judge(self.joined.coordinator, site, text, self.certificate if shown is None else shown)

    @property
    def certificate(self) -> str:
        return fingerprint(self.joined.site_network("north").certificate())


@pytest.fixture
def case(alone: Joined) -> Case:
    """Freshly invited, with a known secret in its kit."""
    found = Case(alone)
    alone.coordinator.change(
        "north", state="invited", enrolment=SECRET, public_key="", next_certificate="", certificate=found.certificate
    )
    return found


def test_the_first_visit_binds_the_key_and_later_ones_are_held_to_it(case: Case) -> None:
    assert case.judged() is None
    member = case.member()
    assert (member.state, member.enrolment) == ("joined", "")
    assert member.public_key == public_hex(load_signing_key(case.joined.site("north").keys))
    assert case.judged(enrolment="00" * 32) is None  # the kit's secret has had its day
    assert case.judged(key=new_signing_key()) == NOT_ITS_KEY


def test_a_first_visit_without_the_kits_secret_binds_nothing(case: Case) -> None:
    for secret in ("00" * 32, "", SECRET[:-2]):
        assert case.judged(enrolment=secret) == NOT_ITS_KEY
    case.joined.coordinator.change("north", enrolment="")  # a damaged roster: an empty secret is none
    assert case.judged(enrolment="") == NOT_ITS_KEY
    assert case.member().state == "invited"


def test_of_two_first_visits_at_a_time_one_binds_its_key(case: Case) -> None:
    keys = [new_signing_key() for _ in range(12)]
    told: dict[int, str | None] = {}
    ready = threading.Barrier(len(keys))

    def visit(index: int) -> None:
        ready.wait()
        told[index] = case.judged(key=keys[index])

    threads = [threading.Thread(target=visit, args=(index,)) for index in range(len(keys))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bound = [index for index, reason in told.items() if reason is None]
    assert len(bound) == 1
    assert case.member().public_key == public_hex(keys[bound[0]])


def test_another_name_consortium_certificate_or_text_is_refused(case: Case) -> None:
    other = fingerprint(case.joined.site_network("south").certificate())
    assert case.judged(site="south") == NOT_ITS_KEY  # south with north's token
    assert case.judged(site="nobody") == NOT_ON_THE_ROSTER
    assert case.judged(site="south") == NOT_ITS_KEY
    assert case.judged(consortium="0" * 16) == NOT_ITS_KEY
    assert case.judged(certificate=other) == NOT_ITS_CERTIFICATE
    assert case.judged(shown=other) == NOT_ITS_CERTIFICATE  # it names the right one and shows another
    assert case.judged(certificate="", shown="") == NOT_ITS_CERTIFICATE
    good = json.loads(
        make_token(case.joined.coordinator.identity(), "north", case.certificate, new_signing_key(), SECRET)
    )
    texts = [
        "",
        "None",
        "[]",
        "{}",
        "[" * 99_999,
        '"x"',
        "\ud800",
        json.dumps(good)[:-1],
        json.dumps(good | {"site": "south"}),
    ]
    texts += [
        json.dumps(good | {name: value})
        for name in good
        for value in (None, 7, "", "zz", [good[name]], "\ud800", "\u00e9" * 64)
    ]
    for text in texts:
        assert case.judged(text) in (NOT_ITS_KEY, NOT_ITS_CERTIFICATE)
    assert case.member().state == "invited"


def test_a_removed_site_is_refused_with_all_that_it_has(case: Case) -> None:
    assert case.judged() is None
    renewal.remove(case.joined.coordinator, "north")
    assert case.judged() == NOT_ON_THE_ROSTER


def test_a_renewed_certificate_takes_over_and_the_old_one_ends(case: Case) -> None:
    assert case.judged() is None
    case.joined.coordinator.change("north", next_certificate="ab" * 32)
    assert case.judged() is None  # until the new one is used
    assert case.judged(certificate="ab" * 32, shown="ab" * 32) is None
    assert case.judged() == NOT_ITS_CERTIFICATE


def test_a_site_says_itself_why_its_certificate_is_of_no_use(alone: Joined) -> None:
    root = Root.load(alone.coordinator.keys)
    pem = (alone.coordinator.keys / "root.crt").read_bytes()
    day = timedelta(days=1)
    good, other = dated(root, "north", -day, day), dated(root, "north", -day, day)
    assert why_unusable(good.certificate, good.key, pem, "north") == ""
    ended, early = dated(root, "north", -9 * day, -day), dated(root, "north", day, 9 * day)
    assert "the certificate ended on" in why_unusable(ended.certificate, ended.key, pem, "north")
    assert "compare this machine's clock" in why_unusable(early.certificate, early.key, pem, "north")
    foreign = make_root("trial").certificate
    for certificate, key, issuer, name in (
        (good.certificate, other.key, pem, "north"), (good.certificate, good.key, pem, "south"), (good.certificate, good.key, foreign, "north"),
        (b"", good.key, pem, "north"), (good.certificate, b"", pem, "north"), (good.certificate, good.key, b"x", "north"),
    ):  # fmt: skip
        assert "ask the coordinator for a new kit" in why_unusable(certificate, key, issuer, name)
