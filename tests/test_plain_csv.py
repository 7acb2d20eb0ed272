"""Columns of plain CSV."""

import pytest

from jax_bfc._plain_csv import PlainCsv, split


def rows_of(*lines: str) -> PlainCsv:
    rows = split("".join(f"{line}\n" for line in lines).encode(), 3, 100)
    assert rows is not None
    return rows


def test_columns_are_numbers_addresses_and_words() -> None:
    rows = rows_of("a,12,0x7F", "bb,,0X0", f"a,{'9' * 18},0x{'f' * 16}", "a,007,0xa")
    words = rows.words(0, ["bb", "a"])
    decimals = rows.decimals(1)
    addresses = rows.addresses(2)
    assert words is not None
    assert decimals is not None
    assert addresses is not None
    assert words.tolist() == [1, 0, 1, 1]
    assert decimals.tolist() == [12, 0, 10**18 - 1, 7]
    assert addresses.tolist() == [0x7F, 0, 2**64 - 1, 10]
    assert rows.empty(1).tolist() == [False, True, False, False]
    some = rows[words == 0]
    assert len(some) == 1
    assert some.empty(1).tolist() == [True]


@pytest.mark.parametrize("field", ["-1", "+1", "1_0", "1.", " 1", "a", '"1"', "9" * 19])
def test_what_is_no_plain_number_is_none(field: str) -> None:
    assert rows_of("a,1,2", f"a,{field},2").decimals(1) is None


@pytest.mark.parametrize("field", ["", "0", "0x", "x1", "1x1", "0xg", "0x" + "0" * 17])
def test_what_is_no_plain_address_is_none(field: str) -> None:
    assert rows_of("a,1,0x1", f"a,2,{field}").addresses(2) is None


@pytest.mark.parametrize("field", ["", "aa", "A", "b"])
def test_what_is_no_such_word_is_none(field: str) -> None:
    assert rows_of("a,1,2", f"{field},1,2").words(0, ["a", "abc"]) is None


@pytest.mark.parametrize(
    "text",
    [
        b"1,2,3",
        b"1,2\n",
        b"1,2,3,4\n",
        b"1,2\n1,2,3,4\n",
        b"1,2,3\n\n",
        b"1,2,3\r\n",
        b"1,\0,3\n",
        b"1,\x80,3\n",
        b"1,2," + b"3" * 96 + b"\n",
    ],
)
def test_lines_that_are_not_plain_are_none(text: bytes) -> None:
    assert split(text, 3, 100) is None
    assert split(b"1,2," + b"3" * 95 + b"\n", 3, 100) is not None
