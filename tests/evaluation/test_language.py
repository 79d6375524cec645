"""Every sentence that people read exists in every language, with the same placeholders."""

import re

import pytest

from medfed import language
from medfed.engines.nvflare.coordinator_service import AWAY
from medfed.engines.nvflare.engine import STILL_AWAY
from medfed.errors import LISTED, MedfedError
from medfed.federation import gate
from medfed.federation.federation import TOO_FEW, WITHOUT
from medfed.language import LANGUAGES, byte_count, number, percent, problems, translator, update
from medfed.sentences import Sentence, messages, placeholders


@pytest.mark.parametrize("lang", LANGUAGES[1:])
def test_every_sentence_is_translated_with_the_same_placeholders(lang):
    assert problems(lang) == []


def test_sentences_are_found_in_code_templates_constants_and_steps(tmp_path):
    (tmp_path / "federation").mkdir()
    (tmp_path / "pages" / "templates").mkdir(parents=True)
    (tmp_path / "any.py").write_text(
        'a = _("one {x}").format(x=1)\nb = [_("two")]\nNOT_FOUND = "not a sentence to translate"\n'
    )
    (tmp_path / "federation" / "gate.py").write_text(
        'HELD = "held back"\n_QUERY = "not one"\nWHY = {"no key": "a dict\'s value"}\nSOME = {"one of a set"}\n\n'
        '@step(reads="train")\ndef f(site):\n    """What f does.\n\n    More."""\n'
    )
    (tmp_path / "pages" / "templates" / "p.html").write_text('<p>{{ _("three") }}</p><a title="{{ _(\'four\') }}">')
    kept_apart = {"held back", "a dict's value", "one of a set"}
    assert set(messages(tmp_path)) == {"one {x}", "two", "What f does.", "three", "four"} | kept_apart


def test_a_translated_f_string_is_refused(tmp_path):
    (tmp_path / "any.py").write_text('a = _(f"one {x}")\n')
    with pytest.raises(MedfedError, match=r"any\.py, line 1"):
        messages(tmp_path)


@pytest.fixture
def own_catalogue(tmp_path, monkeypatch):
    """A small catalogue: one sentence translated, one missing, one with another placeholder, one no longer used."""
    path = tmp_path / "medfed.po"
    path.write_text(
        'msgid "good {n}"\nmsgstr "好 {n}"\n\nmsgid "bad {n:.2f}"\nmsgstr "坏 {m:.2f}"\n\n'
        'msgid "gone"\nmsgstr "没了"\n',
        encoding="utf-8",
    )
    monkeypatch.setattr(language, "catalogue_path", lambda lang: path)
    found = {text: Sentence((file,)) for text, file in (("good {n}", "a.py"), ("bad {n:.2f}", "a.py"), ("new", "b.py"))}
    monkeypatch.setattr(language, "messages", lambda: found)
    return path


def test_missing_sentences_and_other_placeholders_are_told(own_catalogue):
    other, missing = problems("zh")
    assert other.startswith("other placeholders than in English: 'bad {n:.2f}'")
    assert missing == "not translated: 'new' (b.py)"


def test_update_adds_new_sentences_keeps_translations_and_drops_what_is_gone(own_catalogue):
    assert update("zh") == (3, 1)
    once = own_catalogue.read_text(encoding="utf-8")
    assert [word in once for word in ("好 {n}", 'msgid "new"', "gone")] == [True, True, False]
    update("zh")
    assert own_catalogue.read_text(encoding="utf-8") == once


def test_a_damaged_catalogue_is_one_clear_sentence(own_catalogue):
    own_catalogue.write_bytes(b'msgid "a\nmsgstr \xff')
    with pytest.raises(MedfedError, match="can't be read"):
        problems("zh")


def test_an_unknown_language_is_refused_with_the_choice():
    with pytest.raises(MedfedError, match="choose en or zh"):
        translator("fr")


def test_an_untranslated_sentence_stays_english():
    assert translator("zh")("no such sentence") == translator("en")("no such sentence") == "no such sentence"


def test_a_reason_that_was_filled_in_elsewhere_is_translated_with_what_fills_it():
    away = STILL_AWAY.format(why=AWAY["gone"], minutes="10")
    assert translator("zh")(away) == "该机构的服务没有运行或无法联系，且截止时限（10 分钟）已过"
    reasons = LISTED.join(
        WITHOUT[kind].format(site=site, reason=reason)
        for kind, site, reason in (("unreachable", "north", away), ("refused", "south", gate.SMALL_CELL))
    )
    too_few = TOO_FEW.format(answered=1, asked=3, step="moments", needed=2, reasons=reasons)
    shown = translator("zh")(too_few)
    assert re.findall("[a-z]+", shown.replace("`medfed resume`", "")) == ["moments", "north", "south"]
    assert translator("zh")("their refusal: never") == "their refusal: never"


def test_placeholders_tell_names_and_formats():
    assert placeholders("{a} of {b:.1f}, {a}") == {"a:", "b:.1f"}
    assert placeholders("a lone { is no format") == set()


def test_numbers_are_written_alike():
    assert number(-0.4604) == "−0.46"
    assert number(-0.001) == "0.00"
    assert number(1234.5, 0) == "1,234"
    assert number(float("inf")) == "∞"
    assert number(None) == number(float("nan")) == percent(None) == "–"
    assert percent(0.17347) == "17.3%"
    assert [byte_count(940), byte_count(12400), byte_count(3_100_000)] == ["940 B", "12.4 kB", "3.1 MB"]
