import pytest
import torch
from tiny_editors import backbone_of, shared
from tiny_families import FAMILIES
from tiny_videos import WATCHING, mixed_queries, video_of

from easyedit_dualedit.errors import BackboneError, DataError
from easyedit_dualedit.model.encoder import Encoder
from easyedit_dualedit.model.inputs import Query


@pytest.mark.parametrize("family", WATCHING)
def test_a_mixed_batch_equals_its_rows(family: str):
    tiny = shared(family)
    encoder = Encoder(backbone_of(tiny), tiny.processor)
    # A shorter video before a picture: the order of the rows is not that of the kinds.
    queries = [*mixed_queries(), Query("What?", video_of("red", "blue", "blue", "red"), "one")]
    queries = [queries[place] for place in (3, 4, 2, 0, 1)]
    batch = encoder.encode(queries)
    vision = batch.layout.vision.sum(1).tolist()
    assert vision[0] == 0 and min(vision[1:]) > 0
    with torch.no_grad():
        together = tiny.model(**batch.inputs).logits
        for row, query in enumerate(queries):
            alone = encoder.encode([query])
            expected = tiny.model(**alone.inputs).logits[0]
            got = together[row, batch.layout.real[row]]
            torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(WATCHING)))
def test_other_families_refuse_a_video_by_name(family: str):
    tiny = shared(family)
    encoder = Encoder(backbone_of(tiny), tiny.processor)
    with pytest.raises(DataError, match=f"{type(tiny.model).__name__} takes none"):
        encoder.encode([Query("What?", video_of("red", "blue"))])


def test_videos_of_several_lengths_are_refused_where_the_model_cannot():
    tiny = shared("llava-onevision")
    encoder = Encoder(backbone_of(tiny), tiny.processor)
    queries = [Query("What?", video_of(*["red"] * count)) for count in (2, 3)]
    with pytest.raises(DataError, match="videos of 2 and 3 frames in one batch"):
        encoder.encode(queries)


@pytest.mark.parametrize("family", [f for f in WATCHING if f != "llava-onevision"])
def test_videos_of_several_lengths_go_together_elsewhere(family: str):
    tiny = shared(family)
    encoder = Encoder(backbone_of(tiny), tiny.processor)
    queries = [Query("What?", video_of(*["red", "blue"] * count)) for count in (2, 4)]
    batch = encoder.encode(queries)
    alone = encoder.encode(queries[:1])
    with torch.no_grad():
        together = tiny.model(**batch.inputs).logits[0, batch.layout.real[0]]
        expected = tiny.model(**alone.inputs).logits[0]
    torch.testing.assert_close(together, expected, atol=2e-4, rtol=2e-4)


def test_a_template_that_leaves_videos_out_is_refused():
    tiny = FAMILIES["llava-onevision"]()
    template = str(tiny.processor.chat_template)
    tiny.processor.chat_template = template.replace("'video'", "'film'")
    encoder = Encoder(backbone_of(tiny), tiny.processor)
    with pytest.raises((BackboneError, DataError), match="video"):
        encoder.encode([Query("What?", video_of("red", "blue"))])
