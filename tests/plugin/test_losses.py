"""EasyEdit's loss, called as a transformers model needs it."""

import torch
from easyedit_fixtures import needs_master, shared_workplace
from tiny_trainings import encoder_of, records_of

from easyedit_dualedit.plugin.host import Host
from easyedit_dualedit.plugin.losses import shifted_loss

pytestmark = needs_master


def test_the_loss_of_the_training_is_transformers_own(host: Host) -> None:
    workplace = shared_workplace("llava")
    encoder = encoder_of(workplace)
    batch = encoder.encode([records_of(workplace)[0].request])
    with torch.no_grad():
        output = encoder.backbone.model(**batch.inputs, labels=batch.labels)
    theirs = host.module("trainer.losses").masked_log_probs

    class Config:
        model_class = "llava-onevision"

    found = shifted_loss(theirs, Config(), output.logits, batch.labels)
    torch.testing.assert_close(found["nll"], output.loss)
