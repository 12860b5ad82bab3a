"""WordNet's nouns: the published counts where its files are, a small dictionary anywhere."""

import pytest

from driftlab.data import wordnet
from driftlab.data.dataset import DataError

# Two senses of one lemma, an instance, a capital, other pointers; as in the files.
DATA = (
    "  1 the licence\n"
    "00000001 03 n 01 entity 0 001 ~ 00000002 n 0000 | that which exists\n"
    "00000002 03 n 02 Animal 0 beast 0 002 @ 00000001 n 0000 ~ 00000003 n 0000 | it moves\n"
    "00000003 05 n 01 mammal 0 002 @ 00000002 n 0000 + 00000009 a 0101 | it has hair\n"
    "00000004 05 n 01 tusker 0 001 @ 00000003 n 0000 | with tusks\n"
    "00000005 05 n 01 dog 0 001 @ 00000003 n 0000 | barks | and wags\n"
    "00000006 18 n 01 laika 0 001 @i 00000005 n 0000 | flew\n"
    "00000007 06 n 01 dog 0 001 @ 00000001 n 0000 | andiron\n"
)
INDEX = (
    "  1 the licence\n"
    "animal n 1 2 @ ~ 1 1 00000002\n"
    "beast n 1 2 @ ~ 1 0 00000002\n"
    "dog n 2 1 @ 2 1 00000005 00000007\n"
    "entity n 1 1 ~ 1 1 00000001\n"
    "laika n 1 1 @i 1 0 00000006\n"
    "mammal n 1 2 @ + 1 1 00000003\n"
    "tusker n 1 1 @ 1 0 00000004\n"
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "wordnet").mkdir()
    (tmp_path / "wordnet" / "data.noun").write_text(DATA)
    (tmp_path / "wordnet" / "index.noun").write_text(INDEX)
    return tmp_path


def test_a_small_dictionary(folder):
    nouns = wordnet.load_wordnet(folder, verify_checksum=False)
    assert nouns.names == (
        "entity.n.01", "animal.n.01", "mammal.n.01", "tusker.n.01", "dog.n.01", "laika.n.01",
        "dog.n.02",
    )  # fmt: skip
    found = {(nouns.names[c], nouns.names[p]) for c, p in nouns.pairs.tolist()}
    assert len(found) == 1 + 2 + 3 + 3 + 4 + 1
    assert ("laika.n.01", "mammal.n.01") in found
    below = wordnet.mammals(nouns)
    # tusker is left out of what is below mammal.
    assert {(below.names[c], below.names[p]) for c, p in below.pairs.tolist()} == {
        ("dog.n.01", "mammal.n.01"),
        ("laika.n.01", "dog.n.01"),
        ("laika.n.01", "mammal.n.01"),
    }


def test_other_files_and_missing_ones_are_refused(folder, tmp_path):
    with pytest.raises(DataError, match="SHA-256"):
        wordnet.load_wordnet(folder)
    with pytest.raises(FileNotFoundError, match="apt-get install wordnet-base"):
        wordnet.load_wordnet(tmp_path / "nowhere")
    (folder / "wordnet" / "data.noun").write_text(DATA + "00000008 03 n 01 cat 0 001 @ 0\n")
    with pytest.raises(DataError, match="line 9: not an entry of WordNet"):
        wordnet.load_wordnet(folder, verify_checksum=False)


def test_files_that_do_not_fit_together_are_refused(folder):
    (folder / "wordnet" / "data.noun").write_text(
        DATA.replace("n 01 dog 0 001 @ 00000003", "n 01 dog 0 001 @ 00000033")
    )
    with pytest.raises(DataError, match=r"data\.noun: entries refer to 00000033"):
        wordnet.load_wordnet(folder, verify_checksum=False)
    (folder / "wordnet" / "index.noun").write_text("dog n 2\n")
    with pytest.raises(DataError, match=r"index\.noun: not WordNet's index"):
        wordnet.load_wordnet(folder, verify_checksum=False)


def test_without_a_mammal_there_are_no_mammals(folder):
    nouns = wordnet.load_wordnet(folder, verify_checksum=False)
    with pytest.raises(DataError, match=r"no 'mammal\.n\.01'"):
        wordnet.mammals(nouns._replace(names=tuple(f"x{i}" for i in range(7))))


def test_the_published_counts():
    try:
        nouns = wordnet.load_wordnet()
    except FileNotFoundError:
        pytest.skip("WordNet's files are not on this machine")
    assert (len(nouns.names), len(nouns.pairs)) == (82_115, 743_241)
    assert wordnet.digest(nouns) == "dc881ae7e7b37331"
    below = wordnet.mammals(nouns)
    assert (len(below.names), len(below.pairs)) == (1_180, 6_540)
    assert wordnet.digest(below) == "f5e7d8fb3f3e1818"
