"""What is text and what is not, whatever its script and encoding."""

import codecs

import pytest

from tfusion.data import text

SCRIPTS = (
  "a red square",
  "\u732b\u304c\u5ea7\u3063\u3066\u3044\u308b",
  "\u0642\u0637\u0629 \u062d\u0645\u0631\u0627\u0621",
  "\u05d7\u05ea\u05d5\u05dc",
  "\u092c\u093f\u0932\u094d\u0932\u0940",
  "\u0e41\u0e21\u0e27",
  "\uace0\uc591\uc774",
  "\u1780\u1798\u17d2\u1796\u17bb\u1787\u17b6",
  "\U0001f468\u200d\U0001f469\u200d\U0001f467",  # a family, joined by zero widths
  "\u200f\u0633\u0644\u0627\u0645\u200e",  # marks of direction around letters
  "e\u0301t\u00e9",
  "\ue000 of a font's own",
  "\U0001fae9",  # a face that Python 3.11 does not know
  "7",
  "?",
)
BLANK = (
  "",
  " \t\r\n",
  "\u200b\u200c\u200d\ufeff",
  "\x01\x02\x7f\x9f",
  "\u3000\u00a0\u2028",
  "\u0301\ufe0f",
  "\u3164\u2800\u115f",
  "\ufffd\ufffd \ufffd",
  "\u00ad\u2060\U000e0001",
)


@pytest.mark.parametrize("written", SCRIPTS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_in_any_script_is_read_from_files_that_say_how(written, encoding):
  assert text.decode(f"{written}\r\nb\rc".encode(encoding)) == f"{written}\nb\nc"
  assert not text.fault(written) and not text.is_blank(written)


def test_the_mark_of_either_byte_order_is_obeyed():
  for mark, name in (
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
  ):
    assert text.decode(mark + "caf\u00e9".encode(name)) == "caf\u00e9"


@pytest.mark.parametrize("written", BLANK)
def test_what_shows_nothing_is_blank(written):
  assert text.is_blank(written)


def test_utf_16_without_its_mark_is_no_text():
  assert "UTF-16" in text.fault("a square".encode("utf-16-le").decode())
  assert "UTF-16" in text.fault("\0\0\0")
  with pytest.raises(UnicodeDecodeError):
    text.decode("caf\u00e9".encode("latin-1"))


@pytest.mark.parametrize(
  ("data", "says"),
  [
    ("caf\u00e9".encode("latin-1"), "save it as UTF-8"),
    (b"\x1f\x8b\x08\0", "it is compressed by gzip; unpack it"),
  ],
)
def test_what_cannot_be_decoded_says_what_to_do(data, says):
  with pytest.raises(UnicodeDecodeError, match=says):
    text.decode(data)


@pytest.mark.parametrize(
  ("head", "why"),
  [
    (b'[{"text": "a"},\n', "JSON array"),
    (b'\xef\xbb\xbf\n [\n {"text": "a"}', "JSON array"),
    (b'{\n  "text": "a"\n}', "several lines"),
    (b"\x1f\x8b\x08\0", "gzip"),
    (b"PK\x03\x04", "zip"),
    ('{"text": "a"}\n'.encode("utf-16"), "UTF-16"),
    ('{"text": "a"}\n'.encode("utf-16-le"), "as UTF-16 without a mark"),
    (b'{"text": "a"}\n', ""),
    (b"[1, 2]\n[3, 4]\n", ""),
    (b"", ""),
  ],
)
def test_what_is_no_lines_of_json_is_named_by_what_it_is(head, why):
  said = text.why_no_lines(head)
  assert why in said and bool(said) == bool(why)
