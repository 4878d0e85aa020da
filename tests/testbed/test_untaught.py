import pytest

from easyedit_dualedit import testbed
from easyedit_dualedit.data.records import Record, load_records
from easyedit_dualedit.testbed.untaught import ADJECTIVES, NOUNS, with_untaught_targets


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("records")
    return load_records(testbed.write_records(folder, "vqa", "eval", 60), folder / "images")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("taught")
    path = testbed.write_records(folder, "vqa", "train", 600)
    return {str(r.request.target) for r in load_records(path, folder / "images")}


def test_no_word_is_one_of_an_answer_in_training(taught: set[str]):
    words = {word for target in taught for word in target.split()}
    assert words and words.isdisjoint({*NOUNS, *ADJECTIVES})


def test_only_answers_differ(records: list[Record]):
    made = with_untaught_targets(records)
    assert made == with_untaught_targets(records) != with_untaught_targets(records, seed=1)
    for new, old in zip(made, records, strict=True):
        answers = {query.target for query in (new.request, new.text_rephrase, new.image_rephrase)}
        assert len(answers) == 1 and answers.isdisjoint({old.request.target})
        assert (new.text_locality, new.image_locality) == (old.text_locality, old.image_locality)
        assert new.request.prompt == old.request.prompt and new.request.image == old.request.image


def test_answers_have_one_to_three_words(records: list[Record]):
    lengths = [len(str(r.request.target).split()) for r in with_untaught_targets(records)]
    assert set(lengths) == {1, 2, 3} and lengths.count(1) > 15
