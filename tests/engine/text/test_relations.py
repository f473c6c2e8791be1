import pytest

from engine.errors import DatasetError
from engine.text.relations import WordPair, relation, shipped_relations


def test_the_six_relations_have_forty_different_pairs_each():
    assert set(shipped_relations()) == {"synonym", "antonym", "hypernym", "hyponym", "meronym", "holonym"}
    for each in shipped_relations().values():
        assert len(each.pairs) >= 40
        assert len(set(each.pairs)) == len(each.pairs)
        assert all(first != second and first.isalpha() and second.isalpha() for first, second in each.pairs)


def test_symmetric_relations_list_a_pair_once_and_share_none():
    synonyms, antonyms = ({frozenset(pair) for pair in relation(name).pairs} for name in ("synonym", "antonym"))
    assert len(synonyms) == len(relation("synonym").pairs)
    assert len(antonyms) == len(relation("antonym").pairs)
    assert not synonyms & antonyms


@pytest.mark.parametrize("name", ["hypernym", "hyponym", "meronym", "holonym"])
def test_directed_relations_are_turned_round_by_their_inverse(name):
    here, there = relation(name), relation(relation(name).inverse)
    assert there.inverse == name
    assert {WordPair(second, first) for first, second in here.pairs} == set(there.pairs)
    assert not set(here.pairs) & set(there.pairs)


def test_kinds_do_not_run_in_circles():
    above = dict(relation("hypernym").pairs)
    for word in above:
        seen = {word}
        while word in above:
            word = above[word]
            assert word not in seen
            seen.add(word)


def test_an_unknown_relation_lists_the_known_ones():
    with pytest.raises(DatasetError, match="no relation 'cousin'; expected one of: synonym, antonym"):
        relation("cousin")
