"""What a vision tower answers: kept, divided, put together again, and blank."""

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from easyedit_dualedit.train.picture_features import (
    Features,
    UnknownFeaturesError,
    blank,
    divided,
    form_of,
    merged,
    read_features,
)

STATES = torch.arange(24.0).view(6, 4)


@pytest.mark.parametrize("kind", [BaseModelOutputWithPooling, BaseModelOutput])
def test_parts_go_together_again(kind: type):
    """The second kind has no field of that name; transformers 5.5 sets it all the same."""
    parts = divided(Features(kind, {"pooler_output": STATES}), [2, 4])
    assert parts is not None and [len(p.values["pooler_output"]) for p in parts] == [2, 4]
    answer = merged(parts)
    assert type(answer) is kind
    assert torch.equal(answer.pooler_output, STATES)
    assert answer.last_hidden_state is None


def test_a_list_of_pictures_stays_a_list():
    values = {
        "pooler_output": [STATES[:2], STATES[2:]],
        "deepstack_features": [STATES, STATES + 1],
    }
    parts = divided(Features(BaseModelOutputWithPooling, values), [2, 4])
    assert parts is not None
    assert torch.equal(parts[1].values["deepstack_features"][1], STATES[2:] + 1)

    class Answer(dict[str, object]):
        pass

    whole = merged([Features(Answer, part.values) for part in parts])
    assert [len(each) for each in whole["pooler_output"]] == [2, 4]
    assert torch.equal(whole["deepstack_features"][1], STATES + 1)


def test_what_is_not_plainly_whose_is_not_divided():
    features = Features(BaseModelOutputWithPooling, {"pooler_output": STATES})
    assert divided(features, [2, 3]) is None


def test_blank_features_have_the_form_and_nothing_else():
    values = {"pooler_output": STATES, "deepstack_features": [STATES.half()]}
    features = Features(BaseModelOutputWithPooling, values)
    empty = blank(form_of(features), torch.device("cpu"))
    assert form_of(empty) == form_of(features)
    answer = merged([empty, empty])
    assert answer.pooler_output.shape == (12, 4) and not bool(answer.pooler_output.any())
    assert answer.last_hidden_state is None


def test_a_model_without_such_an_answer_is_refused():
    with pytest.raises(UnknownFeaturesError, match="Identity"):
        read_features(torch.nn.Identity(), {"input": torch.zeros(1)})
