"""By which code a number was made."""

from tfusion.ablations import code


def test_comments_docstrings_and_form_do_not_make_a_number_stale():
  plain = code.statements("def f(x):\n  return x + 1\n")
  same = code.statements('def f(x):\n    "Adds."\n    # one\n    return (x + 1)\n')
  assert plain == same


def test_another_statement_does():
  one, other = (code.statements(f"def f(x):\n  return x + {n}\n") for n in (1, 2))
  assert one != other


def test_every_room_that_makes_numbers_is_there():
  for room in code.ROOMS:
    assert (code.PACKAGE / room).exists(), room
  assert len(code.version()) == code.DIGITS
