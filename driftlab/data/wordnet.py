"""WordNet's nouns and what each is a kind of, from the files of its dictionary.

Source: Fellbaum (1998), "WordNet"; the closure and the names as in Nickel, Kiela (2017), "Poincare
embeddings for learning hierarchical representations".
"""

import hashlib
import os

import numpy as np

from driftlab.data.dataset import DataError
from driftlab.data.files import candidate_folders, find_files, read_verified
from driftlab.data.relations import Relations, restricted, transitive_closure

SYSTEM_FOLDERS = ("/usr/share/wordnet",)

# SHA-256 of the files of WordNet 3.0.
CHECKSUMS = {
    "data.noun": "fea17d2f9656611334eac790e5d69e47645fa180c4aa481fb4cd9b3520754ca2",
    "index.noun": "a490d99d93d017bf4822fe2f0ffa51fd73911ce271dc7535fade21f8814b5a04",
}

HOW_TO_GET = (
    "On Debian and Ubuntu `apt-get install wordnet-base` installs them where they are found by "
    "themselves. Otherwise put the files of the folder `dict` of WordNet 3.0 of Princeton "
    "University in a folder and name it with --data_dir, data_dir= or the environment variable "
    "DRIFTLAB_DATA_DIR."
)

HYPERNYM_SYMBOLS = ("@", "@i")  # is a kind of; is an instance of
MAMMAL = "mammal.n.01"
# Left out by Nickel and Kiela's script, whose count of pairs the literature goes by.
LEFT_OUT = ("tusker.n.01", "female_mammal.n.01")


def load_wordnet(
    data_dir: str | os.PathLike[str] | None = None, *, verify_checksum: bool = True
) -> Relations:
    """The transitive closure of "is a kind of" and "is an instance of" over all nouns.

    82,115 synonym sets and 743,241 pairs, those of Nickel and Kiela (2017) and Becigneul and Ganea
    (2019). A set is named by its first lemma and the position of its sense: `dog.n.01`.

    Args:
      data_dir: folder with `data.noun` and `index.noun`, or with a folder `wordnet` that has them.
        The folder in the environment variable `DRIFTLAB_DATA_DIR` and the Debian package's are
        tried next.
      verify_checksum: whether to insist on WordNet 3.0's files.

    Returns:
      Pairs of a set and one of its ancestors, ordered by the files.

    Raises:
      FileNotFoundError: a file is in none of the folders.
      DataError: a file is corrupt, or not WordNet 3.0's.
    """
    folders = candidate_folders(data_dir, "wordnet", SYSTEM_FOLDERS)
    paths = find_files("wordnet", tuple(CHECKSUMS), folders, how_to_get=HOW_TO_GET)
    contents = read_verified(paths, CHECKSUMS if verify_checksum else None)
    try:
        senses = _senses(contents["index.noun"].decode("ascii"))
    except (ValueError, IndexError) as error:
        raise DataError(f"{paths['index.noun']}: not WordNet's index ({error}).") from None
    names: dict[int, str] = {}
    above: list[tuple[int, int]] = []
    for number, line in enumerate(contents["data.noun"].decode("ascii").splitlines(), 1):
        if line.startswith(" "):
            continue  # the licence
        try:
            offset, lemma, parents = _synonym_set(line)
            position = senses[lemma.lower()].index(offset) + 1
        except (ValueError, IndexError, KeyError) as error:
            raise DataError(
                f"{paths['data.noun']}, line {number}: not an entry of WordNet ({error!r})."
            ) from None
        names[offset] = f"{lemma.lower()}.n.{position:02d}"
        above += [(offset, parent) for parent in parents]
    order = {offset: index for index, offset in enumerate(names)}
    absent = [f"{parent:08d}" for _, parent in above if parent not in order]
    if absent:
        raise DataError(f"{paths['data.noun']}: entries refer to {absent[0]}, which is not there.")
    pairs = np.array([(order[child], order[parent]) for child, parent in above], np.int32)
    return transitive_closure(Relations(tuple(names.values()), pairs))


def mammals(nouns: Relations) -> Relations:
    """The part of the closure below `mammal.n.01`: 1,180 sets, 6,540 pairs.

    Args:
      nouns: what `load_wordnet` gives.

    Returns:
      The pairs with both ends in mammal and its descendants, but for `tusker.n.01` and
      `female_mammal.n.01` under mammal, which Nickel and Kiela leave out.

    Raises:
      DataError: if there is no mammal in it.
    """
    if MAMMAL not in nouns.names:
        raise DataError(f"the relations hold no {MAMMAL!r}.")
    root = nouns.names.index(MAMMAL)
    child, parent = nouns.pairs.T
    inside = np.zeros(len(nouns.names), bool)
    inside[root] = True
    inside[child[parent == root]] = True
    out = [nouns.names.index(name) for name in LEFT_OUT if name in nouns.names]
    dropped = (parent == root) & np.isin(child, out)
    return restricted(nouns, inside[child] & inside[parent] & ~dropped)


def digest(relations: Relations) -> str:
    """What two sets of relations share if and only if they hold the same pairs of names.

    Args:
      relations: any.

    Returns:
      The first 16 hexadecimal digits of the SHA-256 of the sorted `child<TAB>parent` lines.
    """
    names = relations.names
    lines = sorted(f"{names[c]}\t{names[p]}\n".encode() for c, p in relations.pairs.tolist())
    return hashlib.sha256(b"".join(lines)).hexdigest()[:16]


def _senses(index: str) -> dict[str, list[int]]:
    """Lemma -> offsets of its senses, most frequent first."""
    senses = {}
    for line in index.splitlines():
        if line.startswith(" "):
            continue
        fields = line.split()
        # lemma, part of speech, senses, pointer symbols (their number first), senses, tagged.
        skipped = 6 + int(fields[3])
        senses[fields[0]] = [int(field) for field in fields[skipped:]]
    return senses


def _synonym_set(line: str) -> tuple[int, str, list[int]]:
    """The offset of an entry, its first lemma, and the offsets it is a kind or instance of."""
    fields = line.split("|")[0].split()
    offset, words = int(fields[0]), int(fields[3], 16)
    start = 4 + 2 * words
    pointers = int(fields[start])
    parents = []
    for index in range(pointers):
        symbol, target, part, _ = fields[start + 1 + 4 * index : start + 5 + 4 * index]
        if symbol in HYPERNYM_SYMBOLS and part == "n":
            parents.append(int(target))
    return offset, fields[4], parents
